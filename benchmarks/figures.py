"""Draws the figures of `figures.toml` from the tables of `docs/benchmarks`, so that figure and table cannot differ.

python benchmarks/figures.py                 # as SVG, into docs/assets
python benchmarks/figures.py --png FOLDER    # as PNG, too, for slides and papers
"""

import argparse
import math
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
RIVALS = {
    "the base",
    "base, sampled",
    "linear probe",
    "separate model",
    "by separate model",
    "ARGS, cached",
    "ARGS as published",
    "DExperts",
    "prompt lookup, 1 thread",
    "prompt lookup, 2 threads",
    "best of 4, scorer",
    "one sample",
    "best of 4",
    "best of 16",
    "fine-tuned copy",
    "attention probe",
    "bag of words",
}
NUMBER = r"[-+]?\d+(?:\.\d+)?"
# A phone shows a figure 358 pixels wide, so 15 pixels of 440 are 12 there.
WIDTH, RIGHT, ROW = 440, 366, 26
"""The width of a figure, where its axis ends, and the height of a row, in pixels."""
STYLE = """
  <style>
    text { font: 15px system-ui, "Segoe UI", "Liberation Sans", Helvetica, Arial, sans-serif; fill: #1f2328 }
    .title { font-size: 16px; font-weight: 700 }
    .small { fill: #59636e }
    .otter { fill: #9a4607; font-weight: 700 }
    .panel { fill: #ffffff; stroke: #d0d7de }
    .grid { stroke: #d0d7de }
    .mark { stroke: #59636e; fill: #59636e; stroke-width: 2.5 }
    .ours { stroke: #b45309; fill: #b45309; stroke-width: 2.5 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .small { fill: #9198a1 }
      .otter { fill: #ffa657 }
      .panel { fill: #14181f; stroke: #3d444d }
      .grid { stroke: #3d444d }
      .mark { stroke: #9198a1; fill: #9198a1 }
      .ours { stroke: #ffa657; fill: #ffa657 }
    }
  </style>"""


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel shows some rows of one column of a table.

    Attributes:
        table: which table of the page, from 0.
        column: its header.
        rows: first cells of the rows; with the label in the figure, where it is another.
        heading: the text above the rows.
        interval: the header of the column with the interval, where it is another one.
    """

    table: int
    column: str
    rows: list[str | list[str]]
    heading: str | None = None
    interval: str | None = None

    def labels(self) -> Iterator[tuple[str, str]]:
        """Yields each row with its label."""
        for row in self.rows:
            yield (row, row) if isinstance(row, str) else (row[0], row[1])


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure has panels over one axis.

    Attributes:
        page: of `docs/benchmarks`; the figure has its name.
        title: the finding, in two lines.
        axis: what the numbers are.
        limits: of the axis.
        ticks: numbers on the axis.
        neutral: the number at which nothing is gained; its line is stronger.
        unit: after each tick.
        logarithmic: the axis.
        left: where the axis starts, in pixels.
    """

    page: str
    title: list[str]
    axis: str
    limits: tuple[float, float]
    ticks: list[float]
    panels: list[Panel]
    neutral: float | None = None
    unit: str = ""
    logarithmic: bool = False
    left: int = 178

    def x(self, value: float) -> float:
        """Returns where a number is, in pixels."""
        low, high, at = (math.log(n) if self.logarithmic else n for n in (*self.limits, value))
        return round(self.left + (at - low) / (high - low) * (RIGHT - self.left), 1)


def read_figures() -> list[Figure]:
    """Reads `figures.toml`."""
    figures = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())["figure"]
    return [Figure(**each | {"panels": [Panel(**panel) for panel in each["panels"]]}) for each in figures]


FIGURES = read_figures()


def tables(page: str) -> list[dict[tuple[str, str], str]]:
    """Returns the tables of a page: (first cell of a row, header of a column) to the cell, without asterisks."""
    results = []
    for table in re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in row.strip("| ").split("|")] for row in cleaned(table))
        results.append({(row[0], name): cell for row in rows for name, cell in zip(header, row, strict=False)})
    return results


def cleaned(table: str) -> list[str]:
    """Returns the rows of a table without emphasis and footnote marks."""
    return table.replace("*", "").replace(" †", "").splitlines()


