"""Prepares a guard of SmolLM2 and its rivals: splits the data, and trains the separate classifier to compare with.

    python benchmarks/guard.py prepare --data ../shared/data --out runs/guard
    otter train guard --base smollm2-135m --data runs/guard/train.jsonl --eval-data runs/guard/valid.jsonl \\
        --out runs/guard/adapter --layers 11-29:2 --max-response-tokens 160
    python benchmarks/guard.py finetune --data runs/guard --out runs/guard/classifier --max-response-tokens 160
    otter bench guard --base smollm2-135m --adapter runs/guard/adapter --train runs/guard/train.jsonl \\
        --data jigsaw=runs/guard/test-jigsaw.jsonl --classifier runs/guard/classifier/model --max-response-tokens 160

    PYTHONPATH=benchmarks otter distill guard --base smollm2-135m --scorer guard:toxicity \\
        --prompts runs/guard/prompts.jsonl --limit 100 --per-prompt 2 --max-new-tokens 48 --label toxic \\
        --rollouts 4 --prefixes 3 --layers 11-29:2 --out runs/guard/distilled

`prepare` writes `train.jsonl` and `valid.jsonl`, and `test-*.jsonl`, which nothing learns from. `finetune` trains a
copy of the base on the same rows and at the same prefixes as the guard; an interrupted run is gone on with.
`toxicity` is a scorer that needs no network; it reads the folder that DATA names.
"""

import argparse
import csv
import functools
import gzip
import io
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from otterlm.bases import load_base, load_tokenizer
from otterlm.cli.options import parse_device
from otterlm.cli.scripts import run_script
from otterlm.files import write_text
from otterlm.peers.classifier import SeparateClassifier, offence_targets
from otterlm.signals.guard.config import GuardConfig
from otterlm.training.data.label_sets import label_set
from otterlm.training.data.labelled import read_labelled_rows
from otterlm.training.data.labelled_tokens import tokenize_labelled
from otterlm.training.data.targets import targets_of
from otterlm.training.data.tokens import Limits
from otterlm.training.recipes.common import on_device, use_device
from otterlm.training.teachers.reward_model import SeparateRewardModel
from otterlm.training.trainer import TrainingConfig, train

Record = dict[str, Any]
TEST, VALID = 1000, 1200
TOXIC = 0.5
"""From this score of Perspective on a text counts as toxic, as in RealToxicityPrompts (arXiv 2009.11462)."""


def lines(path: Path) -> list[Record]:
    """Reads the records of a packed file of JSON lines."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def label(toxic: bool) -> str:
    """Returns the name that all sets share."""
    return "toxic" if toxic else "safe"


def jigsaw(data: Path) -> list[Record]:
    """Comments of Wikipedia's editors; 0 is toxic there."""
    rows = lines(data / "jigsaw_10k" / "jigsaw_10k.json.gz")
    return [{"text": row["text"], "label": label(row["label"] == 0)} for row in rows]


def toxic_spans(data: Path) -> list[Record]:
    """Reads comments with the passages that make them toxic (SemEval-2021 Task 5)."""
    return lines(data / "toxic_spans" / "train.jsonl.gz")


def tweets(data: Path) -> list[Record]:
    """Tweets: hate and offensive ones are toxic."""
    with gzip.open(data / "tweets_offensive" / "labeled_data.csv.gz", "rb") as file:
        table = csv.DictReader(io.StringIO(file.read().decode()))
        return [{"text": row["tweet"], "label": label(row["class"] != "2")} for row in table]


def prompts(data: Path) -> list[Record]:
    """Reads beginnings of sentences with Perspective's scores."""
    rows = [row for side in ("toxic", "nontoxic") for row in lines(data / "rtp_5k" / f"{side}.jsonl.gz")]
    texts = [row["prompt"] for row in rows if row["prompt"]["toxicity"] is not None]
    return [{"text": text["text"], "label": label(text["toxicity"] >= TOXIC)} for text in texts]


def answers(data: Path) -> list[Record]:
    """Answers to harmful requests: people preferred one of two."""
    rows = lines(data / "hh_harmless" / "pairs.jsonl.gz")
    return [{"text": row[side], "label": label(side == "rejected")} for row in rows for side in ("chosen", "rejected")]


def toxicity(responses: Sequence[str]) -> list[float]:
    """Returns the probability that each text is toxic, by words and pairs of words."""
    return [float(row[1]) for row in _bag_of_words().predict_proba(responses)]


