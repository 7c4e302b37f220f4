"""Holds what all rows of a base share: its folder, how it is loaded, an adapter's shape. `benchmarks/bases.py` uses
it."""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from otterlm.adapter import resolved
from otterlm.bases import load_base, parse_dtype
from otterlm.cli.options import parse_device
from otterlm.config import OtterConfig
from otterlm.detection import recognize
from otterlm.files import write_text
from otterlm.identity import identity, read_checked
from otterlm.layers import parse_layers
from otterlm.signals.base import SignalConfig
from otterlm.training.config import RATE, TrainingConfig
from otterlm.training.learning_rate import suited
from otterlm.training.recipes.common import on_device, use_device


def add_base(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Adds the options that say which base is used, in which precision and where."""
    parser.add_argument(
        "--base", default=default, required=default is None, help="a hub id, a folder, a .gguf file, or smollm2-135m"
    )
    parser.add_argument("--dtype", default="float32", help="of the base")
    parser.add_argument("--device", help="such as cuda; without it the base stays where it was loaded")


def add_live(parser: argparse.ArgumentParser) -> None:
    """Adds the option by which nothing is recorded."""
    parser.add_argument("--live", action="store_true", help="run the base in every step, and record nothing")


def load(arguments: argparse.Namespace) -> PreTrainedModel:
    """Loads the base onto the device."""
    if arguments.device is not None:
        use_device(parse_device(arguments.device))
    base = load_base(arguments.base, parse_dtype(arguments.dtype))
    return base if arguments.device is None else on_device(base)


def at_once(base: PreTrainedModel) -> int:
    """Returns how many pairs or texts a pass reads that learns nothing."""
    return 64 if base.device.type == "cuda" else 8


def conditions(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what numbers depend on beside the base and the data, where it is not the default."""
    return {name: value for name in ("device", "live") if (value := getattr(arguments, name, None))}


def folder(arguments: argparse.Namespace) -> Path:
    """Returns the folder of a base's rows."""
    out: Path = arguments.out
    return out / re.sub(r"[^\w.-]+", "-", arguments.base).strip("-")


def shape(arguments: argparse.Namespace, signal: SignalConfig) -> OtterConfig:
    """Returns an adapter's shape."""
    return OtterConfig(
        hidden_size=arguments.hidden_size, layers=parse_layers(arguments.layers), taps=arguments.taps, signal=signal
    )


def rate(base: PreTrainedModel, config: OtterConfig) -> dict[str, Any]:
    """Returns the learning rate that training chooses beside a base, where it is not the usual one."""
    config, family = resolved(config, recognize(base))
    chosen = suited(TrainingConfig(), base, family, config.layers).peak
    return {} if chosen == RATE else {"learning_rate": chosen}


def make_row(path: Path, depends: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> None:
    """Computes a row and writes it, unless it is there."""
    this = identity("row of a base", **depends)
    if path.exists():
        read_checked(path, this)
        print(f"{path} is there")
        return
    row = compute()
    write_text(path, json.dumps({"identity": this, **row}) + "\n")
    print(path, {name: value for name, value in row.items() if not isinstance(value, list)}, flush=True)
