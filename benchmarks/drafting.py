"""Trains Otter's draft and Medusa heads of the original form on the same continuations, to be compared.

    python benchmarks/drafting.py --out runs/draft
    otter bench speed --base smollm2-135m --adapter runs/draft/otter --medusa runs/draft/medusa \\
        --data ../shared/data/spec_bench/question.jsonl --limit 39 --out runs/speed

The continuations are the base's greedy ones of prompts of hh-rlhf and GSM8K; Spec-Bench is held out.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model

from otterlm.bases import load_base, load_tokenizer
from otterlm.cli.scripts import run_script
from otterlm.config import OtterConfig
from otterlm.model import OtterModel
from otterlm.peers.medusa import MedusaHeads, MedusaObjective
from otterlm.signals.draft.config import DraftConfig
from otterlm.training.data.prompts import read_prompts
from otterlm.training.recipes import DraftRecipe, Run
from otterlm.training.sources import RecordedBase
from otterlm.training.teachers.continuations import continue_prompts
from otterlm.training.trainer import TrainingConfig, train

LAYERS = tuple(range(11, 30, 2))
PROMPT, NEW = 128, 96


def training_prompts(data: Path, limit: int | None) -> list[Any]:
    """Returns prompts of three kinds, shuffled together."""
    kinds = [
        read_prompts(data / "hh_helpful" / "pairs.jsonl.gz"),
        read_prompts(data / "hh_harmless" / "pairs.jsonl.gz"),
        read_prompts(data / "gsm8k_solutions" / "example_model_solutions.jsonl.gz"),
    ]
    together = list(dict.fromkeys(prompt for kind in kinds for prompt in kind))
    order = torch.randperm(len(together), generator=torch.Generator().manual_seed(0)).tolist()
    return [together[index] for index in order[:limit]]


def adapter_config(arguments: argparse.Namespace) -> OtterConfig:
    return OtterConfig(layers=LAYERS, signal=DraftConfig(sequential=not arguments.independent))


def train_otter(arguments: argparse.Namespace, base: Any, tokenizer: Any, prompts: list[Any]) -> None:
    how = TrainingConfig(epochs=arguments.epochs, batch_size=16, learning_rate=1e-3, evaluations_per_epoch=2)
    torch.manual_seed(0)
    run = Run(arguments.out / arguments.label, how, eval_fraction=0.05, record=arguments.record)
    # All methods share the continuations.
    run.out.mkdir(parents=True, exist_ok=True)
    shared, link = arguments.out / "continuations.jsonl", run.out / "continuations.jsonl"
    if shared.exists() and not link.exists():
        link.symlink_to(shared.resolve())
    recipe = DraftRecipe(str(arguments.data), max_prompt_tokens=PROMPT, max_new_tokens=NEW)
    print(arguments.label, recipe.train(base, tokenizer, prompts, adapter_config(arguments), run), flush=True)


def train_medusa(arguments: argparse.Namespace, base: Any, tokenizer: Any, prompts: list[Any]) -> None:
    examples = continue_prompts(base, tokenizer, prompts, arguments.out / "continuations.jsonl", PROMPT, NEW)
    how = TrainingConfig(epochs=arguments.epochs, batch_size=16, learning_rate=1e-3, evaluations_per_epoch=2)
    fitted, held = Run(arguments.out, how, eval_fraction=0.05).split(examples, base)
    # The recording of the base that the adapter was trained on holds all that Medusa reads, and more.
    model, heads = OtterModel(base, adapter_config(arguments)), MedusaHeads(base)
    source = RecordedBase(model, examples, arguments.out / arguments.label / "recording")
    metrics = train(MedusaObjective(model, source, heads), fitted, held, how, arguments.out / "medusa")
    save_model(heads, str(arguments.out / "medusa" / "heads.safetensors"))
    (arguments.out / "medusa" / "metrics.json").write_text(json.dumps(metrics))
    print("medusa", metrics, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", nargs="+", default=["continue", "train"])
    parser.add_argument("--methods", nargs="+", default=["otter", "medusa"], help="what to train")
    parser.add_argument("--label", default="otter", help="folder of the adapter to train, in OUT")
    parser.add_argument("--independent", action="store_true", help="train heads that do not see the drafts before")
    parser.add_argument("--prompts", type=int, default=1000, help="to train on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer, base = load_tokenizer(arguments.base), load_base(arguments.base)
    prompts = training_prompts(arguments.data, arguments.prompts)
    if "continue" in arguments.steps:
        continue_prompts(base, tokenizer, prompts, arguments.out / "continuations.jsonl", PROMPT, NEW)
    if "train" in arguments.steps:
        for method in arguments.methods:
            {"otter": train_otter, "medusa": train_medusa}[method](arguments, base, tokenizer, prompts)


if __name__ == "__main__":
    run_script(main)
