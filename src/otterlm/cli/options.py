"""Defines options that several verbs share, and prints their results."""

import re
from pathlib import Path
from typing import Annotated

import torch
import typer

from otterlm import adapter_files
from otterlm.cli.help import ADVANCED
from otterlm.cli.terminal import print_json
from otterlm.errors import OtterError, reason
from otterlm.training.data.prompts import HELP as PROMPTS_HELP
from otterlm.training.processes import this_process

Base = Annotated[str, typer.Option(help="Base model: hub id, folder, .gguf file, or smollm2-135m.")]
Prompts = Annotated[str, typer.Option(help=PROMPTS_HELP)]
OneAdapter = Annotated[list[str], typer.Option("--adapter", help="Adapter: folder or hub id, or NAME=FOLDER.")]
NamedAdapters = Annotated[
    list[str], typer.Option("--adapter", help="Adapter: folder or hub id, or NAME=FOLDER; may be repeated.")
]
ResumedFolder = Annotated[
    Path | None, typer.Option("--out", help="Folder for the results; an interrupted run found there is gone on with.")
]
Seed = Annotated[int, typer.Option(help="Seed of what is drawn at random.", min=0, max=2**32 - 1)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
TrainingDevice = Annotated[
    str | None,
    typer.Option(
        "--device", help="Where to train, such as cpu or cuda:1; else accelerate chooses.", rich_help_panel=ADVANCED
    ),
]
DTYPE_HELP = "Precision of the parameters: float32, bfloat16 or float16."
Dtype = Annotated[str, typer.Option(help=DTYPE_HELP)]


def parse_device(name: str) -> torch.device:
    """Returns a device by its name, on which tensors can be made and read.

    Raises:
        OtterError: there is no such device, or this machine or this PyTorch lacks it.
    """
    try:
        torch.zeros(1, device=name).item()
    except Exception as error:
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        why = reason(error).split(". ")[0]
        raise OtterError(f"--device {name} cannot be used here ({why}); there is: {', '.join(there)}") from error
    return torch.device(name)


def parse_adapter(text: str, option: str = "--adapter") -> tuple[str | None, str]:
    """Splits NAME=FOLDER into name and folder. A folder or hub id alone has no name; a path may hold an equals sign.

    Args:
        text: what was asked for.
        option: the option that it was asked for by.

    Raises:
        OtterError: there is no folder in it, or the name is no word.
    """
    name, equals, folder = text.partition("=")
    if not text or (equals and not folder):
        raise OtterError(f"{option} {text!r} names no folder")
    if not equals or Path(text).is_dir() or not re.fullmatch(r"[\w .-]+", name):
        return None, text
    if not name.isidentifier():
        raise OtterError(f"{option} {text!r}: a NAME is letters, digits and underscores, got {name!r}")
    return name, folder


def one_adapter(adapters: list[str]) -> tuple[str | None, str]:
    """Returns the adapter of a command that takes one, as `parse_adapter` does.

    Raises:
        OtterError: there are several.
    """
    if len(adapters) > 1:
        raise OtterError(f"this command takes one --adapter, got {', '.join(adapters)}: run it for each")
    return parse_adapter(adapters[0])


def named_adapters(specs: list[str]) -> dict[str, str]:
    """Returns adapters by name, from NAME=FOLDER, or from a folder or hub id, which is named after its signal.

    Raises:
        OtterError: one cannot be read, or two have one name.
    """
    adapters: dict[str, str] = {}
    for name, folder in map(parse_adapter, specs):
        name = name or adapter_files.read_config(adapter_files.locate(folder)).signal.type
        if name in adapters:
            raise OtterError(f"two adapters are named {name!r}: give NAME=FOLDER")
        adapters[name] = folder
    return adapters


def named_judges(specs: list[str]) -> dict[str, str]:
    """Returns judges by name, from NAME=JUDGE, or from a judge alone, which is its own name.

    Raises:
        OtterError: one cannot be read, or two have one name.
    """
    judges: dict[str, str] = {}
    for name, judge in (parse_adapter(spec, "--judge") for spec in specs):
        if (name or judge) in judges:
            raise OtterError(f"two judges are named {name or judge!r}: give NAME=JUDGE")
        judges[name or judge] = judge
    return judges


def show_result(result: dict[str, float], out: Path, as_json: bool) -> None:
    """Prints the metrics of an adapter that was trained and saved. Of several processes, one prints."""
    if not this_process().is_main_process:
        return
    if as_json:
        print_json(result)
        return
    print(f"on the rows held out, after step {result['step']:.0f}:")
    for name, value in result.items():
        if name != "step":
            print(f"  {name.replace('_', ' ')}: {value:.4f}")
    print(f"The adapter is in {out}")
