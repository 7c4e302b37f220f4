"""Prints the rows of `benchmarks/steering_parts.py` as a table."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from otterlm.training.evaluation.bootstrap import interval, mean_of

HEADING = "| variant | 25% | 50% | 75% | 100% | explained | gain | less the first | higher on | nats a token |"


def print_table(out: Path, names: Sequence[str], base: Mapping[str, Any]) -> None:
    """Prints the table of all rows that are there.

    Args:
        out: the folder of the run.
        names: of the variants, in their order.
        base: the base's answers.
    """
    rows = {name: read_row(out, name) for name in names if row_path(out, name).exists()}
    print(f"{HEADING}\n|{'---|' * HEADING.count('|', 1)}")
    print(f"| the base | | | | | | | | | {nats(base):.2f} |")
    first = next(iter(rows.values()))
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(cells(row, first))} |", flush=True)


def row_path(out: Path, name: str) -> Path:
    """Returns where a variant's row is."""
    return out / "rows" / f"{name.replace(' ', '-')}.jsonl"


def read_row(out: Path, name: str) -> dict[str, Any]:
    """Reads a variant's row."""
    row: dict[str, Any] = json.loads(row_path(out, name).read_text().splitlines()[1])
    return row


def cells(row: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    """Returns a row's cells; gains have 95% intervals by the bootstrap over questions."""
    gains = torch.tensor(row["gains"])
    less = "" if row is first else with_interval(gains - torch.tensor(first["gains"]))
    return [
        *(f"{row[f'correlation_{percent}']:.2f}" for percent in (25, 50, 75, 100)),
        f"{row['explained']:.2f}",
        with_interval(gains),
        less,
        f"{int((gains > 0).sum())} of {len(gains)}",
        f"{nats(row):.2f}",
    ]


def with_interval(values: torch.Tensor) -> str:
    """Writes the mean of questions, `[N]`, with its interval."""
    low, high = interval(len(values), mean_of(values))
    return f"{float(values.mean()):+.2f} ({low:+.2f} to {high:+.2f})"


def nats(row: Mapping[str, Any]) -> float:
    """Returns the mean over the texts that are not empty."""
    return statistics.mean(each for each in row["nats"] if each is not None)
