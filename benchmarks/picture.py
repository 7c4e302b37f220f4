"""Draws the moving picture of README from recorded runs: a prompt that the base answers alone and guided, and a text
that the guard ends.

python benchmarks/picture_runs.py    # runs SmolLM2-135M with the shipped adapters
python benchmarks/picture.py         # draws what was recorded
"""

import html
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent.parent / "docs" / "assets"
RUN, PICTURE = ASSETS / "guided.json", ASSETS / "guided.svg"
# A phone shows the picture 358 pixels wide, so 14 pixels of 440 are 11 there.
WIDTH, MARGIN, LINE, LETTER = 440, 16, 25, 8.4
COLUMNS = int((WIDTH - 2 * MARGIN) / LETTER)
SECONDS, WRITING = 18, 0.75
"""The seconds of a turn, and the share of them in which the tokens come; then the whole picture stands."""
LOW, MIDDLE, HIGH = (240, 160, 80), (244, 245, 247), (110, 170, 230)
"""Orange, white and blue differ for colour-blind eyes, too, and dark text is readable on all three."""
NAMES = {"original": "the base alone", "guided": "guided by the reward"}
STYLE = """
    text { font: 14px system-ui, "Segoe UI", "Liberation Sans", Helvetica, Arial, sans-serif; fill: #1f2328 }
    .title { font-size: 16px; font-weight: 700 }
    .small { fill: #59636e }
    .otter { fill: #9a4607; font-weight: 700 }
    .panel { fill: #ffffff; stroke: #d0d7de }
    .token { font-family: ui-monospace, "DejaVu Sans Mono", "Liberation Mono", Menlo, Consolas, monospace }
    .on { fill: #14181f }
    g > rect:not(.stop) { shape-rendering: crispEdges }
    .grid { stroke: #d0d7de }
    .mean { stroke: #59636e; stroke-dasharray: 3 4 }
    .stop { fill: #a3260d }
    .end { fill: #ffffff; font-weight: 700 }
    .original { stroke: #59636e; stroke-width: 2.5; fill: none }
    .guided { stroke: #b45309; stroke-width: 2.5; fill: none }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .small { fill: #9198a1 }
      .otter { fill: #ffa657 }
      .panel { fill: #14181f; stroke: #3d444d }
      .on { fill: #14181f }
      .grid { stroke: #3d444d }
      .mean { stroke: #9198a1 }
      .stop { fill: #ff9d84 }
      .end { fill: #14181f }
      .original { stroke: #9198a1 }
      .guided { stroke: #ffa657 }
    }"""


@dataclass(frozen=True, slots=True)
class Scale:
    """The scale has the typical range of a reward: two spreads below and above the mean of the base's responses."""

    low: float
    high: float

    def share(self, reward: float) -> float:
        """Returns 0 at the low end and 1 at the high one."""
        return min(max((reward - self.low) / (self.high - self.low), 0.0), 1.0)

    def colour(self, reward: float) -> str:
        """Returns the colour of a token with this reward, as `#rrggbb`."""
        share = 2 * self.share(reward) - 1  # [-1, 1]
        end = HIGH if share > 0 else LOW
        mixed = (round(m + abs(share) * (e - m)) for m, e in zip(MIDDLE, end, strict=True))
        return "#" + "".join(f"{part:02x}" for part in mixed)


def lay_out(pieces: list[str]) -> list[tuple[int, int, str]]:
    """Returns row, column and letters of each piece. Rows break before a word, and where the text breaks."""
    laid, row, column = [], 0, 0
    for piece in pieces:
        if "\n" in piece:
            row, column = row + (1 if column else 0), 0
            piece = piece.strip("\n")
        if column + len(piece) > COLUMNS:
            row, column, piece = row + 1, 0, piece.lstrip(" ")
        laid.append((row, column, piece))
        column += len(piece)
    return laid


