"""Options that come in groups. A command asks for a group by its dataclass and is given it filled in:

    @grouped
    def command(base: Base, shape: Shape = Shape(), training: Training = Training(epochs=3)) -> None: ...

has all the options of `Shape` and `Training`, with the defaults of the instances.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
import typer
from transformers import PreTrainedModel

from otterlm.bases import load_base
from otterlm.cli.layers import parse_layers
from otterlm.cli.options import parse_device, parse_dtype
from otterlm.config import OtterConfig, SignalConfig
from otterlm.errors import OtterError
from otterlm.files import make_folder
from otterlm.training.packing import Limits
from otterlm.training.recipes import Run
from otterlm.training.rows import Row, hold_out
from otterlm.training.trainer import TrainingConfig


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of its groups, for typer to see."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if not is_dataclass(parameter.default):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        group: Any = type(parameter.default)
        groups[name] = group
        hints = get_type_hints(group, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=getattr(parameter.default, field.name),
                annotation=hints[field.name],
            )
            for field in fields(group)
        ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        built = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**given, **built)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@dataclass(frozen=True, slots=True)
class Shape:
    """What is inserted."""

    hidden_size: Annotated[int, typer.Option(help="d', inserted hidden channels.")] = 64
    heads: Annotated[int, typer.Option(help="H', extra attention heads a block.")] = 3
    kv_heads: Annotated[int, typer.Option(help="Extra key/value heads a block.")] = 1
    intermediate_size: Annotated[int, typer.Option(help="f', extra FFN units a block.")] = 128
    layers: Annotated[
        str | None, typer.Option(help="Widened blocks, such as 4,8,12 or 11-29:2 (every second); default all.")
    ] = None
    embedding: Annotated[str, typer.Option(help="projection, or table (the paper's).")] = "projection"
    initialization: Annotated[str, typer.Option(help="copy, random or normal.")] = "copy"

    def config(self, signal: SignalConfig) -> OtterConfig:
        """As a configuration, which checks it."""
        return OtterConfig(
            hidden_size=self.hidden_size,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.intermediate_size,
            layers=parse_layers(self.layers),
            embedding=self.embedding,  # type: ignore[arg-type]
            initialization=self.initialization,  # type: ignore[arg-type]
            signal=signal,
        )


@dataclass(frozen=True, slots=True)
class Training:
    """How an adapter is trained."""

    eval_fraction: Annotated[float, typer.Option(help="Part of the data held out to decide when to stop.")] = 0.1
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 2
    batch_size: Annotated[int, typer.Option(help="Examples a step, over all processes.")] = 16
    learning_rate: Annotated[float, typer.Option(help="The peak, after the warm-up.")] = 1e-3
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 0.01
    warmup: Annotated[float, typer.Option(help="Fraction of the steps.")] = 0.06
    evaluations_per_epoch: Annotated[int, typer.Option(help="How often the held-out part is scored.")] = 4
    patience: Annotated[int, typer.Option(help="Evaluations without a lower loss before training stops.")] = 6
    record: Annotated[
        bool, typer.Option(help="Keep the base's intermediates on disk, so that only the first epoch runs it.")
    ] = False
    seed: Annotated[int, typer.Option(help="Of what is held out, of the order and of the initialisation.")] = 0
    save_dtype: Annotated[str, typer.Option(help="Of the saved tensors.")] = "bfloat16"

    def run(self, out: Path) -> Run:
        """As a run into a folder; sets the seed of the initialisation."""
        how = TrainingConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            warmup=self.warmup,
            evaluations_per_epoch=self.evaluations_per_epoch,
            patience=self.patience,
            seed=self.seed,
        )
        save_dtype = parse_dtype(self.save_dtype, "--save-dtype")
        make_folder(out)  # before a base is loaded for it
        torch.manual_seed(self.seed)
        return Run(out, how, self.eval_fraction, self.record, save_dtype)


@dataclass(frozen=True, slots=True)
class Texts:
    """How much of a dialogue is read."""

    max_prompt_tokens: Annotated[int, typer.Option(help="A longer prompt keeps its end.")] = 256
    max_response_tokens: Annotated[int, typer.Option(help="A longer response keeps its start.")] = 256

    def limits(self) -> Limits:
        """As limits, which check it."""
        return Limits(self.max_prompt_tokens, self.max_response_tokens)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Which rows are used."""

    eval_fraction: Annotated[
        float | None, typer.Option(help="Only the rows that training with this --eval-fraction and --seed held out.")
    ] = None
    seed: Annotated[int, typer.Option(help="See --eval-fraction.", min=0)] = 0

    def choose(self, rows: list[Row]) -> list[int]:
        """The indices of all rows, or of those that training held out.

        Raises:
            OtterError: it held out none.
        """
        if self.eval_fraction is None:
            return list(range(len(rows)))
        held = sorted(hold_out(rows, self.eval_fraction, self.seed))
        if not held:
            raise OtterError(f"--eval-fraction {self.eval_fraction} holds out none of {len(rows)} rows")
        return held


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and in what precision the base runs."""

    device: Annotated[str, typer.Option(help="Where to run.")] = "cpu"
    dtype: Annotated[str, typer.Option(help="Of the parameters: float32, bfloat16 or float16.")] = "float32"

    def __post_init__(self) -> None:
        parse_device(self.device)
        parse_dtype(self.dtype)

    def load(self, base: str) -> PreTrainedModel:
        """The base, there."""
        return load_base(base, parse_dtype(self.dtype)).to(self.device)
