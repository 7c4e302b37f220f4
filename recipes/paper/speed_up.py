"""Compares inserted drafts with Medusa and prompt lookup, at the scale of the paper.

    python recipes/paper/speed_up.py --out runs/paper/acceleration --plan
    python recipes/paper/speed_up.py --out runs/paper/acceleration

Both learn the base's own greedy continuations of the same prompts, and are measured on MT-Bench or Spec-Bench, one
sequence at a time. A run that was stopped goes on.
"""

import argparse
import itertools
import json
from typing import Any

import torch
from paper import Cost, Sizes, Step, adapter_shape, device, load, parser, run, write_lines, write_table
from safetensors.torch import save_model

from otterlm.bases import parse_dtype
from otterlm.bench import speed
from otterlm.cli.scripts import run_script
from otterlm.config import OtterConfig
from otterlm.files import write_text
from otterlm.model import OtterModel
from otterlm.peers.medusa import MedusaHeads, MedusaObjective
from otterlm.signals.draft.config import DraftConfig
from otterlm.training.config import TrainingConfig
from otterlm.training.data.prompts import read_prompts
from otterlm.training.data.records import numbered_records
from otterlm.training.recipes import DraftRecipe, Run
from otterlm.training.sources import LiveBase
from otterlm.training.teachers.continuations import continue_prompts

HEADS = 4
"""Medusa has so many."""

COLUMNS = {
    "method": "method",
    "speed_over_base": "speed, of the base's",
    "acceptance_length": "tokens a pass",
    "tokens_per_second": "tokens a second",
    "identical": "responses as the base's",
    "prompts": "of",
    "extra_parameters": "extra parameters",
    "extra_space_saved": "extra space saved",
}


def write_data(arguments: argparse.Namespace) -> dict[str, int]:
    """Writes the prompts to learn from and the questions to be measured on."""
    records = numbered_records(arguments.prompts, arguments.split)
    learned = read_prompts([record for _, record in itertools.islice(records, arguments.train)])
    turns = [[{"role": role, "content": text} for role, text in prompt] for prompt in learned]
    write_lines(arguments.out / "prompts.jsonl", [{"prompt": each} for each in turns])
    questions = [_question(record) for _, record in numbered_records(arguments.questions)]
    write_lines(arguments.out / "questions.jsonl", questions[: arguments.limit])
    return {"prompts": len(learned), "questions": len(questions[: arguments.limit])}


def _question(record: Any) -> dict[str, Any]:
    """Returns a question of two turns, which MT-Bench on the hub calls `prompt` and Spec-Bench `turns`."""
    prompt = record.get("prompt")
    return {"turns": list(prompt)} if isinstance(prompt, list) else dict(record)


def fit_otter(arguments: argparse.Namespace, config: OtterConfig) -> dict[str, float]:
    """Trains the drafts on the base's continuations, which it makes first."""
    base, tokenizer = load(arguments)
    recipe = DraftRecipe(
        str(arguments.out / "prompts.jsonl"),
        max_prompt_tokens=arguments.prompt_tokens,
        max_new_tokens=arguments.new_tokens,
    )
    torch.manual_seed(arguments.seed)
    return recipe.train(base, tokenizer, recipe.read(), config, task(arguments, "otter"))


def task(arguments: argparse.Namespace, name: str) -> Run:
    """Returns how both methods are trained."""
    how = TrainingConfig(epochs=arguments.epochs, batch_size=arguments.batch, seed=arguments.seed)
    return Run(arguments.out / name, how, eval_fraction=0.05 if arguments.train > 1000 else 0.2)


