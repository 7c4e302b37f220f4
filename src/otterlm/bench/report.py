"""A run's results: the machine they are of, as JSON, and as a plot."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from otterlm.files import write_text


def machine() -> dict[str, Any]:
    """What numbers depend on: processor, accelerator, threads and versions."""
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


def write(out: Path, task: str, rows: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Writes `OUT/TASK.json`, with the machine, and `OUT/TASK.png`."""
    out.mkdir(parents=True, exist_ok=True)
    result = {"task": task, "settings": settings, "machine": machine(), "rows": rows}
    write_text(out / f"{task}.json", json.dumps(result, indent=2) + "\n")
    plot_overhead(rows, out / f"{task}.png")


def plot_overhead(rows: list[dict[str, Any]], path: Path) -> None:
    """Extra time against extra space, one mark a method and setting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        space = [1 + 100 * (1 - row["extra_space_saved"]) for row in own]
        axes.scatter([row["measured_slowdown"] for row in own], space, label=method, alpha=0.7)
    axes.set(
        xscale="log", yscale="log", xlabel="time, of plain decoding's", ylabel="1 + extra parameters, % of the base"
    )
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)
