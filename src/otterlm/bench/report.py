"""Writes a run's results as JSON, with the machine they were measured on, and as a figure."""

import json
import math
import os
import platform
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from otterlm.bench import figures
from otterlm.bench.figures import Better
from otterlm.files import write_text


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
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
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
    title: tuple[str, Better],
    mark: str | None = None,
    along: str | None = None,
    ours: Collection[str] = (),
) -> None:
    """Writes `OUT/TASK.json`, with the machine, and the figure `OUT/TASK.svg` and `OUT/TASK.png`.

    Args:
        out: a folder; made if need be.
        task: what was measured.
        rows: with `method`.
        settings: more that the numbers depend on.
        x, y: the columns drawn against each other.
        title: the column that the figure's title compares, and whether higher or lower is better.
        mark, along, ours: see `otterlm.bench.figures.scatter`.

    Raises:
        OtterError: nothing can be written, or matplotlib is not installed; the JSON is written first.
    """
    out.mkdir(parents=True, exist_ok=True)
    result = {"task": task, "settings": settings, "machine": machine(), "rows": rows}
    write_text(out / f"{task}.json", json.dumps(result, indent=2) + "\n")
    figure = figures.new_figure(7, 4.5)
    (axes,) = figures.new_axes(figure)
    figures.scatter(axes, rows, x, y, mark, along, ours)
    figures.set_title(axes, figures.finding(rows, *title, ours))
    figures.write_figure(out / f"{task}.png", figure)
