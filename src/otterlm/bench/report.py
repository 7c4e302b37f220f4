"""Writes a run's results as JSON, with the machine they were measured on, and as a plot."""

import functools
import json
import math
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from otterlm.errors import OtterError
from otterlm.files import write_files, write_text


def machine() -> dict[str, Any]:
    """Returns what numbers depend on: processor, accelerator, threads and versions."""
    versions = {}
    for package in ("otter-lm", "torch", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def half_interval(values: torch.Tensor) -> float:
    """Returns half of a 95% interval of the mean of some values, `[n]`."""
    return 1.96 * float(values.std()) / math.sqrt(len(values))


def write(
    out: Path,
    task: str,
    rows: list[dict[str, Any]],
    settings: dict[str, Any],
    x: str,
    y: str,
    mark: str | None = None,
    along: str | None = None,
) -> None:
    """Writes `OUT/TASK.json`, with the machine, and `OUT/TASK.png`.

    Args:
        out: a folder; made if need be.
        task: what was measured.
        rows: with `method`.
        settings: more that the numbers depend on.
        x, y: the columns drawn against each other.
        mark: the column that sizes the marks, from 0 on; None: all alike.
        along: the column along which the marks of a method are joined by a line, and that labels them; None: no lines.

    Raises:
        OtterError: nothing can be written, or matplotlib is not installed; the JSON is written first.
    """
    out.mkdir(parents=True, exist_ok=True)
    result = {"task": task, "settings": settings, "machine": machine(), "rows": rows}
    write_text(out / f"{task}.json", json.dumps(result, indent=2) + "\n")
    figure = new_figure(7, 4.5)
    _plot(figure.subplots(), rows, x, y, mark, along)
    write_figure(out / f"{task}.png", figure)


def new_figure(width: float, height: float) -> Any:
    """Makes an empty figure of matplotlib, width and height in inches.

    Raises:
        OtterError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise OtterError("a plot needs matplotlib: pip install 'otter-lm[bench]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def write_figure(path: Path, figure: Any) -> None:
    """Writes a figure as PNG. Errors are those of `otterlm.files.write_files`."""
    write_files(path.parent, {path.name: functools.partial(figure.savefig, dpi=130, format="png")})


def _plot(axes: Any, rows: list[dict[str, Any]], x: str, y: str, mark: str | None, along: str | None) -> None:
    largest = max((row[mark] for row in rows), default=0) if mark else 0
    for method in dict.fromkeys(row["method"] for row in rows):
        drawn = [row for row in rows if row["method"] == method and None not in (row[x], row[y])]
        sizes = [30 + 400 * row[mark] / largest if mark and largest else 40 for row in drawn]
        marks = axes.scatter([row[x] for row in drawn], [row[y] for row in drawn], s=sizes, label=method, alpha=0.7)
        if along and len(drawn) > 1:
            _join(axes, sorted(drawn, key=lambda row: row[along]), x, y, along, marks.get_facecolor()[0])
    sized = f"; size of a mark: {mark.replace('_', ' ')}" if mark else ""
    axes.set(xlabel=x.replace("_", " ") + sized, ylabel=y.replace("_", " "))
    values = [row[x] for row in rows if row[x] is not None]
    if min(values, default=0) > 0 and max(values) > 20 * min(values):
        axes.set_xscale("log")
    axes.legend(fontsize="small", markerscale=0.5)


def _join(axes: Any, rows: list[dict[str, Any]], x: str, y: str, along: str, colour: Any) -> None:
    """Joins marks in their order, and labels each."""
    axes.plot([row[x] for row in rows], [row[y] for row in rows], color=colour)
    for row in rows:
        axes.annotate(f"{row[along]:g}", (row[x], row[y]), textcoords="offset points", xytext=(4, 4), fontsize="small")
