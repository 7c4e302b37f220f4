"""Prints the table of `benchmarks/bases.py` and draws its figure, of all rows that are there."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from otterlm.bench import figures
from otterlm.errors import OtterError
from otterlm.files import write_text
from otterlm.training.evaluation.bootstrap import interval, mean_of
from otterlm.training.evaluation.guard_metrics import PERCENTS

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
    return f"{right.mean():.1%} ({100 * low:.1f}\u2013{100 * high:.1f})"


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
        name = f"Otter minus {RIVALS[rival]}"
        made.append(
            {"method": name, "parameters": parameters, "points": float(apart.mean()), "points_ci95": ends, "base": base}
        )
    return made


def ends_of(value: float, interval: Sequence[float], digits: int) -> str:
    """Returns a number with its interval."""
    low, high = interval
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def preferences(rows: Sequence[Row], data: str) -> list[dict[str, str]]:
    """Returns the table of one set of pairs, a row a base: accuracies, and what Otter is ahead by, in points."""
    apart = {rival: {row["base"]: row for row in differences(rows, data, rival)} for rival in RIVALS}
    made = []
    for base in dict.fromkeys(row["base"] for row in rows if row["data"] == data):
        seeds = [row for row in rows if (row["base"], row["data"]) == (base, data)]
        line = named(seeds[0])
        for method, name in {"otter": "Otter", **RIVALS}.items():
            if some := [row for row in seeds if row["method"] == method]:
                line[name] = accuracy(some)
        for rival, name in RIVALS.items():
            if base in apart[rival]:
                row = apart[rival][base]
                line[f"Otter minus {name}"] = ends_of(row["points"], row["points_ci95"], 1)
        made.append(line)
    return made


def solutions(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Returns the table of solutions, a row a base and method: AUC over all questions, the mean over the seeds of the
    number and of the ends of its interval."""
    made = []
    for base in dict.fromkeys(row["base"] for row in rows):
        seeds = [row for row in rows if row["base"] == base]
        for method in ("otter", "probe", "length", "lead"):
            line = named(seeds[0]) | {"method": "Otter" if method == "otter" else method}
            for percent in dict.fromkeys(each["percent"] for each in seeds[0]["rows"]):
                areas = [
                    each[method]
                    for seed in seeds
                    for each in seed["rows"]
                    if (each["compare"], each["percent"]) == ("all_questions", percent)
                ]
                value, *ends = torch.tensor(areas).mean(dim=0).tolist()
                line[f"{percent}%"] = ends_of(value, ends, 2)
            made.append(line)
    return made


