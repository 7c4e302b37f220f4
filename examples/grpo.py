"""Trains a policy by GRPO with a trained Otter reward, in TRL (pip install trl).

    python examples/grpo.py --policy smollm2-135m --base smollm2-135m --adapter adapters/smollm2-135m-harmless \\
        --prompts prompts.jsonl --out runs/grpo

The reward reads completions with its own frozen base. The policy is another copy, which TRL trains.
"""

import argparse
from pathlib import Path
from typing import Any

from otterlm.bases import load_base, load_tokenizer
from otterlm.model import OtterModel
from otterlm.training.data.prompts import read_prompts
from otterlm.training.reward_function import RewardFunction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True, help="the model that is trained")
    parser.add_argument("--base", required=True, help="the base of the adapter")
    parser.add_argument("--adapter", required=True, help="a trained reward")
    parser.add_argument("--prompts", required=True, help="a file, a folder or a dataset of the hub")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    train(arguments.policy, arguments.base, arguments.adapter, arguments.prompts, arguments.out)


def train(policy: str, base: str, adapter: str, prompts: str, out: Path, **settings: Any) -> Any:
    """Trains the policy and saves it into `out`. `settings` are more of TRL's `GRPOConfig`."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    otter = OtterModel.from_pretrained(load_base(base), adapter)
    turns = [[{"role": role, "content": content} for role, content in prompt] for prompt in read_prompts(prompts)]
    trainer = GRPOTrainer(
        model=load_base(policy).requires_grad_(True),
        processing_class=load_tokenizer(policy),
        reward_funcs=RewardFunction(otter, load_tokenizer(base)),
        args=GRPOConfig(output_dir=str(out), **settings),
        train_dataset=Dataset.from_list([{"prompt": each} for each in turns]),
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
