"""Compares guidance and search by an inserted reward with ARGS and CARDS, at the scale of the paper.

    python recipes/paper/align.py --out runs/paper/alignment --plan
    python recipes/paper/align.py --out runs/paper/alignment

Two disjoint sets of hh-rlhf's pairs train the methods (the adapter, and the separate reward model of ARGS and CARDS)
and the judge. Questions of its test split are answered. A run that was stopped goes on.
"""

import argparse
import random
from typing import Any

import torch
from paper import Cost, Sizes, Step, adapter_shape, device, load, parser, run, write_lines, write_table

from otterlm.bases import parse_dtype
from otterlm.bench import alignment
from otterlm.bench.alignment_methods import methods_of
from otterlm.cli.scripts import run_script
from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.signals.reward.config import RewardConfig
from otterlm.training.config import TrainingConfig
from otterlm.training.data.conversations import Dialogue
from otterlm.training.data.encoding import stored_tokens
from otterlm.training.data.prompts import read_prompts
from otterlm.training.data.rows import PairRow, hold_out, iterate_rows, read_rows
from otterlm.training.data.stored_items import StoredItems
from otterlm.training.data.tokens import Limits
from otterlm.training.recipes import RewardRecipe, Run
from otterlm.training.recipes.values import Values
from otterlm.training.teachers.reward_model import Preference, SeparateRewardModel

COLUMNS = {
    "method": "method",
    "reward": "reward, by the judge",
    "win_rate": "wins against the base",
    "diversity": "diversity",
    "time_over_base": "time, of the base's",
    "extra_time_saved": "extra time saved over ARGS",
    "extra_parameters": "extra parameters",
    "extra_space_saved": "extra space saved",
}


def write_data(arguments: argparse.Namespace) -> dict[str, int]:
    """Writes the pairs of the methods and of the judge, and the questions."""
    rows = StoredItems(row for row in iterate_rows(arguments.pairs, "train") if isinstance(row, PairRow))
    wanted = 2 * arguments.train
    if len(rows) < wanted:
        raise OtterError(f"{arguments.pairs} has {len(rows)} pairs; --train {arguments.train} takes {wanted}")
    chosen = random.Random(arguments.seed).sample(range(len(rows)), wanted)
    parts = {number: "methods" if index < arguments.train else "judge" for index, number in enumerate(chosen)}
    written: dict[str, list[dict[str, Any]]] = {"methods": [], "judge": []}
    for number, row in enumerate(rows):
        if number in parts and isinstance(row, PairRow):
            record = {"chosen": _messages(row.chosen), "rejected": _messages(row.rejected)}
            written[parts[number]].append(record)
    for name, records in written.items():
        write_lines(arguments.out / f"{name}.jsonl", records)
    questions = read_prompts(arguments.questions, "test")
    questions = random.Random(arguments.seed).sample(questions, min(arguments.prompts, len(questions)))
    turns = [[{"role": role, "content": text} for role, text in question] for question in questions]
    write_lines(arguments.out / "questions.jsonl", [{"prompt": each} for each in turns])
    return {"pairs": len(rows), "questions": len(questions)}


def _messages(dialogue: Dialogue) -> Any:
    if dialogue.prompt is None:
        return dialogue.response
    turns = [*dialogue.prompt, ("assistant", dialogue.response)]
    return [{"role": role, "content": text} for role, text in turns]


def fit_rewards(arguments: argparse.Namespace, pairs: str, name: str) -> dict[str, float]:
    """Trains a separate reward model by LoRA, and saves it merged."""
    base, tokenizer = load(arguments)
    rows = read_rows(str(arguments.out / f"{pairs}.jsonl"))
    examples = stored_tokens(rows, tokenizer, limits(arguments))
    how = TrainingConfig(batch_size=arguments.batch, learning_rate=1e-4, warmup=0.1, seed=arguments.seed)
    torch.manual_seed(arguments.seed)
    task = Run(arguments.out / name, how, eval_fraction=0.02 if len(rows) > 1000 else 0.2)
    fitted, held = task.split(examples, base, hold_out(rows, task.eval_fraction, arguments.seed))
    model = SeparateRewardModel.lora(base, arguments.rank)
    del base
    metrics = task.train(model, fitted, held, tokenizer)
    model.merge().save_pretrained(task.out / "model")
    tokenizer.save_pretrained(task.out / "model")
    return metrics


