"""Trains what `otter bench alignment` compares, on pairs that do not overlap.

    python benchmarks/alignment.py --data ../shared/data/hh_harmless/pairs.jsonl.gz --out runs/alignment
    otter bench alignment --base smollm2-135m --adapter runs/alignment/distilled \\
        --reward-model runs/alignment/args/model --judge runs/alignment/judge/model \\
        --data runs/alignment/prompts.jsonl --weight 1 --weight 2 --out runs/alignment/bench

Of 1,800 pairs, 800 train the methods (Otter's adapter and the separate reward model of ARGS and CARDS), 800 others the
judge. The prompts of the last 200 are answered, and their pairs measure how good each of the three is. `distilled` is
an adapter that learned from no pairs but from the separate reward model's rewards of the base's responses to prompts of
the first 800. It is made after `args`.
"""

import argparse
import functools
import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from otterlm.bases import load_base, load_tokenizer
from otterlm.cli.scripts import run_script
from otterlm.config import OtterConfig
from otterlm.model import OtterModel
from otterlm.signals.reward.config import RewardConfig
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig
from otterlm.training.data.conversations import Prompt
from otterlm.training.data.packing import Example
from otterlm.training.data.rows import PairRow, read_rows
from otterlm.training.data.tokens import Limits, tokenize
from otterlm.training.recipes import Run
from otterlm.training.recipes.reward_fit import learn_reward, learn_to_steer, measure_spread, save_reward
from otterlm.training.sources import LiveBase
from otterlm.training.teachers.responses import Sampling, of_texts, scored_responses
from otterlm.training.teachers.reward_model import Preference, SeparateRewardModel
from otterlm.training.trainer import TrainingConfig, evaluate, train

FOR_METHODS, FOR_JUDGE = 800, 800
LIMITS = Limits(prompt=96, response=64)
PROMPTS = 240  # to distil on
CONFIG = OtterConfig(layers=tuple(range(11, 30, 2)), signal=RewardConfig(vocabulary_rank=16))  # the shipped adapter's


def split(count: int) -> list[set[int]]:
    """Returns the rows that train the methods, those that train the judge, and those whose prompts are answered."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    cuts = (0, FOR_METHODS, FOR_METHODS + FOR_JUDGE, count)
    return [set(order[start:end]) for start, end in pairwise(cuts)]


def fine_tune(base: Any, tokenizer: Any, examples: list[Example], test: list[Example], out: Path) -> dict[str, float]:
    """Trains a separate reward model, for one epoch over all its weights."""
    how = TrainingConfig(epochs=1, batch_size=8, learning_rate=2e-5, evaluations_per_epoch=1, warmup=0.1)
    model = SeparateRewardModel.of(base)
    result = train(model, examples, test, how, out)
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    return result


def train_otter(base: Any, tokenizer: Any, examples: list[Example], test: list[Example], out: Path) -> dict[str, float]:
    """Trains an adapter. A tenth of its pairs decides when to stop."""
    torch.manual_seed(0)
    how = TrainingConfig(epochs=2, batch_size=16, learning_rate=1e-3, evaluations_per_epoch=4, patience=6)
    held = {example.row for example in examples[:80]}
    model = OtterModel(base, CONFIG)
    fit(model, tokenizer, examples, held, Run(out, how), "harmlessness pairs", {})
    return evaluate(RewardObjective(model, LiveBase(model), RewardTrainingConfig()), test, 16, Accelerator())


def distil(base: Any, tokenizer: Any, prompts: list[Prompt], rewards: Preference, out: Path) -> dict[str, float]:
    """Trains an adapter that predicts from every prefix a separate reward model's reward of the whole response."""
    sampling = Sampling(max_prompt_tokens=LIMITS.prompt, max_new_tokens=LIMITS.response, temperature=0.7, batch_size=16)
    scorer = functools.partial(rewards, limits=LIMITS)
    examples = scored_responses(base, tokenizer, prompts, of_texts(scorer), "reward model", sampling, out / "responses")
    torch.manual_seed(0)
    how = TrainingConfig(epochs=3, batch_size=16, learning_rate=1e-3, evaluations_per_epoch=4, patience=6)
    held = {example.row for example in examples if example.row < PROMPTS // 10}
    run, name = Run(out, how), "the base's own responses, scored by a separate reward model"
    return fit(OtterModel(base, CONFIG), tokenizer, examples, held, run, name, asdict(sampling))


def fit(
    model: OtterModel,
    tokenizer: Any,
    examples: list[Example],
    held: set[int],
    run: Run,
    data: str,
    settings: dict[str, Any],
) -> dict[str, float]:
    """Trains an adapter in one stage, and saves it."""
    learning = RewardTrainingConfig()
    rest, held_out = run.split(examples, model.base_model, held)
    metrics = learn_reward(model, tokenizer, rest, held_out, learning, run)
    measure_spread(model, examples)
    metrics |= learn_to_steer(model, rest, learning, run.training.seed)
    save_reward(model, run, data, (len(rest), len(held)), metrics, settings)
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["otter", "args", "judge", "distilled"], help="what to train")
    arguments = parser.parse_args()
    tokenizer, base = load_tokenizer(arguments.base), load_base(arguments.base)
    rows = [row for row in read_rows(arguments.data) if isinstance(row, PairRow)]
    methods, judge, test = split(len(rows))
    examples = tokenize(rows, tokenizer, LIMITS)

    def of(chosen: set[int]) -> list[Example]:
        return [example for example in examples if example.row in chosen]

    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "prompts.jsonl").open("w") as file:
        for index in sorted(test):
            turns = [{"role": role, "content": content} for role, content in rows[index].chosen.prompt or ()]
            file.write(json.dumps({"prompt": turns}) + "\n")
    for name in arguments.models:
        if name == "otter":
            result = train_otter(base, tokenizer, of(methods), of(test), arguments.out / name)
        elif name == "distilled":
            prompts = [rows[index].chosen.prompt or () for index in sorted(methods)[:PROMPTS]]
            rewards = Preference(arguments.out / "args" / "model")
            result = distil(base, tokenizer, prompts, rewards, arguments.out / name)
        else:
            chosen = judge if name == "judge" else methods
            result = fine_tune(base, tokenizer, of(chosen), of(test), arguments.out / name)
        print(name, result, flush=True)


if __name__ == "__main__":
    run_script(main)
