"""The options that all of `otter train` shares, and how a result is printed."""

from pathlib import Path
from typing import Annotated

import typer

from otterlm.cli.options import console, print_json

Out = Annotated[Path, typer.Option(help="Folder for the adapter, its metrics and its checkpoint.")]
EvalFraction = Annotated[float, typer.Option(help="Part of the data held out to decide when to stop.")]
Embedding = Annotated[str, typer.Option(help="projection, or table (the paper's).")]
Initialization = Annotated[str, typer.Option(help="copy, random or normal.")]
Epochs = Annotated[int, typer.Option(help="Passes over the data.")]
BatchSize = Annotated[int, typer.Option(help="Examples a step, over all processes.")]
LearningRate = Annotated[float, typer.Option(help="The peak, after the warm-up.")]
WeightDecay = Annotated[float, typer.Option(help="AdamW's.")]
Warmup = Annotated[float, typer.Option(help="Fraction of the steps.")]
EvaluationsPerEpoch = Annotated[int, typer.Option(help="How often the held-out part is scored.")]
Patience = Annotated[int, typer.Option(help="Evaluations without a lower loss before training stops.")]
Seed = Annotated[int, typer.Option(help="Of what is held out, of the order and of the initialisation.")]
Record = Annotated[
    bool, typer.Option(help="Keep the base's intermediates on disk, so that only the first epoch runs it.")
]
SaveDtype = Annotated[str, typer.Option(help="Of the saved tensors.")]


def show_result(result: dict[str, float], out: Path, as_json: bool) -> None:
    """Prints the metrics of the saved adapter."""
    if as_json:
        print_json(result)
        return
    shown = "  ".join(f"{name} {value:.4f}" for name, value in result.items() if name != "step")
    console.print(f"{shown}  (step {result['step']:.0f})\nThe adapter is in {out}")
