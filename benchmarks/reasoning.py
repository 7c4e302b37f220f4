"""Predicts whether a solution will be right, part of the way through, by Otter, by a linear probe and by length.

    python benchmarks/reasoning.py --out runs/reasoning

Four models' solutions of GSM8K's questions, right or wrong, are read by a base; every prefix is trained towards 1 or
0. The questions are split into parts, and each part is scored by a method that learned from the others. The probe is a
ridge regression on the base's last hidden state at the same prefixes. Its penalty and Otter's stopping are decided on a
tenth of the questions that are learned from. AUC is measured within each part, and the result is the mean over the
parts; intervals are bootstrapped over the questions. OUT/rows holds a row a seed, for `benchmarks/bases.py table`.
"""

import argparse
import gzip
import json
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bases_rows import add_base, add_live, at_once, conditions, load, make_row, rate
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.bases import load_tokenizer
from otterlm.cli.scripts import run_script
from otterlm.config import OtterConfig
from otterlm.identity import of_config, of_data, of_weights
from otterlm.layers import parse_layers
from otterlm.model import OtterModel
from otterlm.signals.reward.config import RewardConfig
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig
from otterlm.training.data.conversations import Dialogue
from otterlm.training.data.packing import Example, collate, length_buckets
from otterlm.training.data.rows import ScoredRow
from otterlm.training.data.tokens import Limits, tokenize
from otterlm.training.evaluation.scoring import index_at
from otterlm.training.sources import FinalState, LiveBase, RecordedBase, Source, read_batch
from otterlm.training.trainer import TrainingConfig, train

PERCENTS = (25, 50, 75, 100)
PENALTIES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
SOLUTIONS = 4  # of each question
LIMITS = Limits(prompt=96, response=128)
BOUNDS = torch.tensor([0.025, 0.975])


def solutions(tokenizer: PreTrainedTokenizerBase, data: Path, questions: int, limits: Limits) -> list[ScoredRow]:
    """Returns all solutions of questions of which nothing has to be cut, `SOLUTIONS` rows a question."""
    with gzip.open(data / "gsm8k_solutions" / "example_model_solutions.jsonl.gz", "rt") as file:
        records = [json.loads(line) for line in file]
    random.Random(0).shuffle(records)
    rows: list[ScoredRow] = []
    for record in records:
        answers = [value for value in record.values() if isinstance(value, dict)]
        prompt = (("user", record["question"]),)
        read = [ScoredRow(Dialogue(prompt, each["solution"]), float(each["is_correct"])) for each in answers]
        # The template takes 31 tokens of a prompt.
        if len(tokenizer.encode(record["question"])) > limits.prompt - 31:
            continue
        if any(len(tokenizer.encode(row.text.response)) >= limits.response for row in read):
            continue
        rows += read
        if len(rows) == SOLUTIONS * questions:
            break
    return rows


def ends(length: int) -> list[int]:
    """Returns the last token of each part of a solution."""
    return [index_at(length, percent) for percent in PERCENTS]


@torch.no_grad()
def hidden_states(source: Source, examples: Sequence[Example], base: PreTrainedModel) -> list[Tensor]:
    """Returns the base's last hidden state after every token of each solution, `[tokens, d]` each, by row."""
    states: dict[int, Tensor] = {}
    for group in length_buckets(examples, at_once(base)):
        reader = FinalState()
        source.show(collate(group).to(base.device), reader)
        assert reader.normed is not None
        for state, example in zip(reader.normed, group, strict=True):
            states[example.row] = state[len(example.prefix) : len(example)].clone()
    return [states[example.row] for example in examples]