def fit_medusa(arguments: argparse.Namespace) -> dict[str, float]:
    """Trains Medusa's heads on the same continuations."""
    base, tokenizer = load(arguments)
    base, out = base.to(device()), arguments.out
    prompts = read_prompts(str(out / "prompts.jsonl"))
    path = out / "otter" / "continuations.jsonl"
    limits = arguments.prompt_tokens, arguments.new_tokens
    examples = continue_prompts(base, tokenizer, prompts, path, *limits)
    medusa = task(arguments, "medusa")
    fitted, held = medusa.split(examples, base)
    model, heads = OtterModel(base), MedusaHeads(base, HEADS).float()
    torch.manual_seed(arguments.seed)
    metrics = medusa.train(MedusaObjective(model, LiveBase(model), heads), fitted, held, tokenizer)
    save_model(heads, str(medusa.out / "heads.safetensors"))
    write_text(medusa.out / "metrics.json", json.dumps(metrics))
    return metrics


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Answers the questions with all methods, one after the other."""
    base, tokenizer = load(arguments)
    base, out = base.to(device()), arguments.out
    sizes = [None, *(arguments.drafts or [])]
    methods = speed.methods_of(base, {"Otter": out / "otter"}, out / "medusa", sizes)
    questions = read_prompts(str(out / "questions.jsonl"))
    rows = speed.measure(methods, tokenizer, questions, arguments.answer_tokens, path=out / "answers.jsonl")
    return [row.to_dict() for row in rows]


def steps(arguments: argparse.Namespace) -> list[Step]:
    """Returns the steps with their costs."""
    signal = DraftConfig(
        width=arguments.draft_width, rank=arguments.draft_rank, vocabulary_size=arguments.draft_vocabulary
    )
    config = adapter_shape(arguments, signal)
    sizes = Sizes.of(arguments.base, config, parse_dtype(arguments.dtype))
    text = arguments.prompt_tokens + arguments.new_tokens
    tokens, at_once, epochs = arguments.train * text, arguments.batch * text, arguments.epochs
    made = sizes.decode(arguments.train, arguments.new_tokens, 64, arguments.prompt_tokens)
    adapter = made.then(sizes.fit_otter(tokens, at_once, epochs))
    medusa = sizes.fit_heads(tokens, at_once, epochs, HEADS)
    methods = 2 + 2 * (1 + len(arguments.drafts or []))
    bench = sizes.decode(arguments.limit, arguments.answer_tokens, 1, 512, 1.3, methods)
    return [
        Step("data", "prompts and questions are read", Cost(), lambda: write_data(arguments)),
        Step("otter", "the base continues; the drafts", adapter, lambda: fit_otter(arguments, config)),
        Step("medusa", "Medusa's heads", medusa, lambda: fit_medusa(arguments)),
        Step("compare", f"{methods} methods answer", bench, lambda: compare(arguments)),
    ]


def main(words: list[str] | None = None) -> None:
    made = parser(__doc__, "meta-llama/Llama-3.1-8B-Instruct")
    made.add_argument("--prompts", default="HuggingFaceH4/ultrachat_200k", help="to learn from; or a file")
    made.add_argument("--split", default="train_sft", help="of these")
    made.add_argument(
        "--questions", default="HuggingFaceH4/mt_bench_prompts", help="or a file, such as Spec-Bench's question.jsonl"
    )
    made.add_argument("--train", type=int, default=20_000, help="prompts to learn from")
    made.add_argument("--limit", type=int, default=80, help="the first so many questions")
    made.add_argument("--epochs", type=int, default=2)
    made.add_argument("--drafts", type=int, action="append", help="size of a tree, beside the drafts that pay")
    made.add_argument("--draft-width", type=int, default=1024, help="hidden units of a draft head")
    made.add_argument("--draft-rank", type=int, default=512, help="size of the codes that score the vocabulary")
    made.add_argument("--draft-vocabulary", type=int, default=16_384, help="tokens that can be drafted")
    made.add_argument("--prompt-tokens", type=int, default=256, help="a longer prompt keeps its end")
    made.add_argument("--new-tokens", type=int, default=128, help="of a continuation that is learned")
    made.add_argument("--answer-tokens", type=int, default=256, help="of a response that is measured")
    made.set_defaults(batch=8)  # Medusa's logits are over the whole vocabulary, four times
    arguments = made.parse_args(words)
    results = run("acceleration", arguments, steps(arguments))
    write_table(arguments.out, f"Acceleration of {arguments.base}", results["compare"], COLUMNS)


if __name__ == "__main__":
    run_script(main)
