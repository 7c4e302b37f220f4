"""Draws the figures of the benches in one style: Otter in one strong colour, rivals in grey, labels at the marks, the
intervals, and a title that states the finding. Each is written as SVG and as PNG."""

import functools
import math
import operator
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from otterlm.errors import OtterError
from otterlm.files import write_files

OTTER, RIVAL, GRID = "#b45309", "#6e7781", "#d0d7de"
MARKERS = "os^DvP*X"
"""Rivals have one colour, so each has a mark of its own."""
STEERED = ("guidance", "search")
"""Methods that are Otter's where all of a bench steer by its reward."""
RELATIVE = ("perplexity",)
"""Columns whose half of an interval is a share of the value."""
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": "#424a53",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": "#424a53",
    "ytick.color": "#424a53",
    "svg.fonttype": "none",
    "svg.hashsalt": "otter",
}
Row = Mapping[str, Any]
Better = Literal["higher", "lower"]


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


def new_axes(figure: Any, columns: int = 1) -> list[Any]:
    """Makes the axes of a figure, side by side, in the style."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        return [figure.add_subplot(1, columns, number + 1) for number in range(columns)]


def set_title(axes: Any, text: str) -> None:
    """Writes a title above the left end of the axes."""
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold")


def write_figure(path: Path, figure: Any) -> None:
    """Writes a figure; a `.png` has an SVG beside it. Errors are those of `otterlm.files.write_files`."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        as_png = functools.partial(figure.savefig, dpi=150, format="png")
        as_svg = functools.partial(figure.savefig, format="svg", metadata={"Date": None})
        pictures = {path.name: as_svg if path.suffix == ".svg" else as_png}
        if path.suffix == ".png":
            pictures[path.with_suffix(".svg").name] = as_svg
        write_files(path.parent, pictures)


def is_otter(method: str) -> bool:
    """Returns whether a method is Otter's."""
    return method.startswith("Otter") or method.split(",")[0] in STEERED


def look(method: str, methods: Sequence[str], ours: Collection[str] = ()) -> dict[str, Any]:
    """Returns the colour, the mark and the order of a method's marks; `ours` are methods of Otter's by other names."""
    marker = MARKERS[list(methods).index(method) % len(MARKERS)]
    otters = is_otter(method) or method in ours
    return {"color": OTTER if otters else RIVAL, "marker": marker, "zorder": 4 if otters else 3}


def bounds(row: Row, column: str) -> tuple[float, float] | None:
    """Returns the ends of the 95% interval of a column, where the row has it as `column_ci95`: both ends, or half."""
    interval, value = row.get(f"{column}_ci95"), row[column]
    if interval is None or value is None:
        return None
    if isinstance(interval, list):
        return interval[0], interval[1]
    half = interval * value if column in RELATIVE else interval
    return value - half, value + half


def finding(rows: Sequence[Row], column: str, better: Better, ours: Collection[str] = ()) -> str:
    """Returns a title: the best of Otter's methods and the best rival by a column; the base is no rival.

    `ours` is as for `look`.
    """

    def best(candidates: Sequence[Row]) -> str | None:
        there = [row for row in candidates if row[column] is not None and math.isfinite(row[column])]
        if not there:
            return None
        row = (max if better == "higher" else min)(there, key=lambda row: row[column])
        return f"{row['method']} {row[column]:.3g}"

    otters = [row for row in rows if is_otter(row["method"]) or row["method"] in ours]
    rivals = [row for row in rows if row not in otters and row["method"] not in ("base", "the base")]
    sides = best(otters), best(rivals)
    return f"{in_words(column).capitalize()}: " + "; best rival: ".join(side for side in sides if side is not None)


def in_words(column: str) -> str:
    """Returns a column's name for people."""
    return column.replace("_", " ")


def scatter(
    axes: Any,
    rows: Sequence[Row],
    x: str,
    y: str,
    mark: str | None = None,
    along: str | None = None,
    ours: Collection[str] = (),
) -> None:
    """Draws rows as marks, each labelled with its method, and with its intervals.

    Args:
        axes: of matplotlib.
        rows: with `method`.
        x, y: the columns drawn against each other.
        mark: the column that sizes the marks, from 0 on; None: all alike.
        along: the column along which the marks of a method are joined by a line, and that labels them; None: no lines.
        ours: see `look`.
    """
    largest = max((row[mark] for row in rows), default=0) if mark else 0
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for method in methods:
        drawn = [row for row in rows if row["method"] == method and None not in (row[x], row[y])]
        style = look(method, methods, ours)
        sizes = [36 + 360 * row[mark] / largest if mark and largest else 48 for row in drawn]
        axes.scatter([row[x] for row in drawn], [row[y] for row in drawn], s=sizes, alpha=0.85, **style)
        for row in drawn:
            _draw_intervals(axes, row, x, y, style["color"])
        names = [method] * len(drawn)
        if along is not None and len(drawn) > 1:
            drawn = sorted(drawn, key=operator.itemgetter(along))
            axes.plot([row[x] for row in drawn], [row[y] for row in drawn], color=style["color"])
            names = [f"{'' if number else method} {row[along]:g}".strip() for number, row in enumerate(drawn)]
        for name, row in zip(names, drawn, strict=True):
            _label(axes, name, (row[x], row[y]), style["color"])
    sized = f"; size of a mark: {in_words(mark)}" if mark else ""
    axes.set(xlabel=in_words(x) + sized, ylabel=in_words(y))
    values = [row[x] for row in rows if row[x] is not None]
    if min(values, default=0) > 0 and max(values) > 20 * min(values):
        axes.set_xscale("log")
    axes.margins(0.14)


def _draw_intervals(axes: Any, row: Row, x: str, y: str, colour: str) -> None:
    for column, line in ((x, axes.hlines), (y, axes.vlines)):
        ends = bounds(row, column)
        if ends is not None:
            line(row[y if column == x else x], *ends, color=colour, linewidth=1.2, alpha=0.7)


def _label(axes: Any, text: str, at: tuple[float, float], colour: str) -> None:
    bold = "bold" if colour == OTTER else "normal"
    axes.annotate(text, at, (6, 5), textcoords="offset points", fontsize=8.5, color=colour, fontweight=bold)


def lines(axes: Any, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Draws curves by method, each labelled at its end."""
    for method, (xs, ys) in curves.items():
        style = look(method, list(curves))
        axes.plot(xs, ys, markevery=max(1, len(xs) // 8), markersize=4, linewidth=1.6, **style)
        _label(axes, method, (xs[-1], ys[-1]), style["color"])
    axes.margins(x=0.2)
