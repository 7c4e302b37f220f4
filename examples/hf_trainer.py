"""Trains a reward adapter of preference pairs with Transformers' `Trainer`.

    python examples/hf_trainer.py --base smollm2-135m --data pairs.jsonl --out runs/trainer

Every checkpoint in OUT holds an adapter folder, and so does OUT at the end. The same command goes on from the latest
checkpoint.
"""

import argparse
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from otterlm.bases import load_base, load_tokenizer
from otterlm.config import OtterConfig
from otterlm.model import OtterModel
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig
from otterlm.training.adapter_trainer import AdapterTrainer
from otterlm.training.data.encoding import stored_tokens
from otterlm.training.data.rows import hold_out, iterate_rows
from otterlm.training.data.stored_examples import select
from otterlm.training.data.stored_items import StoredItems
from otterlm.training.data.tokens import Limits
from otterlm.training.sources import LiveBase


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--data", required=True, help="pairs: a file, a folder or a dataset of the hub")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=-1, help="at most; by default one pass over the data")
    arguments = parser.parse_args()
    train(arguments.base, arguments.data, arguments.out, arguments.steps)


def train(base: str, data: str, out: Path, steps: int = -1, config: OtterConfig = OtterConfig()) -> AdapterTrainer:
    """Trains the adapter and saves it into `out`."""
    rows, tokenizer = StoredItems(iterate_rows(data)), load_tokenizer(base)
    examples, held = stored_tokens(rows, tokenizer, Limits()), hold_out(rows, 0.1, seed=0)
    # The vocabulary head is trained with the rest (`candidates=0`): the recipe's fit after training is not Trainer's.
    model = OtterModel(load_base(base), config).train()
    trainer = AdapterTrainer(
        RewardObjective(model, LiveBase(model), RewardTrainingConfig(candidates=0)),
        TrainingArguments(
            str(out),
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            max_steps=steps,
            eval_strategy="epoch",
            save_steps=50,
            logging_steps=10,
            report_to=[],
        ),
        train_dataset=select(examples, lambda row: row not in held),
        eval_dataset=select(examples, held.__contains__),
        pad_token_id=tokenizer.pad_token_id or 0,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(out)) if out.is_dir() else None)
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    main()
