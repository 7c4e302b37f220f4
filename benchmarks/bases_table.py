"""Prints the table of `benchmarks/bases.py` and draws its figure, of all rows that are there."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from otterlm.bench import figures
from otterlm.errors import OtterError
from otterlm.files import write_text
from otterlm.training.evaluation.bootstrap import interval, mean_of

RIVALS = {"probe": "best probe", "lora": "LoRA reward model"}
Row = dict[str, Any]


def read(out: Path) -> list[Row]:
    """Reads the rows of all bases, the smaller bases first.

    Raises:
        OtterError: there are none.
    """
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*/rows/*.json"))]
    if not rows:
        raise OtterError(f"{out} holds no rows: make some with preference, guard or cost")
    return sorted(rows, key=lambda row: (row["parameters"], row["base"]))


def accuracy(rows: Sequence[Row]) -> str:
    """Returns the accuracy over all seeds with its interval."""
    right = torch.tensor([float(each) for row in rows for each in row["right"]])
    low, high = interval(len(right), mean_of(right))
    return f"{right.mean():.1%} ({low:.1%} to {high:.1%})"


def differences(rows: Sequence[Row], data: str, rival: str) -> list[Row]:
    """Returns Otter minus a rival, of every base that has both on the same pairs, in points with an interval."""
    made = []
    for base in dict.fromkeys(row["base"] for row in rows):
        sides = [
            {row["seed"]: row for row in rows if (row["base"], row["data"], row["method"]) == (base, data, method)}
            for method in ("otter", rival)
        ]
        seeds = sorted(sides[0].keys() & sides[1].keys())
        if not seeds:
            continue
        right = [torch.tensor([float(each) for seed in seeds for each in side[seed]["right"]]) for side in sides]
        apart = 100 * (right[0] - right[1])
        parameters = sides[0][seeds[0]]["parameters"]
        ends = interval(len(apart), mean_of(apart))
        name = f"Otter minus {RIVALS[rival]}, {data}"
        made.append(
            {"method": name, "parameters": parameters, "points": float(apart.mean()), "points_ci95": ends, "base": base}
        )
    return made


def cells(rows: Sequence[Row]) -> dict[str, str]:
    """Returns what the table says of one base, by heading."""
    made = {"base": rows[0]["base"], "parameters": f"{rows[0]['parameters'] / 1e6:,.0f} M"}
    preferences = [row for row in rows if row["task"] == "preference"]
    for data in dict.fromkeys(row["data"] for row in preferences):
        for method, name in {"otter": "Otter", **RIVALS}.items():
            seeds = [row for row in preferences if (row["data"], row["method"]) == (data, method)]
            if seeds:
                made[f"{data}: {name}"] = accuracy(seeds)
    for row in (row for row in rows if row["task"] == "guard"):
        otter, *probes = row["rows"]
        for name, shown in (("Otter", otter), ("best probe", max(probes, key=lambda each: each["auc"]))):
            low, high = shown["auc_ci95"]
            made[f"guard, AUC: {name}"] = f"{shown['auc']:.3f} ({low:.3f} to {high:.3f})"
    for row in (row for row in rows if row["task"] == "cost"):
        made["inserted"] = f"{row['share']:.1%}"
        made["time with the stream"] = f"{row['time']:.2f} ({row['time_ci95'][0]:.2f} to {row['time_ci95'][1]:.2f})"
    return made


def show(out: Path) -> None:
    """Prints the table, and writes it with the figure: `OUT/table.md`, `OUT/bases.png` and `OUT/bases.svg`."""
    rows = read(out)
    bases = [cells([row for row in rows if row["base"] == base]) for base in dict.fromkeys(row["base"] for row in rows)]
    headings = list(dict.fromkeys(heading for base in bases for heading in base))
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    lines += ["| " + " | ".join(base.get(heading, "") for heading in headings) + " |" for base in bases]
    text = "\n".join(lines) + "\n\nIn brackets: 95% intervals, by bootstrap over pairs, texts or rounds.\n"
    write_text(out / "table.md", text)
    print(text)
    pairs = [row for row in rows if row["task"] == "preference"]
    sets = dict.fromkeys(row["data"] for row in pairs)
    drawn = [each for data in sets for rival in RIVALS for each in differences(pairs, data, rival)]
    if drawn:
        draw(out / "bases.png", drawn)


def draw(path: Path, rows: list[Row]) -> None:
    """Draws the differences against the bases' sizes.

    Raises:
        OtterError: matplotlib is not installed, or nothing can be written.
    """
    figure = figures.new_figure(8, 4.5)
    (axes,) = figures.new_axes(figure)
    figures.scatter(axes, rows, "parameters", "points")
    for method in dict.fromkeys(row["method"] for row in rows):
        line = [row for row in rows if row["method"] == method]
        axes.plot([row["parameters"] for row in line], [row["points"] for row in line], color=figures.RIVAL, zorder=1)
    axes.axhline(0, color=figures.GRID, zorder=0)
    axes.set_xscale("log")
    sizes = sorted({row["parameters"] for row in rows})
    axes.set_xticks(sizes, [f"{size / 10**6:,.0f} M" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="parameters of the base", ylabel="preference accuracy, points")
    worst = min(rows, key=lambda row: row["points"] if not math.isnan(row["points"]) else math.inf)
    title = "Otter is ahead on every base" if worst["points"] > 0 else "Otter is not ahead everywhere"
    figures.set_title(axes, title)
    figures.write_figure(path, figure)
