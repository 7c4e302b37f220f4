"""Measures what each part of a reward's second stage is worth: one adapter a variant, all from the same responses.

    python benchmarks/steering_parts.py --questions QUESTIONS --first ADAPTER --out runs/parts

The base answers prompts, and one teacher rates the responses whole: the final reward of the shipped adapter, which is
the measure of all variants, too. A variant learns the ratings at every prefix, as `otter distill reward` does, and its
vocabulary head is fitted last. `stage off` is a reward of pairs alone, with its head fitted to the same responses.

A row a variant is written to OUT, and a run that was stopped goes on where it was. QUESTIONS are prompts that nothing
was trained on. `--variants` names those to make; the table has all that are there. OUT holds a recording of the base
while it runs: some 70 KB a token.
"""

import argparse
import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

from steering_parts_fit import Fitter
from steering_parts_measure import Measure
from steering_parts_table import print_table, row_path

from otterlm.adapter_files import WEIGHTS
from otterlm.cli.scripts import run_script
from otterlm.identity import identity, of_data
from otterlm.resumable import run_resumable


@dataclass(frozen=True, slots=True)
class Variant:
    """A variant has one part of the second stage changed.

    Attributes:
        stage: whether there is a second stage.
        width: d' of the adapter, over --hidden-size.
        rank: of the vocabulary head.
        trace: lambda of TD(lambda); 1 is regression.
        candidates: the base's likeliest next tokens that the vocabulary head is fitted to, a position; 0: it learns the
            tokens that follow, beside the values.
        share: of the prompts that are answered.
        rollouts: the base goes on behind each candidate, and the vocabulary head is fitted to what stands at the end of
            that: the stream's own `value`, or the teacher's `rating`. Empty: to the value of the candidate itself.
    """

    stage: bool = True
    width: int = 1
    rank: int = 32
    trace: float = 1.0
    candidates: int = 6
    share: float = 1.0
    rollouts: str = ""


VARIANTS = {
    "regression": Variant(),
    "stage off": Variant(stage=False),
    "TD 0.9": Variant(trace=0.9),
    "TD 0.7": Variant(trace=0.7),
    "no candidates": Variant(candidates=0),
    "rollouts, value": Variant(rollouts="value"),
    "rollouts, rating": Variant(rollouts="rating"),
    "rank 16": Variant(rank=16),
    "rank 64": Variant(rank=64),
    "rank 128": Variant(rank=128),
    "twice d'": Variant(width=2),
    "half the prompts": Variant(share=0.5),
    "a quarter of them": Variant(share=0.25),
}
"""Each is compared with the first."""


def parser() -> argparse.ArgumentParser:
    """Makes the reader of the command's options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--base", default="smollm2-135m")
    options.add_argument("--dtype", default="float32", help="of the base in training")
    options.add_argument("--mixed-precision", default="no", help="of training: bf16 or no")
    options.add_argument("--teacher", type=Path, default=Path("adapters/smollm2-135m-harmless"))
    options.add_argument("--first", type=Path, help="a reward of pairs alone, for `stage off`")
    options.add_argument("--data", default="../shared/data/hh_harmless/pairs.jsonl.gz", help="dialogues")
    options.add_argument(
        "--rollouts",
        type=Path,
        help="responses sampled elsewhere, such as by an engine, instead of --data: "
        "JSON lines with the prompt's `tokens`, and `responses`",
    )
    options.add_argument("--questions", required=True, help="prompts to answer with guidance")
    options.add_argument("--guided", type=int, default=40, help="of them, the first")
    options.add_argument("--prompts", type=int, default=120, help="that the base answers, to learn from")
    options.add_argument("--test", type=int, default=40, help="further ones, to test on")
    options.add_argument("--new-tokens", type=int, default=48, help="of a response")
    options.add_argument("--hidden-size", type=int, default=64, help="d' of the adapter")
    options.add_argument("--layers", default="11-29:2", help="widened blocks")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    options.add_argument("--out", type=Path, required=True)
    return options


def digest(adapter: Path) -> str:
    """Returns a digest of a saved adapter's tensors."""
    with (adapter / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    if "stage off" in arguments.variants and arguments.first is None:
        parser().error("`stage off` needs --first")
    fitter = Fitter(arguments)
    measure = Measure(fitter)
    settings = ("base", "dtype", "mixed_precision", "prompts", "new_tokens", "hidden_size", "layers", "seed")
    this = identity(
        "parts of steering",
        teacher=digest(arguments.teacher),
        rated=of_data(fitter.rated),
        questions=of_data(fitter.encoded),
        **{name: getattr(arguments, name) for name in settings},
    )
    path = arguments.out / "base.jsonl"
    (base,) = run_resumable(["base"], lambda _: measure.base_answers(), path, this, "answering")
    for name in arguments.variants:
        variant = VARIANTS[name]
        depends = this | {"variant": asdict(variant)}
        if not variant.stage:
            depends |= {"first": digest(arguments.first)}
        path = row_path(arguments.out, name)
        run_resumable([variant], lambda each: measure.of(each, base), path, depends, name)
        print_table(arguments.out, list(VARIANTS), base)


if __name__ == "__main__":
    run_script(main)