def interval(cell: str) -> list[float]:
    """Reads `1 ± 0.5`, `1 (0.5 to 1.5)`, `1 (0.5\u20131.5)` or `1` as [1, 0.5, 1.5] or [1]."""
    numbers = [float(number) for number in re.findall(NUMBER, cell)]
    if "±" in cell:
        return [numbers[0], numbers[0] - numbers[1], numbers[0] + numbers[1]]
    return numbers


def marks(figure: Figure, page: str, y: float) -> Iterator[tuple[float, str]]:
    """Yields the rows of a figure, from `y` on: where each is, and its SVG."""
    cells = tables(page)
    for panel in figure.panels:
        if panel.heading is not None:
            y += 6
            yield y, f'  <text class="small" x="16" y="{y + 4}">{panel.heading}</text>'
            y += ROW - 2
        for row, label in panel.labels():
            cell = cells[panel.table][row, panel.column]
            if panel.interval is not None:
                cell += f" ({cells[panel.table][row, panel.interval]})"
            value, *ends = interval(cell)
            ours = label not in RIVALS
            mark, name = ("ours", ' class="otter"') if ours else ("mark", "")
            svg = [f'  <text{name} x="16" y="{y + 5}">{label}</text>']
            if ends:
                svg.append(f'  <path class="{mark}" d="M{figure.x(ends[0])} {y}H{figure.x(ends[1])}"/>')
            svg.append(f'  <circle class="{mark}" cx="{figure.x(value)}" cy="{y}" r="4.5"/>')
            shown = re.match(f"{NUMBER}%?", cell)
            svg.append(f'  <text{name} x="{WIDTH - 16}" y="{y + 5}" text-anchor="end">{shown and shown[0]}</text>')
            yield y, "\n".join(svg)
            y += ROW


def draw(figure: Figure) -> str:
    """Returns a figure as SVG, by the numbers of its page."""
    page = (DOCS / "benchmarks" / f"{figure.page}.md").read_text()
    top = 82
    rows = list(marks(figure, page, top))
    bottom = rows[-1][0] + ROW - 8
    height = bottom + 48
    middle = (figure.left + RIGHT) / 2
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="640" role="img" '
        'aria-labelledby="t d">',
        f'  <title id="t">{" ".join(figure.title)}</title>',
        f'  <desc id="d">{figure.axis}. The numbers are in the table beside the figure.</desc>{STYLE}',
        f'  <rect class="panel" x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="14"/>',
        *(f'  <text class="title" x="16" y="{30 + 20 * n}">{line}</text>' for n, line in enumerate(figure.title)),
    ]
    for tick in figure.ticks:
        strong = ' stroke-width="2"' if tick == figure.neutral else ""
        at = figure.x(tick)
        svg.append(f'  <path class="grid"{strong} d="M{at} {top - 14}V{bottom}"/>')
        label = f"{tick:g}{figure.unit}"
        svg.append(f'  <text class="small" x="{at}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
    svg += [mark for _, mark in rows]
    svg.append(
        f'  <text class="small" x="{middle}" y="{bottom + 37}" text-anchor="middle">{figure.axis}</text>\n</svg>\n'
    )
    return "\n".join(svg)


def write_png(page: str, folder: Path) -> None:
    """Writes a figure as a PNG of 1,280 pixels, by librsvg's `rsvg-convert`."""
    convert = shutil.which("rsvg-convert")
    if convert is None:
        raise SystemExit("--png needs rsvg-convert (Debian's package librsvg2-bin)")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = DOCS / "assets" / f"{page}.svg"
    subprocess.run([convert, "--width", "1280", "--output", folder / f"{page}.png", drawn], check=True)


def main() -> None:
    """Writes every figure into `docs/assets`."""
    parser = argparse.ArgumentParser(description="Draws the figures of docs/benchmarks.")
    parser.add_argument("--png", type=Path, metavar="FOLDER", help="write PNGs there, too")
    png = parser.parse_args().png
    for figure in FIGURES:
        (DOCS / "assets" / f"{figure.page}.svg").write_text(draw(figure))
        if png is not None:
            write_png(figure.page, png)


if __name__ == "__main__":
    main()
