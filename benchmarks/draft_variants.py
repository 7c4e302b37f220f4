"""Trains designs of drafts on the same text, and one design on more and more text, to be compared.

    python benchmarks/draft_variants.py --text runs/draft-text --out runs/variants --tokens 60000 --record
    python benchmarks/draft_variants.py --text runs/draft-text --out runs/curve --variants heads \\
        --tokens 100000 300000 1000000 all --epochs 1 --device cuda --batch-size 32 --learning-rate 2e-3
    otter bench speed --base smollm2-135m --adapter runs/curve/heads-1000000 \\
        --data ../shared/data/spec_bench/question.jsonl --limit 39

The text is what `benchmarks/draft_text.py` makes; its last rows are held out, the same for all runs. Every run prints
its seconds, how often each head's first guess is right, and the tokens a pass that four right guesses in a row would
give; losses of designs that learn different things cannot be compared. Of one design with three or more numbers of
tokens it prints the fitted curve a - b / tokens^c, and what it says of 30 million. A run that is done is not trained
again, one that was killed goes on. With `--start` a trained adapter learns on from more text, and keeps its design.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model

from otterlm.bases import load_base, load_tokenizer
from otterlm.cli.options import parse_device
from otterlm.cli.scripts import run_script
from otterlm.config import OtterConfig
from otterlm.files import write_text
from otterlm.model import OtterModel
from otterlm.peers.medusa import MedusaHeads, MedusaObjective
from otterlm.signals.draft.config import DraftConfig
from otterlm.signals.draft.objective import DraftObjective, DraftTrainingConfig
from otterlm.training.data.continuations import continuation_examples, read_continuations
from otterlm.training.data.packing import Example
from otterlm.training.data.tokens import Limits
from otterlm.training.recipes.common import Run, on_device, use_device
from otterlm.training.recipes.draft import choose_vocabulary, save_draft
from otterlm.training.sources import LiveBase, RecordedBase
from otterlm.training.trainer import TrainingConfig, train

ALL = 49152
VARIANTS: dict[str, dict[str, Any]] = {
    "heads": {},  # the default: sequential heads
    "independent": {"sequential": False},
    "shared": {"shared": True},  # one head, fed with its own code and guess
    "distribution": {"distribution": 0.5},  # the base's distribution beside its choice
    "distribution alone": {"distribution": 1.0},
    "shared, distribution": {"shared": True, "distribution": 0.5},
    "wider heads": {"width": 1024},
    "wider stream": {"hidden_size": 128, "intermediate_size": 256},
    "wider": {"width": 896, "hidden_size": 128, "intermediate_size": 256},
    "wider, distribution": {"width": 896, "hidden_size": 128, "intermediate_size": 256, "distribution": 0.5},
    "all tokens": {"vocabulary_size": ALL},
}
MEDUSA = "medusa"
AHEAD = 30_000_000


def design(name: str, layers: tuple[int, ...]) -> tuple[OtterConfig, DraftTrainingConfig]:
    """Returns a variant's adapter and what it learns."""
    settings = dict(VARIANTS[name])
    learning = DraftTrainingConfig(settings.pop("distribution", 0.0))
    stream = {key: settings.pop(key) for key in ("hidden_size", "intermediate_size") if key in settings}
    return OtterConfig(layers=layers, signal=DraftConfig(**settings), **stream), learning


def first(examples: Sequence[Example], tokens: int | None) -> list[Example]:
    """Returns the first examples that have so many tokens of responses; None: all.

    Raises:
        SystemExit: there are fewer.
    """
    if tokens is None:
        return list(examples)
    count = 0
    chosen: list[Example] = []
    for example in examples:
        if count >= tokens:
            return chosen
        chosen.append(example)
        count += len(example.branches[0])
    if count < tokens:
        raise SystemExit(f"the text has {count} tokens to train on, {tokens} are wanted")
    return chosen


def chain(metrics: dict[str, float], heads: int = 4) -> float:
    """Returns the tokens a pass of a chain of drafts, each verified after those before it, by the heads' accuracy."""
    shares = [metrics[f"accuracy_{head}_0"] for head in range(heads)]
    return 1 + sum(math.prod(shares[: head + 1]) for head in range(heads))


def fit(tokens: Sequence[float], lengths: Sequence[float]) -> tuple[float, float, float]:
    """Fits lengths by a - b / tokens^c: least squares of a and b, for the best of many c. Returns a, b and c."""
    best: tuple[float, tuple[float, float, float]] = (math.inf, (0.0, 0.0, 0.0))
    target = torch.tensor(lengths, dtype=torch.double)
    for step in range(5, 101):
        c = step / 100
        x = torch.stack((torch.ones_like(target), -(torch.tensor(tokens, dtype=torch.double) ** -c)), dim=1)
        solution = torch.linalg.lstsq(x, target[:, None]).solution[:, 0]
        error = float(((x @ solution - target) ** 2).sum())
        if error < best[0]:
            best = error, (float(solution[0]), float(solution[1]), c)
    return best[1]


