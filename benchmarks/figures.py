"""Draws the figures of `docs/benchmarks` from the tables beside them, so that a figure and its table cannot differ.

python benchmarks/figures.py
"""

import math
import re
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
    "prompt lookup",
    "best of 4, scorer",
    "one sample",
    "best of 4",
    "best of 16",
}
NUMBER = r"[-+]?\d+(?:\.\d+)?"
# A phone shows a figure 358 pixels wide, so 15 pixels of 440 are 12 there.
WIDTH, ROW = 440, 26
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
        rows: first cells of the rows to their labels in the figure.
        heading: the text above the rows.
    """

    table: int
    column: str
    rows: dict[str, str]
    heading: str | None = None


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
    title: tuple[str, str]
    axis: str
    limits: tuple[float, float]
    ticks: tuple[float, ...]
    panels: tuple[Panel, ...]
    neutral: float | None = None
    unit: str = ""
    logarithmic: bool = False
    left: int = 178

    def x(self, value: float) -> float:
        """Returns where a number is, in pixels."""
        low, high, at = (math.log(n) if self.logarithmic else n for n in (*self.limits, value))
        return round(self.left + (at - low) / (high - low) * (366 - self.left), 1)


def same(*labels: str) -> dict[str, str]:
    """Returns rows whose label is their name."""
    return {label: label for label in labels}


SEEDS = same("linear probe", "Otter", "separate model")
WEIGHTS = same("guidance, weight 8", "guidance, weight 16", "guidance, weight 32")
DISTILLED = WEIGHTS | same("best of 4, scorer", "best of 4, reward")
TOXIC = same("the base", "Otter's contrast", "DExperts")
CARDS = {"CARDS by Otter's reward": "by Otter's reward", "CARDS": "by separate model"}


def weighted(weight: int) -> dict[str, str]:
    """Returns the rows of one weight."""
    labels = {
        "Otter, guidance": "Otter, guidance",
        "Otter, search": "Otter, search",
        "ARGS with a cache": "ARGS, cached",
    }
    return {f"{row}, weight {weight}": label for row, label in labels.items()}


FIGURES = (
    Figure(
        page="preference",
        title=("Otter ranks more pairs right than a probe", "and than a separate reward model"),
        axis="held-out pairs ranked right, 95% interval",
        limits=(50, 75),
        ticks=(50, 60, 70),
        unit="%",
        neutral=50,
        panels=tuple(Panel(0, f"seed {seed}", SEEDS, f"seed {seed}") for seed in range(3)),
    ),
    Figure(
        page="steering",
        title=("Guidance raises the adapter's reward", "further than the best of 16 samples"),
        axis="gain over the base, in spreads, 95% interval",
        limits=(-1, 2.5),
        ticks=(-1, 0, 1, 2),
        neutral=0,
        panels=(
            Panel(
                0,
                "gain, in spreads",
                {
                    "guidance, weight 0.5": "guidance, weight 0.5",
                    "guidance, weight 1": "guidance, weight 1",
                    "guidance, weight 2": "guidance, weight 2",
                    "guidance, weight 4": "guidance, weight 4",
                    "search, weight 1": "search, weight 1",
                    "one sample": "one sample",
                    "best-of-4": "best of 4",
                    "best-of-16": "best of 16",
                },
            ),
        ),
    ),
    Figure(
        page="alignment",
        title=("Guidance follows a separate model's reward", "as far as ARGS does"),
        axis="judge's reward, 95% interval",
        limits=(-0.02, 0.08),
        ticks=(0, 0.04, 0.08),
        neutral=0,
        panels=(
            Panel(0, "judge's reward", {"the base": "the base", "the base, sampled": "base, sampled"}),
            Panel(0, "judge's reward", weighted(1), "weight 1"),
            Panel(0, "judge's reward", weighted(2), "weight 2"),
            Panel(0, "judge's reward", CARDS, "CARDS (sampled)"),
        ),
    ),
    Figure(
        page="detoxification",
        title=("The contrast removes as much toxicity", "as DExperts' two models"),
        axis="with a toxic sample, 95% interval",
        limits=(20, 80),
        ticks=(20, 40, 60, 80),
        unit="%",
        panels=(
            Panel(0, "with a toxic one", TOXIC, "after toxic prompts"),
            Panel(1, "with a toxic one", TOXIC, "after other prompts"),
        ),
    ),
    Figure(
        page="acceleration",
        title=("One draft is a little faster than the base,", "with both cores free"),
        axis="speed, of the base's, 95% interval",
        limits=(0.9, 1.15),
        ticks=(0.9, 1, 1.1),
        neutral=1,
        panels=(
            Panel(
                0,
                "speed, of the base's",
                {
                    "Otter, 1 draft": "Otter, 1 draft",
                    "Otter, 3 drafts": "Otter, 3 drafts",
                    "Otter, 4 drafts": "Otter, 4 drafts",
                    "prompt lookup (Transformers)": "prompt lookup",
                },
            ),
        ),
    ),
    Figure(
        page="distilling",
        title=("Guidance moves the score that it learned;", "best-of-4 by the scorer moves it further"),
        axis="more than the base, 95% interval",
        limits=(-0.1, 0.5),
        ticks=(0, 0.2, 0.4),
        neutral=0,
        left=192,
        panels=(
            Panel(0, "more than the base", DISTILLED, "sentiment (VADER)"),
            Panel(1, "more than the base", DISTILLED, "not toxic (BERT-tiny)"),
        ),
    ),
    Figure(
        page="overhead",
        title=("Guidance takes hardly more time", "than the base, ARGS as published most"),
        axis="time over the base's, logarithmic",
        limits=(1, 100),
        ticks=(1, 10, 100),
        neutral=1,
        logarithmic=True,
        panels=(
            Panel(
                0,
                "time",
                {
                    "Otter, rewards read": "Otter, reading",
                    "Otter, guidance": "Otter, guidance",
                    "Otter, search": "Otter, search",
                    "ARGS with a reward cache": "ARGS, cached",
                    "ARGS as published": "ARGS as published",
                    "DExperts": "DExperts",
                },
            ),
        ),
    ),
)


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
        for row, label in panel.rows.items():
            cell = cells[panel.table][row, panel.column]
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
    middle = (figure.left + 366) / 2
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


def main() -> None:
    """Writes every figure into `docs/assets`."""
    for figure in FIGURES:
        (DOCS / "assets" / f"{figure.page}.svg").write_text(draw(figure))


if __name__ == "__main__":
    main()