def fit_otter(arguments: argparse.Namespace, config: OtterConfig) -> dict[str, float]:
    """Trains the adapter on the pairs of the methods, and on values of the base's responses."""
    base, tokenizer = load(arguments)
    how = TrainingConfig(epochs=2, batch_size=arguments.batch, evaluations_per_epoch=4, patience=6, seed=arguments.seed)
    values = Values(value_prompts=arguments.value_prompts, value_new_tokens=arguments.new_tokens)
    recipe = RewardRecipe(str(arguments.out / "methods.jsonl"), limits=limits(arguments), values=values)
    torch.manual_seed(arguments.seed)
    fraction = 0.05 if arguments.train > 1000 else 0.2
    return recipe.train(base, tokenizer, recipe.read(), config, Run(arguments.out / "otter", how, fraction))


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Answers the questions with all methods, and rates the answers."""
    base, tokenizer = load(arguments)
    base, out, new = base.to(device()), arguments.out, arguments.new_tokens
    questions = read_prompts(str(out / "questions.jsonl"))
    methods = methods_of(
        base,
        tokenizer,
        out / "otter",
        out / "args" / "model",
        questions,
        arguments.weight or [1.0, 2.0],
        new_tokens=new,
        max_prompt_tokens=arguments.prompt_tokens,
    )
    path = out / "answers.jsonl"
    batches = alignment.answer_all(
        methods, tokenizer, questions, new, arguments.prompt_tokens, arguments.answers, arguments.seed, path
    )
    judge = Preference(out / "judge" / "model", parse_dtype(arguments.dtype), device())
    rows = alignment.judge(methods, tokenizer, questions, batches, judge, None, limits(arguments))
    return [row.to_dict() for row in rows]


def limits(arguments: argparse.Namespace) -> Limits:
    """Returns the limits of prompts and of responses."""
    return Limits(arguments.prompt_tokens, arguments.new_tokens)


def steps(arguments: argparse.Namespace) -> list[Step]:
    """Returns the steps with their costs."""
    config = adapter_shape(arguments, RewardConfig(vocabulary_rank=arguments.vocabulary_rank))
    sizes = Sizes.of(arguments.base, config, parse_dtype(arguments.dtype))
    text = arguments.prompt_tokens + 2 * arguments.new_tokens  # a pair shares its prompt
    tokens, at_once = arguments.train * text, arguments.batch * text
    rewards = sizes.fit_lora(tokens, at_once, arguments.rank)
    answers = sizes.decode(
        3 * arguments.value_prompts * 2, arguments.new_tokens, 3 * arguments.batch, arguments.prompt_tokens
    )
    adapter = sizes.fit_otter(tokens, at_once, 2).then(answers)
    adapter = adapter.then(sizes.fit_otter(2 * arguments.value_prompts * text, at_once, 2))
    methods = 5 + 3 * len(arguments.weight or [1.0, 2.0])
    bench = sizes.decode(
        arguments.prompts, arguments.new_tokens, arguments.answers, arguments.prompt_tokens, 3, 2 * methods
    )
    return [
        Step("data", "hh-rlhf is read and split", Cost(), lambda: write_data(arguments)),
        Step("args", "the reward model of ARGS, by LoRA", rewards, lambda: fit_rewards(arguments, "methods", "args")),
        Step("judge", "the judge, by LoRA", rewards, lambda: fit_rewards(arguments, "judge", "judge")),
        Step("otter", "the adapter, both stages", adapter, lambda: fit_otter(arguments, config)),
        Step("compare", f"{methods} methods answer and are judged", bench, lambda: compare(arguments)),
    ]


def main(words: list[str] | None = None) -> None:
    made = parser(__doc__, "meta-llama/Llama-2-7b-hf")
    made.add_argument("--pairs", default="Anthropic/hh-rlhf", help="pairs: its split train, or a file")
    made.add_argument("--questions", default="Anthropic/hh-rlhf", help="questions: its split test, or a file")
    made.add_argument("--train", type=int, default=20_000, help="pairs of the methods, and as many of the judge")
    made.add_argument("--prompts", type=int, default=300, help="questions to answer")
    made.add_argument("--weight", type=float, action="append", help="in spreads; may be repeated; 1 and 2")
    made.add_argument("--value-prompts", type=int, default=2000, help="prompts of the second stage")
    made.add_argument("--vocabulary-rank", type=int, default=64, help="of the adapter's vocabulary head")
    made.add_argument("--prompt-tokens", type=int, default=256, help="a longer prompt keeps its end")
    made.add_argument("--new-tokens", type=int, default=128, help="of a response")
    made.add_argument("--answers", type=int, default=8, help="answers a batch")
    arguments = made.parse_args(words)
    results = run("alignment", arguments, steps(arguments))
    write_table(arguments.out, f"Alignment of {arguments.base}", results["compare"], COLUMNS)


if __name__ == "__main__":
    run_script(main)
