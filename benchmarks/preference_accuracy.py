"""Preference accuracy on held-out pairs: Otter, a linear probe, and a separate, fully fine-tuned reward model."""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from otterlm.peers.reward_model import SeparateRewardModel
from otterlm.training.packing import Limits, tokenize
from otterlm.training.rows import read_rows, split_rows
from otterlm.training.trainer import TrainingConfig, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    base = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=torch.float32)
    rest, held_out = (
        tokenize(rows, tokenizer, Limits(prompt=96, response=64))
        for rows in split_rows(read_rows(arguments.data), 0.2, arguments.seed)
    )
    config = TrainingConfig(
        epochs=1, batch_size=8, learning_rate=2e-5, evaluations_per_epoch=1, warmup=0.1, seed=arguments.seed
    )
    out = arguments.out / f"finetune-{arguments.seed}"
    metrics = train(SeparateRewardModel(base), rest, held_out, config, out)
    print(json.dumps(metrics))


if __name__ == "__main__":
    main()