def guards(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Returns the table of guards, a row a base: AUC of Otter and of the best probe on each set of texts."""
    made = []
    for row in rows:
        line = named(row)
        for data in dict.fromkeys(each["data"] for each in row["rows"]):
            otter, *probes = (each for each in row["rows"] if each["data"] == data)
            for name, shown in (("Otter", otter), ("best probe", max(probes, key=lambda each: each["auc"]))):
                line[f"{data}: {name}"] = ends_of(shown["auc"], shown["auc_ci95"], 3)
        made.append(line)
    return made


def leads(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Returns the table of what the guards are ahead by in AUC after parts of the tokens, a row a base, set and
    rival."""
    made = []
    for row in rows:
        for each in row["rows"]:
            if not each.get("leads"):  # of the guard itself, and of rows from before there were leads
                continue
            parts = zip(PERCENTS, each["leads"], each["leads_ci95"], strict=True)
            cells = {f"{percent}%": ends_of(lead, ends, 3) for percent, lead, ends in parts}
            made.append(named(row) | {"data": each["data"], "over": each["kind"]} | cells)
    return made


def passages(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Returns the table of passages, a row a base: the F1 of their characters, alone and with the list of words, and
    the guard's minus the probe's."""
    made = []
    for row in rows:
        line = named(row)
        for each in row["rows"]:
            method = "Otter" if each["method"] == "Otter" else "probe"
            way = ", with the list" if each["listed"] else ""
            line[f"{each['data']}: {method}{way}"] = ends_of(each["span_f1"], each["span_f1_ci95"], 3)
            if "lead" in each:  # not of the guard itself, nor in rows from before there were leads
                line[f"{each['data']}: Otter minus probe{way}"] = ends_of(each["lead"], each["lead_ci95"], 3)
        made.append(line)
    return made


def costs(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Returns the table of space and time, a row a base."""
    return [
        named(row) | {"inserted": f"{row['share']:.1%}", "time": ends_of(row["time"], row["time_ci95"], 2)}
        for row in rows
    ]


def named(row: Row) -> dict[str, str]:
    """Returns the first cells of a line."""
    return {"base": Path(row["base"]).name, "parameters": f"{row['parameters'] / 1e6:,.0f} M"}


def markdown(lines: Sequence[dict[str, str]]) -> str:
    """Writes lines as a table."""
    headings = list(dict.fromkeys(heading for line in lines for heading in line))
    rows = [headings, ["---"] * len(headings), *([line.get(name, "") for name in headings] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def show(out: Path) -> None:
    """Prints the tables, and writes them with the figure: `OUT/table.md`, `OUT/bases.png` and `OUT/bases.svg`."""
    rows = read(out)
    tasks = "preference", "solutions", "guard", "passages", "cost"
    of = {task: [row for row in rows if row["task"] == task] for task in tasks}
    pairs = of["preference"]
    sets = list(dict.fromkeys(row["data"] for row in pairs))
    tables = {f"Preference accuracy, {data}": preferences(pairs, data) for data in sets}
    tables["AUC of whether a solution is right, after a part of it"] = solutions(of["solutions"])
    tables["AUC of guards"] = guards(of["guard"])
    tables["AUC of guards minus that of a rival"] = leads(of["guard"])
    tables["F1 of marked passages"] = passages(of["passages"])
    tables["Space and time"] = costs(of["cost"])
    parts = [f"{title}\n\n{markdown(lines)}" for title, lines in tables.items() if lines]
    text = "\n".join([*parts, "In brackets: 95% intervals, by bootstrap over pairs, questions, texts or rounds.\n"])
    write_text(out / "table.md", text)
    print(text)
    drawn = {data: [each for rival in RIVALS for each in differences(pairs, data, rival)] for data in sets}
    if drawn := {data: rows for data, rows in drawn.items() if rows}:
        draw(out / "bases.png", drawn)


def draw(path: Path, drawn: Mapping[str, Sequence[Row]]) -> None:
    """Draws the differences against the bases' sizes, a panel a set of pairs.

    Raises:
        OtterError: matplotlib is not installed, or nothing can be written.
    """
    figure = figures.new_figure(5 * len(drawn), 4)
    for axes, (data, rows) in zip(figures.new_axes(figure, len(drawn)), drawn.items(), strict=True):
        methods = list(dict.fromkeys(row["method"] for row in rows))
        for number, method in enumerate(methods):
            line = [row for row in rows if row["method"] == method]
            values = [row["points"] for row in line]
            below, above = ([abs(row["points_ci95"][end] - row["points"]) for row in line] for end in (0, 1))
            axes.errorbar(
                [row["parameters"] * 1.04 ** (number - 0.5) for row in line],  # side by side
                values,
                yerr=(below, above),
                label=method,
                color=(figures.OTTER, figures.RIVAL)[number],
                marker="os"[number],
            )
        axes.axhline(0, color=figures.RIVAL, linewidth=0.8, zorder=0)
        axes.set_xscale("log")
        sizes = sorted({row["parameters"] for row in rows})
        axes.set_xticks(sizes, [f"{size / 10**6:,.0f} M" for size in sizes])
        axes.set_xticks([], minor=True)
        axes.set(xlabel="parameters of the base", ylabel="preference accuracy, points")
        axes.legend(frameon=False)
        worst = min(row["points"] for row in rows)
        figures.set_title(axes, f"{data}: ahead on every base" if worst > 0 else f"{data}: not ahead everywhere")
    figures.write_figure(path, figure)