def probe(states: list[Tensor], labels: Tensor, rows: list[int], held: list[int], test: list[int]) -> Tensor:
    """Returns the predictions `[test, percents]` of a ridge regression on all prefixes, fitted where the states are.

    Each solution has the same weight, as when Otter is trained.
    """
    inputs = torch.cat([states[row] for row in rows]).double()
    mean, spread = inputs.mean(dim=0), inputs.std(dim=0).clamp_min(1e-6)
    targets = torch.cat([labels[row].expand(len(states[row])) for row in rows]).double()
    share = torch.cat([torch.full((len(states[row]),), 1 / len(states[row])) for row in rows]).to(inputs)

    def design(some: Tensor) -> Tensor:
        return torch.cat(((some.double() - mean) / spread, inputs.new_ones(len(some), 1)), dim=1)

    weighted = design(inputs) * share[:, None]
    square, moment = weighted.T @ design(inputs), weighted.T @ targets

    def fitted(penalty: float) -> Tensor:
        ridge = penalty / 1000 * len(rows) * torch.eye(len(square), dtype=torch.double, device=square.device)
        ridge[-1, -1] = 0  # the intercept is free
        return torch.linalg.solve(square + ridge, moment)

    def loss(weight: Tensor) -> float:
        return sum(float((design(states[row]) @ weight - labels[row]).square().mean()) for row in held)

    weight = min(map(fitted, PENALTIES), key=loss)
    return torch.stack([(design(states[row]) @ weight)[ends(len(states[row]))] for row in test]).float().cpu()


def otter(
    model: OtterModel,
    source: Source,
    fitted: list[Example],
    held: list[Example],
    test: list[Example],
    how: TrainingConfig,
    out: Path,
) -> Tensor:
    """Returns the predictions `[test, percents]` of an adapter trained on `fitted` and stopped by `held`."""
    objective = RewardObjective(model, source, RewardTrainingConfig())
    print(json.dumps(train(objective, fitted, held, how, out)), flush=True)
    model.eval()
    predictions: dict[int, Tensor] = {}
    with torch.no_grad():
        for group in length_buckets(test, at_once(model.base_model)):
            rewards = read_batch(model, source, collate(group).to(model.device), "reward").prefix.cpu()
            for row, example in zip(rewards, group, strict=True):
                predictions[example.row] = row[len(example.prefix) : len(example)][ends(len(example.branches[0]))]
    return torch.stack([predictions[example.row] for example in test])


def auc(scores: Tensor, labels: Tensor) -> float:
    """Returns how often a right solution scores higher than a wrong one. A tie counts half; NaN without both."""
    gaps = scores[labels == 1][:, None] - scores[labels == 0][None]
    return float(((gaps > 0).float() + (gaps == 0).float() / 2).mean())


def all_questions(scores: Tensor, labels: Tensor, parts: list[Tensor]) -> float:
    """Compares any solution of a part with any other, of `[questions, SOLUTIONS]` scores, the mean over the parts."""
    return sum(auc(scores[part].flatten(), labels[part].flatten()) for part in parts) / len(parts)


def same_question(scores: Tensor, labels: Tensor, parts: list[Tensor]) -> float:
    """Compares a question's solutions only, so that how hard it is does not count; the mean over questions."""
    gaps = scores[:, :, None] - scores[:, None]  # [questions, SOLUTIONS, SOLUTIONS]
    compared = labels[:, :, None] * (1 - labels[:, None])
    won = (((gaps > 0).float() + (gaps == 0).float() / 2) * compared).sum(dim=(1, 2)) / compared.sum(dim=(1, 2))
    return float(won[torch.cat(parts)].nanmean())


def report(scores: dict[str, Tensor], labels: Tensor, parts: list[Tensor], rounds: int = 500) -> list[dict[str, Any]]:
    """Returns a row for each way of comparing and each percentage: AUC of each method and Otter's lead, with 95%."""
    generator = torch.Generator().manual_seed(0)
    drawn = [
        [part[torch.randint(len(part), (len(part),), generator=generator)] for part in parts] for _ in range(rounds)
    ]
    rows = []
    for compare in (all_questions, same_question):
        for column, percent in enumerate(PERCENTS):
            values = {name: each.view(*labels.shape, -1)[..., column] for name, each in scores.items()}
            results = {
                name: torch.tensor([compare(value, labels, some) for some in (parts, *drawn)])
                for name, value in values.items()
            }
            results["lead"] = results["otter"] - results["probe"]
            row: dict[str, Any] = {"compare": compare.__name__, "percent": percent}
            for name, each in results.items():
                row[name] = [round(value, 4) for value in (each[0].item(), *each[1:].quantile(BOUNDS).tolist())]
            rows.append(row)
    return rows


