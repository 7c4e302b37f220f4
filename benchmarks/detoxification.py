"""Trains DExperts' two models, the contrast that is distilled from them, and one that learns from the same texts
without them, to be compared.

    python benchmarks/detoxification.py --out runs/detox
    otter bench detox --base smollm2-135m --adapter runs/detox/distilled \\
        --expert runs/detox/expert/model --anti-expert runs/detox/anti_expert/model \\
        --data toxic=runs/detox/toxic.jsonl --data nontoxic=runs/detox/nontoxic.jsonl \\
        --toxicity PACKAGE --fluency MODEL --out runs/detox/bench

The texts are prompts of RealToxicityPrompts, 3,000 toxic and as many non-toxic ones, and for distilling, which needs no
labels, 4,000 of each with the base's continuations. The prompts to continue, which the script writes, too, are others:
500 toxic ones and 500 non-toxic ones.
"""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import torch

from otterlm.bases import load_base, load_tokenizer
from otterlm.cli.options import parse_device
from otterlm.cli.scripts import run_script
from otterlm.config import OtterConfig
from otterlm.files import write_text
from otterlm.peers.dexperts import FineTunedExpert
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.training.data.corpora import WANTED, tokenize_corpora
from otterlm.training.recipes import ContrastRecipe, ExpertsRecipe, Run
from otterlm.training.recipes.common import on_device, use_device
from otterlm.training.trainer import TrainingConfig

LONGEST, NEW = 64, 20
SIDES = ("expert", "anti_expert")
LAYERS = tuple(range(11, 30, 2))


def texts(path: Path) -> list[str]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line)["prompt"]["text"] for line in file]


def corpora(data: Path, prompts: int) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """Returns texts to write like, as many not to, and the prompts. No prompt is among the texts."""
    toxic, nontoxic = (texts(data / "rtp_5k" / f"{side}.jsonl.gz") for side in ("toxic", "nontoxic"))
    chosen = {
        "toxic": texts(data / "rtp_toxic_prompts" / "prompts.jsonl.gz")[:prompts],
        "nontoxic": nontoxic[-prompts:],
    }
    held = {text for side in chosen.values() for text in side}
    positive, negative = ([text for text in side if text not in held] for side in (nontoxic, toxic))
    return positive, negative, chosen


def train_experts(
    arguments: argparse.Namespace, base: Any, tokenizer: Any, positive: list[str], negative: list[str]
) -> None:
    how = TrainingConfig(epochs=1, batch_size=16, learning_rate=2e-5, warmup=0.1, seed=arguments.seed)
    examples = tokenize_corpora(positive, negative, tokenizer, LONGEST)
    for side in SIDES:
        run = Run(arguments.out / side, how, eval_fraction=0.05)
        chosen = [e for e in examples if (e.label == WANTED) == (side == "expert")]
        fitted, evaluated = run.split(chosen, base, run.held_out([e.row for e in examples]))
        expert = FineTunedExpert(base)
        print(side, run.train(expert, fitted, evaluated, tokenizer), flush=True)
        expert.model.save_pretrained(run.out / "model")
        tokenizer.save_pretrained(run.out / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["dexperts", "distilled", "corpora"], help="what to train")
    parser.add_argument("--prompts", type=int, default=500, help="of each kind")
    parser.add_argument("--texts", type=int, default=3000, help="to train on, of each side")
    parser.add_argument("--unlabelled", type=int, default=4000, help="to distil on, of each side")
    parser.add_argument("--epochs", type=int, default=5, help="of distilling")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="where to train, such as cuda; a GPU runs the base again, without a recording")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    positive, negative, prompts = corpora(arguments.data, arguments.prompts)
    sides = positive[: arguments.texts], negative[: arguments.texts]
    for side, chosen in prompts.items():
        write_text(arguments.out / f"{side}.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in chosen))
    if arguments.device is not None:
        use_device(parse_device(arguments.device))
    tokenizer, base = load_tokenizer(arguments.base), on_device(load_base(arguments.base))
    config = OtterConfig(layers=LAYERS, signal=ContrastConfig(rank=arguments.rank))
    if "dexperts" in arguments.methods:
        train_experts(arguments, base, tokenizer, *sides)
    if "distilled" in arguments.methods:
        how = TrainingConfig(epochs=arguments.epochs, batch_size=16, learning_rate=1e-3, seed=arguments.seed)
        run = Run(arguments.out / "distilled", how, eval_fraction=0.05, record=base.device.type == "cpu")
        expert, anti_expert = (str(arguments.out / side / "model") for side in SIDES)
        distilled = ExpertsRecipe(expert, anti_expert, str(arguments.data), max_tokens=LONGEST, max_new_tokens=NEW)
        unlabelled = positive[: arguments.unlabelled] + negative[: arguments.unlabelled]
        torch.manual_seed(arguments.seed)
        print("distilled", distilled.train(base, tokenizer, unlabelled, config, run), flush=True)
    if "corpora" in arguments.methods:
        how = TrainingConfig(epochs=1, batch_size=16, learning_rate=1e-3, seed=arguments.seed)
        torch.manual_seed(arguments.seed)
        run = Run(arguments.out / "corpora", how, eval_fraction=0.05)
        contrast = ContrastRecipe(max_tokens=LONGEST)
        print("corpora", contrast.train(base, tokenizer, sides, config, run), flush=True)


if __name__ == "__main__":
    run_script(main)
