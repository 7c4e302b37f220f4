"""Plans the tasks of the paper at its own scale, runs them step by step, and writes their tables.

A plan is computed from the base's configuration alone, before anything is loaded. It counts matrix products for
training, and the bytes that decoding reads, for which a GPU is slower than its data sheet says: `TRAINS` and `DECODES`
are the shares that are reached in practice. Take it as right within a factor of two.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.bases import load_base, load_config, load_tokenizer, parse_dtype
from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.files import make_folder, write_text
from otterlm.identity import identity, of_data, of_tokenizer, of_weights, read_checked
from otterlm.plan import plan
from otterlm.signals.base import SignalConfig

TRAINS, DECODES = 0.35, 0.25
"""Shares of a GPU's peak that training and decoding with Transformers reach."""

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU by its data sheet: dense bf16 operations and bytes of memory read, a second; and its memory in bytes."""

    flops: float
    bandwidth: float
    memory: float


GPUS = {
    "a100-40gb": Gpu(312e12, 1.55e12, 40e9),
    "a100-80gb": Gpu(312e12, 2.04e12, 80e9),
    "h100-80gb": Gpu(989e12, 3.35e12, 80e9),
    "h200": Gpu(989e12, 4.8e12, 141e9),
}


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a step: the most bytes of the GPU's memory; operations; bytes read while decoding; bytes of disk."""

    memory: float = 0.0
    flops: float = 0.0
    read: float = 0.0
    disk: float = 0.0

    def seconds(self, gpu: Gpu) -> float:
        """Estimates the time on a GPU."""
        return self.flops / (TRAINS * gpu.flops) + self.read / (DECODES * gpu.bandwidth)

    def then(self, other: "Cost") -> "Cost":
        """Returns the cost of this and of another, one after the other."""
        most = max(self.memory, other.memory)
        return Cost(most, self.flops + other.flops, self.read + other.read, self.disk + other.disk)


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a base and of what is inserted; `unit` is the bytes of a number of the base."""

    base: int
    inserted: int
    kv: int
    width: int
    units: int
    depth: int
    widened: int
    vocabulary: int
    unit: int

    @classmethod
    def of(cls, name: str, config: OtterConfig, dtype: torch.dtype) -> "Sizes":
        """Reads them from the base's configuration."""
        whole = load_config(name)
        costs, inner = plan(whole, config, dtype), whole.get_text_config(decoder=True)
        units = getattr(inner, "intermediate_size", None) or 4 * inner.hidden_size
        return cls(
            base=costs.base_parameters,
            inserted=costs.inserted_parameters + costs.derived_parameters,
            kv=costs.base_kv_bytes_per_token or 0,
            width=inner.hidden_size,
            units=units,
            depth=inner.num_hidden_layers,
            widened=inner.num_hidden_layers if config.layers is None else len(config.layers),
            vocabulary=inner.vocab_size,
            unit=dtype.itemsize,
        )

    @property
    def weights(self) -> float:
        """Returns the bytes of the base."""
        return self.base * self.unit

    def fit_otter(self, tokens: float, at_once: int, epochs: int) -> Cost:
        """Training an adapter: `tokens` of data, `at_once` in a batch. The base runs in every epoch."""
        taps = 4 * self.widened * (3 * self.width + self.units)  # float32, beside each token
        memory = self.weights + 16 * self.inserted + at_once * taps
        return Cost(memory, epochs * tokens * (2 * self.base + 6 * self.inserted))

    def fit_lora(self, tokens: float, at_once: int, rank: int, logits: bool = False) -> Cost:
        """Training a copy by LoRA for one epoch, its blocks computed twice; `logits`: over the whole vocabulary."""
        lora = rank * self.depth * (8 * self.width + 3 * (self.width + self.units))
        states = self.unit * (self.depth * self.width + 8 * (self.width + self.units))
        states += 8 * self.vocabulary if logits else 0
        return Cost(self.weights + 16 * lora + at_once * states, 6 * tokens * self.base, disk=self.weights)

    def fit_heads(self, tokens: float, at_once: int, epochs: int, heads: int) -> Cost:
        """Training Medusa heads, each with an unembedding."""
        parameters = heads * self.width * (self.width + self.vocabulary)
        memory = self.weights + 16 * parameters + at_once * heads * 12 * self.vocabulary
        return Cost(memory, epochs * tokens * (2 * self.base + 6 * parameters), disk=4 * parameters)

    def decode(self, texts: int, new: int, batch: int, context: int, models: float = 1, passes: float = 1) -> Cost:
        """Generating `new` tokens for each of some texts; so many models are in memory, and read so often a token."""
        cache = self.kv * batch * (context + new)
        steps = -(-texts // batch) * new
        return Cost(models * (self.weights + cache), read=passes * steps * (self.weights + cache))


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a task has a name, says what it does and costs, and returns what JSON can hold."""

    name: str
    what: str
    cost: Cost
    run: Callable[[], Any]


def parser(description: str | None, base: str) -> argparse.ArgumentParser:
    """Makes a parser with the options that all tasks have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--base", default=base, help=f"hub id or folder; by default {base}")
    made.add_argument("--out", type=Path, required=True, help="folder of the task; a later call goes on there")
    made.add_argument("--plan", action="store_true", help="print the plan and end")
    made.add_argument("--gpu", choices=GPUS, default="a100-80gb", help="for the plan")
    made.add_argument("--price", type=float, default=2.0, help="of an hour of the GPU, for the plan")
    made.add_argument("--dtype", default="bfloat16", help="of the base")
    made.add_argument("--batch", type=int, default=16, help="examples a step of training")
    made.add_argument("--rank", type=int, default=16, help="of the rivals' LoRA")
    made.add_argument("--hidden-size", type=int, default=256, help="d', inserted hidden channels")
    made.add_argument("--heads", type=int, default=4, help="H', extra attention heads a block")
    made.add_argument("--intermediate-size", type=int, default=1024, help="f', extra FFN units a block")
    made.add_argument("--seed", type=int, default=0)
    return made


def adapter_shape(arguments: argparse.Namespace, signal: SignalConfig) -> OtterConfig:
    """Returns an adapter's shape: every second block of the upper two thirds, as of the shipped adapters."""
    depth = load_config(arguments.base).get_text_config(decoder=True).num_hidden_layers
    return OtterConfig(
        hidden_size=arguments.hidden_size,
        num_attention_heads=arguments.heads,
        intermediate_size=arguments.intermediate_size,
        layers=tuple(range(depth - 2 * (depth // 3) + 1, depth, 2)),
        signal=signal,
    )


def load(arguments: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads the base, in the main memory, and its tokenizer."""
    return load_base(arguments.base, parse_dtype(arguments.dtype)), load_tokenizer(arguments.base)


def device() -> str:
    """Returns where models run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def run(task: str, arguments: argparse.Namespace, steps: Sequence[Step]) -> dict[str, Any]:
    """Prints the plan, takes the steps that are not done yet, and returns what all of them gave, by name.

    Raises:
        OtterError: a step does not fit the GPU, or the folder belongs to a run with other settings.
    """
    show_plan(arguments, steps)
    if arguments.plan:
        raise SystemExit
    make_folder(arguments.out)
    left_out = ("out", "plan", "gpu", "price")
    settings: dict[str, Any] = {name: str(value) for name, value in vars(arguments).items() if name not in left_out}
    base, tokenizer = load(arguments)
    files = {name: Path(value) for name, value in settings.items() if Path(value).is_file()}
    settings |= {name: of_data([settings[name], path.read_bytes()]) for name, path in files.items()}
    settings |= {"base": of_weights(base), "tokenizer": of_tokenizer(tokenizer)}
    del base  # each step loads its own
    this, results = identity(task, **settings), {}
    for number, step in enumerate(steps, start=1):
        path = arguments.out / "steps" / f"{step.name}.json"
        if path.exists():
            results[step.name] = read_checked(path, this)["result"]
            continue
        print(f"[{number}/{len(steps)}] {step.name}: {step.what}", flush=True)
        started = time.monotonic()
        results[step.name] = step.run()
        gc.collect()  # models with hooks are in circles
        seconds = round(time.monotonic() - started)
        saved = {"identity": this, "seconds": seconds, "result": results[step.name]}
        write_text(path, json.dumps(saved, indent=2) + "\n")
        print(f"[{number}/{len(steps)}] {step.name}: done in {seconds} s", flush=True)
    return results


def show_plan(arguments: argparse.Namespace, steps: Sequence[Step]) -> None:
    """Prints what every step takes.

    Raises:
        OtterError: one does not fit the GPU.
    """
    gpu = GPUS[arguments.gpu]
    print(f"On one {arguments.gpu}, at {arguments.price:g} an hour; right within a factor of two.")
    print(f"{'step':12}  {'GPU memory':>10}  {'disk':>9}  {'hours':>6}  {'cost':>7}  what")
    total = Cost()
    for step in steps:
        total = total.then(step.cost)
        print(f"{step.name:12}  {_numbers(step.cost, gpu, arguments.price)}  {step.what}")
    print(f"{'all':12}  {_numbers(total, gpu, arguments.price)}", flush=True)
    for step in steps:
        if step.cost.memory > gpu.memory:
            raise OtterError(
                f"{step.name} takes about {step.cost.memory / GIB:.0f} GiB and a {arguments.gpu} has "
                f"{gpu.memory / GIB:.0f}: give a smaller --batch, or another --gpu"
            )


def _numbers(cost: Cost, gpu: Gpu, price: float) -> str:
    hours = cost.seconds(gpu) / 3600
    memory, disk = (f"{value / GIB:.1f} GiB" for value in (cost.memory, cost.disk))
    return f"{memory:>10}  {disk:>9}  {hours:6.2f}  {hours * price:7.2f}"


def write_table(out: Path, title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Writes rows as a table of Markdown, `OUT/table.md`, and prints it.

    Args:
        out: the task's folder.
        title: of the table.
        rows: by column.
        columns: headings by column; one that no row has is left out.
    """
    shown = [name for name in columns if any(row.get(name) is not None for row in rows)]
    lines = ["| " + " | ".join(columns[name] for name in shown) + " |", "|---" * len(shown) + "|"]
    lines += ["| " + " | ".join(_cell(row, name) for name in shown) + " |" for row in rows]
    text = f"# {title}\n\n" + "\n".join(lines) + "\n\nAfter ±: half of a 95% interval. In brackets: its ends.\n"
    write_text(out / "table.md", text)
    print(text)


def _cell(row: Mapping[str, Any], name: str) -> str:
    value, interval = row.get(name), row.get(f"{name}_ci95")
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
    if isinstance(interval, list):
        return f"{shown} ({interval[0]:.3f} to {interval[1]:.3f})"
    return shown if interval is None else f"{shown} ± {interval:.3f}"


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes JSON lines."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
