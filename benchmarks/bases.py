"""Makes one table of any bases, a row a command, to see whether what is inserted holds as bases grow.

    python benchmarks/bases.py preference --base BASE --layers 16-23 --data harmless=PAIRS --out runs/bases
    python benchmarks/bases.py guard --base BASE --layers 16-23 --train TRAIN --test TEST --out runs/bases
    python benchmarks/bases.py cost --base BASE --layers 16-23 --out runs/bases
    python benchmarks/bases.py table --out runs/bases

`preference` compares the adapter with the best linear probe over all blocks and with a LoRA reward model of the same
base, on the same held-out fifth of the pairs. The base reads the pairs once for the first two and for all seeds: what
an adapter needs of it is recorded, the less the fewer blocks are widened. `guard` takes what `benchmarks/guard.py
prepare` writes. A row that is there is not made again, and a run that was stopped goes on.
"""

import argparse
import itertools
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bases_reading import AT_ONCE, best_probe, read_once
from bases_table import show
from torch import Tensor
from transformers import PreTrainedModel

from otterlm.bases import load_base, load_config, load_tokenizer
from otterlm.bench.guard import measure, otter_detector, truth_of
from otterlm.bench.guard_probes import probes
from otterlm.bench.report import machine
from otterlm.bench.timing import take_turns
from otterlm.config import OtterConfig
from otterlm.files import write_text
from otterlm.identity import identity, of_config, of_data, of_weights, read_checked
from otterlm.layers import parse_layers
from otterlm.model import OtterModel
from otterlm.plan import plan
from otterlm.signals.base import SignalConfig
from otterlm.signals.guard.config import GuardConfig
from otterlm.signals.reward.config import RewardConfig
from otterlm.signals.reward.losses import final_rewards
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig, start_from_probe
from otterlm.training.config import TrainingConfig
from otterlm.training.data.labelled import read_labelled_rows
from otterlm.training.data.labelled_tokens import tokenize_labelled
from otterlm.training.data.packing import CHOSEN, REJECTED, Batch, Example, collate, length_buckets
from otterlm.training.data.rows import hold_out, read_rows
from otterlm.training.data.tokens import Limits, tokenize
from otterlm.training.evaluation.bootstrap import median_interval
from otterlm.training.recipes import GuardRecipe, Run
from otterlm.training.sources import RecordedBase, read_batch
from otterlm.training.teachers.reward_model import SeparateRewardModel
from otterlm.training.trainer import train

LIMITS = Limits(prompt=96, response=64)
METHODS = ("otter", "probe", "lora")


def folder(arguments: argparse.Namespace) -> Path:
    """Returns the folder of a base's rows."""
    out: Path = arguments.out
    return out / re.sub(r"[^\w.-]+", "-", arguments.base).strip("-")


def shape(arguments: argparse.Namespace, signal: SignalConfig) -> OtterConfig:
    """Returns an adapter's shape."""
    return OtterConfig(
        hidden_size=arguments.hidden_size, layers=parse_layers(arguments.layers), taps=arguments.taps, signal=signal
    )