def run(
    name: str,
    out: Path,
    examples: list[Example],
    held: list[Example],
    base: Any,
    tokenizer: Any,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Trains one variant, saves it, and returns the row of the report."""
    tokens = sum(len(example.branches[0]) for example in examples)
    result = out / "result.json"
    if result.exists():
        saved: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return saved
    how = TrainingConfig(
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        evaluations_per_epoch=1,
        checkpoint_every=arguments.checkpoint_every,
        mixed_precision=arguments.mixed_precision,
        patience=100,
    )
    config, learning = design("heads" if name == MEDUSA else name, arguments.layers)
    torch.manual_seed(0)
    model = OtterModel(base, config) if arguments.start is None else OtterModel.from_pretrained(base, arguments.start)
    model.train()
    source: Any = LiveBase(model)
    if arguments.record:  # of all that any run reads, once for all designs that widen the same blocks
        source = RecordedBase(model, [*arguments.recorded, *held], arguments.out / "recording")
    started = time.perf_counter()
    if name == MEDUSA:
        heads = MedusaHeads(base)
        metrics = train(MedusaObjective(model, source, heads), examples, held, how, out)
        save_model(heads, str(out / "heads.safetensors"))
        write_text(out / "metrics.json", json.dumps(metrics))
        extra = sum(parameter.numel() for parameter in heads.parameters())
    else:
        if arguments.start is None:
            choose_vocabulary(model, examples)
        objective = DraftObjective(model, source, learning)
        metrics = train(objective, examples, held, how, out, tokenizer.pad_token_id or 0)
        save_draft(model, Run(out, how), "ready continuations", (examples, held), metrics, {})
        extra = model.adapter().extra_parameters(base.config.vocab_size)
    row = {"variant": name, "tokens": tokens, "epochs": arguments.epochs, "parameters": extra}
    row |= {"seconds": round(time.perf_counter() - started), "loss": round(metrics["loss"], 4)}
    row |= {f"head_{head + 1}": round(metrics[f"accuracy_{head}_0"], 4) for head in range(4)}
    row |= {"tokens_a_pass": round(chain(metrics), 4)}
    write_text(result, json.dumps(row))
    return row


def token_count(text: str) -> int | None:
    return None if text == "all" else int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--text", required=True, help="what benchmarks/draft_text.py made: a folder or a file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", default=["heads", "shared", "distribution"], help=", ".join(VARIANTS))
    parser.add_argument("--tokens", type=token_count, nargs="+", required=True, help="of responses to train on; or all")
    parser.add_argument("--held", type=int, default=400, help="rows held out, the last ones")
    parser.add_argument("--layers", type=int, nargs="+", default=list(range(11, 30, 2)))
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--checkpoint-every", type=int, default=50, help="steps")
    parser.add_argument("--mixed-precision", choices=["auto", "bf16", "no"], default="auto", help="as of otter train")
    parser.add_argument("--start", help="adapter that learns on, with its design, in place of a new one")
    parser.add_argument("--device", help="where to train, such as cuda; else accelerate chooses")
    parser.add_argument("--record", action="store_true", help="store the base's numbers; 66 KB a token of ten layers")
    parser.add_argument("--recorded", type=int, help="tokens that the recording holds; by default the most of --tokens")
    arguments = parser.parse_args()
    if arguments.device is not None:
        use_device(parse_device(arguments.device))
    unknown = set(arguments.variants) - {*VARIANTS, MEDUSA}
    if unknown:
        parser.error(f"unknown variants {', '.join(sorted(unknown))}; there are: {', '.join([*VARIANTS, MEDUSA])}")
    arguments.layers = tuple(arguments.layers)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer, base = load_tokenizer(arguments.base), on_device(load_base(arguments.base))
    examples = list(continuation_examples(read_continuations(arguments.text), tokenizer, Limits(512, 512)))
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    examples = [examples[index] for index in order]
    fitted, held = examples[: -arguments.held], examples[-arguments.held :]
    most = None if None in arguments.tokens else max(arguments.tokens)
    arguments.recorded = first(fitted, arguments.recorded or most)
    for name in arguments.variants:
        rows = []
        for wanted in arguments.tokens:
            out = arguments.out / f"{name.replace(', ', '-').replace(' ', '-')}-{wanted or 'all'}"
            rows.append(run(name, out, first(fitted, wanted), held, base, tokenizer, arguments))
            print(json.dumps(rows[-1]), flush=True)
        if len(rows) > 2:
            a, b, c = fit([row["tokens"] for row in rows], [row["tokens_a_pass"] for row in rows])
            curve = {"a": round(a, 4), "b": round(b, 4), "c": c, "at_30_million": round(a - b * AHEAD**-c, 3)}
            print(json.dumps({"variant": name, "curve": curve}), flush=True)


if __name__ == "__main__":
    run_script(main)
