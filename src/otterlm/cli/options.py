"""Options that several verbs share, and how they print."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from otterlm import adapter_files
from otterlm.errors import OtterError

Base = Annotated[str, typer.Option(help="Base model: hub id, folder, .gguf file, or smollm2-135m.")]
Prompts = Annotated[
    str, typer.Option(help="Prompts (prompt, question, text, or the dialogues of pairs): file or hub dataset.")
]
AdapterFolder = Annotated[str, typer.Option("--adapter", help="Adapter: folder or hub id.")]
NamedAdapters = Annotated[
    list[str], typer.Option("--adapter", help="Adapter: folder or hub id, or NAME=FOLDER; may be repeated.")
]
ResumedFolder = Annotated[
    Path | None, typer.Option("--out", help="Folder for the results; an interrupted run found there is gone on with.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
Dtype = Annotated[str, typer.Option(help="Of the parameters: float32, bfloat16 or float16.")]

console = Console()


def named_adapters(given: list[str]) -> dict[str, str]:
    """Adapters by name: NAME=FOLDER, or a folder or hub id, which is named after its signal.

    Raises:
        OtterError: one cannot be read, or two have one name.
    """
    adapters: dict[str, str] = {}
    for one in given:
        name, _, folder = one.rpartition("=")
        name = name or adapter_files.read_config(adapter_files.locate(folder)).signal.type
        if name in adapters:
            raise OtterError(f"two adapters are named {name!r}: give NAME=FOLDER")
        adapters[name] = folder
    return adapters


def show_result(result: dict[str, float], out: Path, as_json: bool) -> None:
    """Prints the metrics of an adapter that was trained and saved."""
    if as_json:
        print_json(result)
        return
    shown = "  ".join(f"{name} {value:.4f}" for name, value in result.items() if name != "step")
    console.print(f"{shown}  (step {result['step']:.0f})\nThe adapter is in {out}")


def print_json(value: Any) -> None:
    """One JSON object on stdout; NaN, which JSON lacks, becomes null."""
    print(json.dumps(_finite(value), ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
