"""Makes one table of any bases, a row a command, to see whether what is inserted holds as bases grow.

    python benchmarks/bases.py preference --base BASE --layers 16-23 --data harmless=PAIRS --out runs/bases
    python benchmarks/bases.py guard --base BASE --layers 16-23 --train TRAIN --test TEST --out runs/bases
    python benchmarks/bases.py cost --base BASE --layers 16-23 --out runs/bases
    python benchmarks/bases.py table --out runs/bases

`preference` compares the adapter with the best linear probe over all blocks and with a LoRA reward model of the same
base, on the same held-out fifth of the pairs. The base reads the pairs once for the first two and for all seeds: what
an adapter needs of it is recorded, the less the fewer blocks are widened. With `--live` it runs in every step instead,
which a GPU (`--device cuda`) does in less time. `guard` takes what `benchmarks/guard.py prepare` writes, and makes a
second row where passages are marked. A row that is there is not made again, and a run that was stopped goes on.
`benchmarks/reasoning.py --base BASE --out runs/bases/NAME` makes rows of whether solutions are right.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bases_guard import guard
from bases_preference import METHODS, preference
from bases_rows import add_base, add_live, conditions, folder, load, make_row, shape
from bases_table import show

from otterlm.bases import load_config
from otterlm.bench.report import machine
from otterlm.bench.timing import take_turns
from otterlm.cli.scripts import run_script
from otterlm.identity import of_config, of_weights
from otterlm.model import OtterModel
from otterlm.plan import plan
from otterlm.signals.reward.config import RewardConfig
from otterlm.training.evaluation.bootstrap import median_interval


def cost(arguments: argparse.Namespace) -> None:
    """Makes the row of space and time: of one sequence, greedily."""
    config = shape(arguments, RewardConfig())
    space = plan(load_config(arguments.base), config)
    base, out = load(arguments), folder(arguments)

    def row() -> dict[str, Any]:
        models: dict[str, Any] = {"base": base, "stream": OtterModel(base, config).eval()}
        ids = torch.randint(3, base.config.get_text_config().vocab_size, (1, arguments.prompt)).to(base.device)

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
            "tokens_per_second": {name: arguments.new / each.median for name, each in taken.items()},
        }

    settings = {name: getattr(arguments, name) for name in ("prompt", "new", "rounds")}
    depends = {"base": of_weights(base), "adapter": of_config(config), "machine": machine(), **settings}
    depends |= conditions(arguments)
    make_row(out / "rows" / "cost.json", depends, row)


def parser() -> argparse.ArgumentParser:
    """Makes the parser of the command."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = made.add_subparsers(dest="verb", required=True)
    for name, run in (("preference", preference), ("guard", guard), ("cost", cost)):
        verb = verbs.add_parser(name)
        add_base(verb)
        verb.add_argument("--out", type=Path, required=True)
        verb.add_argument("--layers", help="widened blocks, such as 16-23; the last few make the recording small")
        verb.add_argument("--hidden-size", type=int, default=64)
        verb.add_argument("--taps", choices=("inside", "edge"), help="edge makes a recording several times smaller")
        verb.set_defaults(run=run)
        if name != "cost":
            verb.add_argument("--rows", type=int, help="the first so many rows; all")
        if name == "preference":
            add_live(verb)
            verb.add_argument("--data", nargs="+", required=True, metavar="NAME=PAIRS")
            verb.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
            verb.add_argument("--seeds", type=int, nargs="+", default=[0])
            verb.add_argument("--epochs", type=int, default=3, help="of the adapter")
            verb.add_argument("--lora-epochs", type=int, default=2)
            verb.add_argument("--lora-parts", type=int, default=4, help="passes a step; more need less memory")
            verb.add_argument("--rank", type=int, default=16, help="of LoRA")
        elif name == "guard":
            verb.add_argument("--train", required=True, help="labelled texts, see benchmarks/guard.py")
            verb.add_argument("--test", required=True, nargs="+", metavar="[NAME=]TEXTS")
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
    run_script(main)