def make_row(path: Path, depends: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> None:
    """Computes a row and writes it, unless it is there."""
    this = identity("row of a base", **depends)
    if path.exists():
        read_checked(path, this)
        print(f"{path} is there")
        return
    row = compute()
    write_text(path, json.dumps({"identity": this, **row}) + "\n")
    print(path, {name: value for name, value in row.items() if not isinstance(value, list)}, flush=True)


@torch.no_grad()
def ranked_right(rewards: Callable[[Batch], Tensor], examples: Sequence[Example]) -> list[bool]:
    """Returns whether the chosen text of each pair has the higher reward, in the order of `examples`."""
    right: dict[int, bool] = {}
    for group in length_buckets(examples, AT_ONCE):
        batch = collate(group)
        values = rewards(batch)  # [B, T]
        chosen, rejected = (final_rewards(values, batch.segments, side) for side in (CHOSEN, REJECTED))
        right |= {each.row: bool(win) for each, win in zip(group, chosen > rejected, strict=True)}
    return [right[each.row] for each in examples]


def fit_otter(
    model: OtterModel, source: RecordedBase, learned: list[Example], seed: int, out: Path, epochs: int
) -> dict[str, float]:
    """Trains an adapter on pairs, an eighth of which decides when to stop."""
    torch.manual_seed(seed)
    objective = RewardObjective(model, source, RewardTrainingConfig())
    order = torch.randperm(len(learned), generator=torch.Generator().manual_seed(seed)).tolist()
    stops, fitted = (
        [learned[index] for index in part] for part in (order[: len(order) // 8], order[len(order) // 8 :])
    )
    start_from_probe(objective, fitted)
    how = TrainingConfig(epochs=epochs, batch_size=16, evaluations_per_epoch=4, patience=6, seed=seed)
    return train(objective, fitted, stops, how, out)


def fit_lora(base: PreTrainedModel, learned: list[Example], seed: int, out: Path, rank: int) -> SeparateRewardModel:
    """Trains a reward model by LoRA for one epoch."""
    torch.manual_seed(seed)
    model = SeparateRewardModel.lora(base, rank)
    how = TrainingConfig(batch_size=8, learning_rate=2e-4, warmup=0.1, evaluations_per_epoch=1, seed=seed)
    train(model, learned, learned[:8], how, out)
    return model.eval()


def preference(arguments: argparse.Namespace) -> None:
    """Makes the rows of preference accuracy."""
    base, tokenizer, out = load_base(arguments.base), load_tokenizer(arguments.base), folder(arguments)
    config = shape(arguments, RewardConfig())
    for spec in arguments.data:
        name, _, file = spec.rpartition("=")
        rows = read_rows(file)[: arguments.rows]
        examples = tokenize(rows, tokenizer, LIMITS)
        for seed, method in itertools.product(arguments.seeds, arguments.methods):
            fixed = {"task": "preference", "data": name, "method": method, "seed": seed, "base": arguments.base}
            held = hold_out(rows, 0.2, seed)
            depends = {"base": of_weights(base), "data": of_data(examples), "held": sorted(held)}
            if method == "otter":
                depends |= {"adapter": of_config(config), "epochs": arguments.epochs}
            elif method == "lora":
                depends |= {"rank": arguments.rank}
            row = partial(preference_row, arguments, base, config, examples, held, fixed)
            make_row(out / "rows" / f"preference-{name}-{method}-{seed}.json", fixed | depends, row)


def preference_row(
    arguments: argparse.Namespace,
    base: PreTrainedModel,
    config: OtterConfig,
    examples: list[Example],
    held: set[int],
    fixed: dict[str, Any],
) -> dict[str, Any]:
    """Makes one row of preference accuracy."""
    right = judge(arguments, base, config, examples, held, fixed)
    size = sum(parameter.numel() for parameter in base.parameters())
    return {**fixed, "parameters": size, "accuracy": sum(right) / len(right), "right": right}


def judge(
    arguments: argparse.Namespace,
    base: PreTrainedModel,
    config: OtterConfig,
    examples: list[Example],
    held: set[int],
    fixed: dict[str, Any],
) -> list[bool]:
    """Trains one method on the pairs that are not held out. Returns which of the others it ranks right."""
    learned = [index for index, each in enumerate(examples) if each.row not in held]
    tested = [index for index, each in enumerate(examples) if each.row in held]
    fitted, measured = ([examples[index] for index in part] for part in (learned, tested))
    out, seed = folder(arguments) / "{data}-{method}-{seed}".format(**fixed), fixed["seed"]
    if fixed["method"] == "lora":
        rival = fit_lora(base, fitted, seed, out, arguments.rank)
        return ranked_right(lambda batch: rival.read(**batch.inputs(base.dtype)), measured)
    model = OtterModel(base, config).train()
    source, states = read_once(model, examples, folder(arguments) / f"{fixed['data']}-recording")
    if fixed["method"] == "probe":
        block, right = best_probe(states, learned, tested, seed)
        print(f"the best probe reads block {block}")
        return right
    fit_otter(model, source, fitted, seed, out, arguments.epochs)
    model.eval()
    return ranked_right(lambda batch: read_batch(model, source, batch, "reward").prefix, measured)


def guard(arguments: argparse.Namespace) -> None:
    """Makes the row of a guard beside probes."""
    base, tokenizer, out = load_base(arguments.base), load_tokenizer(arguments.base), folder(arguments)
    limits = Limits(response=arguments.max_response_tokens)
    learned, tested = (
        tokenize_labelled(read_labelled_rows(file)[: arguments.rows], tokenizer, limits)
        for file in (arguments.train, arguments.test)
    )
    config = shape(arguments, GuardConfig())

    def row() -> dict[str, Any]:
        recipe = GuardRecipe(arguments.train, limits=limits)
        how = TrainingConfig(epochs=2, batch_size=16, evaluations_per_epoch=4, patience=6)
        torch.manual_seed(0)
        rows = [each.row for each in learned]
        recipe.train(base, tokenizer, (rows, 0), config, Run(out / "guard", how, record=arguments.record))
        otter = otter_detector(OtterModel.from_pretrained(base, out / "guard"))
        measured, _ = measure([otter, *probes(base, learned, truth_of(learned))], tested, "guard")
        count = sum(parameter.numel() for parameter in base.parameters())
        rows_of = [each.to_dict() for each in measured]
        return {"task": "guard", "base": arguments.base, "parameters": count, "rows": rows_of}

    data, held_out = (of_data((each.example, each.row.marks) for each in part) for part in (learned, tested))
    depends = {"base": of_weights(base), "data": data, "held_out": held_out, "adapter": of_config(config)}
    depends |= {"record": arguments.record}  # what is recorded is rounded to bf16
    make_row(out / "rows" / "guard.json", depends, row)


def cost(arguments: argparse.Namespace) -> None:
    """Makes the row of space and time: of one sequence, greedily."""
    config = shape(arguments, RewardConfig())
    space = plan(load_config(arguments.base), config)
    base, out = load_base(arguments.base), folder(arguments)

    def row() -> dict[str, Any]:
        models: dict[str, Any] = {"base": base, "stream": OtterModel(base, config).eval()}
        ids = torch.randint(3, base.config.get_text_config().vocab_size, (1, arguments.prompt))

        def calls(new: int) -> dict[str, Callable[[], object]]:
            fixed = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": new}
            mask = torch.ones_like(ids)
            return {name: partial(model.generate, ids, attention_mask=mask, **fixed) for name, model in models.items()}

        taken = take_turns(calls(arguments.new), calls(2), arguments.rounds)
        ratios = taken["stream"].over(taken["base"])
        return {
            "task": "cost",
            "base": arguments.base,
            "parameters": space.base_parameters,
            "share": (space.inserted_parameters + space.derived_parameters) / space.base_parameters,
            "time": sorted(ratios)[len(ratios) // 2],
            "time_ci95": median_interval(ratios),
        }

    settings = {name: getattr(arguments, name) for name in ("prompt", "new", "rounds")}
    depends = {"base": of_weights(base), "adapter": of_config(config), "machine": machine(), **settings}
    make_row(out / "rows" / "cost.json", depends, row)


def parser() -> argparse.ArgumentParser:
    """Makes the parser of the command."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = made.add_subparsers(dest="verb", required=True)
    for name, run in (("preference", preference), ("guard", guard), ("cost", cost)):
        verb = verbs.add_parser(name)
        verb.add_argument("--base", required=True)
        verb.add_argument("--out", type=Path, required=True)
        verb.add_argument("--layers", help="widened blocks, such as 16-23; the last few make the recording small")
        verb.add_argument("--hidden-size", type=int, default=64)
        verb.add_argument("--taps", choices=("inside", "edge"), help="edge makes a recording several times smaller")
        verb.set_defaults(run=run)
        if name != "cost":
            verb.add_argument("--rows", type=int, help="the first so many rows; all")
        if name == "preference":
            verb.add_argument("--data", nargs="+", required=True, metavar="NAME=PAIRS")
            verb.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
            verb.add_argument("--seeds", type=int, nargs="+", default=[0])
            verb.add_argument("--epochs", type=int, default=3, help="of the adapter")
            verb.add_argument("--rank", type=int, default=16, help="of LoRA")
        elif name == "guard":
            verb.add_argument("--train", required=True, help="labelled texts, see benchmarks/guard.py")
            verb.add_argument("--test", required=True)
            verb.add_argument("--max-response-tokens", type=int, default=160)
            verb.add_argument("--record", action="store_true", help="read the base once, onto the disk")
        else:
            verb.add_argument("--prompt", type=int, default=64)
            verb.add_argument("--new", type=int, default=48)
            verb.add_argument("--rounds", type=int, default=7)
    verb = verbs.add_parser("table")
    verb.add_argument("--out", type=Path, required=True)
    verb.set_defaults(run=lambda arguments: show(arguments.out))
    return made


def main(words: list[str] | None = None) -> None:
    arguments = parser().parse_args(words)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