def measured(arguments: argparse.Namespace, base: PreTrainedModel, rows: list[ScoredRow], seed: int) -> dict[str, Any]:
    """Returns the row of a seed: of the parts of the questions, of the initialisation and of the order."""
    examples = tokenize(rows, load_tokenizer(arguments.base), LIMITS)
    labels, config = torch.tensor([row.score for row in rows]), shape(arguments)

    def model() -> OtterModel:
        torch.manual_seed(seed)
        return OtterModel(base, config, dtype=torch.promote_types(base.dtype, torch.float32)).train()

    recorded = None if arguments.live else RecordedBase(model(), examples, arguments.out / "recording")
    states = hidden_states(recorded or LiveBase(model()), examples, base)
    questions = torch.arange(len(rows) // SOLUTIONS)
    if seed:
        questions = questions[torch.randperm(len(questions), generator=torch.Generator().manual_seed(seed))]
    parts = list(questions.tensor_split(arguments.parts))
    scores = {name: torch.zeros(len(rows), len(PERCENTS)) for name in ("otter", "probe", "length")}
    how = TrainingConfig(epochs=arguments.epochs, batch_size=16, evaluations_per_epoch=2, seed=seed)
    for number, part in enumerate(parts):
        others = [question for question in range(len(questions)) if question not in set(part.tolist())]
        random.Random(number).shuffle(others)
        held, fitted, test = (
            [SOLUTIONS * question + n for question in group for n in range(SOLUTIONS)]
            for group in (others[: len(others) // 10], others[len(others) // 10 :], part.tolist())
        )
        scores["probe"][test] = probe(states, labels.to(base.device), fitted, held, test)
        scores["length"][test] = torch.tensor([[-float(len(states[row]))] * len(PERCENTS) for row in test])
        groups = [[examples[row] for row in group] for group in (fitted, held, test)]
        inserted, out = model(), arguments.out / f"part-{seed}-{number}"
        source = recorded or LiveBase(inserted)
        scores["otter"][test] = otter(inserted, source, groups[0], groups[1], groups[2], how, out)
    return {
        "task": "solutions",
        "base": arguments.base,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in base.parameters()),
        "solutions": len(rows),
        "questions": len(questions),
        "right": float(labels.mean()),
        "rows": report(scores, labels.view(-1, SOLUTIONS), parts),
    }


def shape(arguments: argparse.Namespace) -> OtterConfig:
    """Returns the adapter's shape."""
    layers, signal = parse_layers(arguments.layers), RewardConfig(vocabulary_rank=0)
    return OtterConfig(hidden_size=arguments.hidden_size, layers=layers, signal=signal)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_base(parser, "smollm2-135m")
    add_live(parser)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--parts", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--layers", default="11-29:2", help="widened blocks; the last few make the recording small")
    arguments = parser.parse_args(words)
    base = load(arguments)
    rows = solutions(load_tokenizer(arguments.base), arguments.data, arguments.questions, LIMITS)
    depends = {"base": of_weights(base), "data": of_data(rows), "adapter": of_config(shape(arguments))}
    depends |= rate(base, shape(arguments)) | conditions(arguments)
    depends |= {"parts": arguments.parts, "epochs": arguments.epochs}
    for seed in arguments.seeds:
        path = arguments.out / "rows" / f"solutions-{seed}.json"
        make_row(path, depends | {"seed": seed}, partial(measured, arguments, base, rows, seed))
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    run_script(main)