@functools.cache
def _bag_of_words() -> Any:
    """Fits a logistic regression to the comments of jigsaw that are not kept for testing."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rows = jigsaw(Path(os.environ.get("DATA", "../shared/data")))
    random.Random(0).shuffle(rows)
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    model = make_pipeline(words, LogisticRegression(C=10.0))
    return model.fit([row["text"] for row in rows[TEST:]], [row["label"] == "toxic" for row in rows[TEST:]])


SETS = {
    "jigsaw": jigsaw,
    "toxic_spans": toxic_spans,
    "tweets": tweets,
    "prompts": prompts,
    "answers": answers,
}
TESTED = ("jigsaw", "toxic_spans")
"""The sets of which a part is kept for testing."""


def prepare(arguments: argparse.Namespace) -> None:
    """Splits the sets, by the seed, and writes them."""
    train: list[Record] = []
    valid: list[Record] = []
    for entry in arguments.sets:
        name, _, limit = entry.partition(":")
        if name not in SETS:
            raise SystemExit(f"No set is named {name}; there are {', '.join(SETS)}.")
        if limit and not limit.isdecimal():
            raise SystemExit(f"--sets must be SET or SET:ROWS with a whole number of rows, got {entry}")
        rows = SETS[name](arguments.data)
        random.Random(arguments.seed).shuffle(rows)
        if name in TESTED:
            write(arguments.out / f"test-{name}.jsonl", rows[:TEST])
            rows = rows[TEST:]
        rows = rows[: int(limit)] if limit else rows
        held = round(len(rows) * arguments.valid)
        valid += rows[:held]
        train += rows[held:]
        print(f"{name}: {len(rows) - held} rows to train on, {held} to evaluate on")
    write(arguments.out / "train.jsonl", train)
    write(arguments.out / "valid.jsonl", valid)
    toxic = lines(arguments.data / "rtp_toxic_prompts" / "prompts.jsonl.gz")
    write(arguments.out / "prompts.jsonl", [{"prompt": row["prompt"]["text"]} for row in toxic])
    for name in ("openai_moderation", "xstest"):
        write(arguments.out / f"test-{name}.jsonl", lines(arguments.data / name / "dev.jsonl.gz"))


def finetune(arguments: argparse.Namespace) -> None:
    """Trains the separate classifier and saves it with its metrics."""
    if arguments.device is not None:
        use_device(parse_device(arguments.device))
    tokenizer, base = load_tokenizer(arguments.base), on_device(load_base(arguments.base))
    files = [read_labelled_rows(arguments.data / f"{name}.jsonl") for name in ("train", "valid")]
    rows = [row for file in files for row in file]
    signal = GuardConfig(**label_set(rows))
    labelled = tokenize_labelled(rows, tokenizer, Limits(response=arguments.max_response_tokens))
    targets = offence_targets(targets_of(labelled, signal), signal)
    examples = [each.example for each in labelled]
    torch.manual_seed(arguments.seed)
    model = SeparateRewardModel.of(base)
    config = TrainingConfig(epochs=arguments.epochs, batch_size=16, learning_rate=2e-5, warmup=0.1, seed=arguments.seed)
    objective = SeparateClassifier(model, targets)
    pad = tokenizer.pad_token_id or 0
    metrics = train(objective, examples[: len(files[0])], examples[len(files[0]) :], config, arguments.out, pad)
    model.save_pretrained(arguments.out / "model")
    tokenizer.save_pretrained(arguments.out / "model")
    write_text(arguments.out / "result.json", json.dumps(metrics, indent=2) + "\n")


def write(path: Path, rows: list[Record]) -> None:
    """Writes JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def parser() -> argparse.ArgumentParser:
    """Makes the parser of the command."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = made.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("prepare", help="split the data")
    verb.add_argument("--data", type=Path, required=True, help="folder with the sets")
    verb.add_argument("--out", type=Path, required=True)
    verb.add_argument(
        "--sets",
        nargs="+",
        metavar="SET[:ROWS]",
        default=["jigsaw:7000", "toxic_spans:7000", "tweets:1500", "prompts:2000"],
        help=f"sets to learn from, each with the most rows to take: {', '.join(SETS)}",
    )
    verb.add_argument("--valid", type=float, default=0.08, help="part of the rest to evaluate on")
    verb.add_argument("--seed", type=int, default=0)
    verb.set_defaults(run=prepare)
    verb = verbs.add_parser("finetune", help="train the separate classifier")
    verb.add_argument("--base", default="smollm2-135m")
    verb.add_argument("--data", type=Path, required=True, help="folder that prepare wrote")
    verb.add_argument("--out", type=Path, required=True)
    verb.add_argument("--epochs", type=int, default=1)
    verb.add_argument("--max-response-tokens", type=int, default=256)
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--device", help="where to train, such as cuda")
    verb.set_defaults(run=finetune)
    return made


def main() -> None:
    arguments = parser().parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    run_script(main)