def draw(run: dict[str, Any]) -> str:
    """Returns the picture as SVG. Where nothing moves, it shows the end of the run."""
    scale = Scale(*run["range"])
    finals = {name: run[name]["rewards"][-1] for name in NAMES}
    steps = max(len(run[name]["pieces"]) for name in NAMES)
    guarded = len(run["guard"]["pieces"])
    alone = f"and alone at {_signed(finals['original'], 1)}. One pass a token."
    title = f"Guided, the reward ends at {_signed(finals['guided'], 1)}"
    body, y = [], 112.0
    for name, label in NAMES.items():
        laid = lay_out(run[name]["pieces"])
        last = len(laid) - 1
        weight = f", weight {run['weight']:g}" if name == "guided" else ""
        emphasis = ' class="otter"' if name == "guided" else ""
        end = f"reward {_signed(finals[name], 2)}"
        body.append(f'  <text{emphasis} x="{MARGIN}" y="{y:g}">{label}{weight}</text>')
        body.append(f'  <text class="small k{last}" x="{WIDTH - MARGIN}" y="{y:g}" text-anchor="end">{end}</text>')
        y += 10
        body += [_token(step, *at, scale.colour(run[name]["rewards"][step]), y) for step, at in enumerate(laid)]
        y += LINE * (laid[-1][0] + 1) + 30
    body += _legend(scale, y - 6)
    part, y = _curve(run, scale, y + 26)
    body += part
    part, y = _guarded(run["guard"], steps, y + 8)
    body += part
    frames = "\n".join(f"      {_frames(step, steps + guarded)}" for step in range(steps + guarded))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:g}" width="600" role="img" '
            'aria-labelledby="t d">',
            f'  <title id="t">{title}</title>',
            f'  <desc id="d">SmolLM2-135M answers: {html.escape(run["prompt"])} Alone: '
            f"{html.escape(''.join(run['original']['pieces']))} Guided: {html.escape(''.join(run['guided']['pieces']))} "
            f"A guard ends a text as {run['guard']['label']}: "
            f"{html.escape(run['guard']['prompt'] + ''.join(run['guard']['pieces']))}</desc>",
            f"  <style>{STYLE}\n    @media (prefers-reduced-motion: no-preference) {{\n{frames}\n    }}\n  </style>",
            f'  <rect class="panel" x="1" y="1" width="{WIDTH - 2}" height="{y - 2:g}" rx="14"/>',
            f'  <text class="title" x="{MARGIN}" y="30">{title},</text>',
            f'  <text class="title" x="{MARGIN}" y="50">{alone}</text>',
            f'  <text class="small" x="{MARGIN}" y="78">“{html.escape(run["prompt"])}”</text>',
            *body,
            "</svg>\n",
        ]
    )


def _signed(number: float, digits: int) -> str:
    return f"{number:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _token(step: int, row: int, column: int, letters: str, colour: str, y: float) -> str:
    """Returns a token on its colour, which appears at a step."""
    x, top, wide = MARGIN + column * LETTER, y + row * LINE, len(letters) * LETTER
    box = f'<rect x="{x:.1f}" y="{top:g}" width="{wide:.1f}" height="21" fill="{colour}"/>'
    return f'  <g class="k{step}">{box}{_letters(row, column, letters, y, "token on").strip()}</g>'


def _letters(row: int, column: int, letters: str, y: float, name: str = "token") -> str:
    """Returns the letters of a token. Their length is fixed, so that another font changes no position."""
    if not letters.strip():
        return ""
    wide = len(letters) * LETTER
    length = f'textLength="{wide:.1f}" lengthAdjust="spacingAndGlyphs" xml:space="preserve"'
    at = f'x="{MARGIN + column * LETTER:.1f}" y="{y + row * LINE + 15:g}"'
    return f'  <text class="{name}" {at} {length}>{html.escape(letters)}</text>'


def _frames(step: int, steps: int) -> str:
    """Returns the moment at which a step appears; all vanish together when the turn is over."""
    shown = 2 + 100 * WRITING * step / steps
    moment = f"0%, {shown:.1f}% {{ opacity: 0 }} {shown + 0.4:.1f}%, 100% {{ opacity: 1 }}"
    return f"@keyframes k{step} {{ {moment} }} .k{step} {{ animation: k{step} {SECONDS}s infinite }}"


def _legend(scale: Scale, y: float) -> list[str]:
    ends = [scale.low + (scale.high - scale.low) * n / 6 for n in range(7)]
    boxes = [
        f'  <rect x="{MARGIN + 110 + 16 * n}" y="{y - 11:g}" width="16" height="14" fill="{scale.colour(end)}"/>'
        for n, end in enumerate(ends)
    ]
    right = MARGIN + 110 + 16 * 7 + 8
    return [
        f'  <text class="small" x="{MARGIN}" y="{y:g}">reward so far</text>',
        *boxes,
        f'  <text class="small" x="{right}" y="{y:g}">{_signed(scale.low, 1)} to {_signed(scale.high, 1)}</text>',
    ]


def _curve(run: dict[str, Any], scale: Scale, top: float) -> tuple[list[str], float]:
    """Returns the rewards along the tokens, and where the picture ends."""
    left, right, height = MARGIN + 40, WIDTH - 92, 110
    rewards = [reward for name in NAMES for reward in run[name]["rewards"]]
    low, high = math.floor(min(*rewards, scale.low)), math.ceil(max(*rewards, scale.high))
    steps = max(len(run[name]["rewards"]) for name in NAMES)

    def at(step: int, reward: float) -> str:
        return f"{left + (right - left) * step / (steps - 1):.1f} {top + height * (high - reward) / (high - low):.1f}"

    marks = []
    mean = (scale.low + scale.high) / 2
    for tick, digits, line in ((low, 0, "grid"), (mean, 1, "mean"), (high, 0, "grid")):
        x, y = at(0, tick).split()
        marks.append(f'  <path class="{line}" d="M{x} {y}h{right - left}"/>')
        shown = _signed(tick, digits)
        marks.append(f'  <text class="small" x="{left - 6}" y="{float(y) + 5:g}" text-anchor="end">{shown}</text>')
    for name in NAMES:
        values = run[name]["rewards"]
        for step in range(1, len(values)):
            line = f"M{at(step - 1, values[step - 1])}L{at(step, values[step])}"
            marks.append(f'  <path class="{name} k{step}" stroke-linecap="round" d="{line}"/>')
        x, y = at(len(values) - 1, values[-1]).split()
        emphasis = "otter" if name == "guided" else "small"
        label = "guided" if name == "guided" else "base alone"
        marks.append(
            f'  <text class="{emphasis} k{len(values) - 1}" x="{float(x) + 8:g}" y="{float(y) + 5:g}">{label}</text>'
        )
    below = top + height + 24
    caption = "dashed: the base's average response"
    marks.append(f'  <text class="small" x="{MARGIN}" y="{below:g}">{caption}</text>')
    return marks, below + 16


def _guarded(run: dict[str, Any], first: int, top: float) -> tuple[list[str], float]:
    """Returns the text that the guard ends, its first token at a step, and where the picture ends."""
    last = first + len(run["pieces"]) - 1
    words = re.findall(r"\s*\S+", run["prompt"])
    laid = lay_out([*words, *run["pieces"]])
    toxic = f"{run['label']} {1 - run['harmless'][-2]:.2f}"  # a stop comes one token late
    y = top + 44
    body = [
        f'  <path class="grid" d="M{MARGIN} {top:g}H{WIDTH - MARGIN}"/>',
        f'  <text class="title" x="{MARGIN}" y="{top + 28:g}">A guard ends a toxic text</text>',
        f'  <text class="small k{last}" x="{WIDTH - MARGIN}" y="{top + 28:g}" text-anchor="end">{toxic}</text>',
        *(_letters(*at, y) for at in laid[: len(words)]),
    ]
    scale = Scale(0.0, 1.0)
    for step, at in enumerate(laid[len(words) :]):
        body.append(_token(first + step, *at, scale.colour(run["harmless"][step]), y))
    row, column, letters = laid[-1]
    end, column = f"stopped: {run['label']}", column + len(letters) + 1
    if column + len(end) + 1 > COLUMNS:
        row, column = row + 1, 0
    x, below, wide = MARGIN + column * LETTER, y + row * LINE, (len(end) + 1) * LETTER
    body.append(
        f'  <g class="k{last}"><rect class="stop" x="{x:.1f}" y="{below:g}" width="{wide:.1f}" height="21" rx="4"/>'
        f'<text class="end" x="{x + wide / 2:.1f}" y="{below + 15:g}" text-anchor="middle">{end}</text></g>'
    )
    below += LINE + 20
    body.append(
        f'  <text class="small" x="{MARGIN}" y="{below:g}">blue: harmless so far, orange: {run["label"]}</text>'
    )
    return body, below + 16


def main() -> None:
    """Draws the recorded runs."""
    PICTURE.write_text(draw(json.loads(RUN.read_text())))


if __name__ == "__main__":
    main()
