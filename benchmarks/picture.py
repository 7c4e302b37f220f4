"""Draws the moving picture of README from a recorded run: one prompt, the base alone beside guidance.

python benchmarks/picture.py --record    # runs SmolLM2-135M with the shipped adapter
python benchmarks/picture.py             # draws what was recorded
"""

import html
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent.parent / "docs" / "assets"
ADAPTER = Path(__file__).parent.parent / "adapters" / "smollm2-135m-harmless"
RUN, PICTURE = ASSETS / "guided.json", ASSETS / "guided.svg"
WEIGHT, TOKENS = 1.0, 48
PROMPT = 2
"""Which of the demo's three prompts. After the first one guidance changes the words and hardly the reward."""

# A phone shows the picture 358 pixels wide, so 14 pixels of 440 are 11 there.
WIDTH, MARGIN, LINE, LETTER = 440, 16, 25, 8.4
COLUMNS = int((WIDTH - 2 * MARGIN) / LETTER)
SECONDS, WRITING = 14, 0.72
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
    .grid { stroke: #d0d7de }
    .original { stroke: #59636e; stroke-width: 2.5; fill: none }
    .guided { stroke: #b45309; stroke-width: 2.5; fill: none }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .small { fill: #9198a1 }
      .otter { fill: #ffa657 }
      .panel { fill: #14181f; stroke: #3d444d }
      .on { fill: #14181f }
      .grid { stroke: #3d444d }
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


def record() -> dict[str, Any]:
    """Runs one of the demo's prompts greedily, without and with guidance, and returns tokens and rewards."""
    from otterlm import OtterModel, load_base, load_tokenizer
    from otterlm.cli.demo import reward
    from otterlm.interventions import InterventionSettings

    tokenizer = load_tokenizer("smollm2-135m")
    model = OtterModel.from_pretrained(load_base("smollm2-135m"), ADAPTER)
    part = reward.run(model, tokenizer, "guidance", InterventionSettings(WEIGHT), TOKENS)
    entry = part["prompts"][PROMPT]
    run: dict[str, Any] = {"prompt": entry["prompt"], "weight": WEIGHT, "range": list(part["range"])}
    for name in NAMES:
        pieces = [tokenizer.decode([token], skip_special_tokens=True) for token in entry[name]["tokens"]]
        if "".join(pieces) != entry[name]["text"]:
            raise SystemExit(f"the tokens of {name} are not pieces of its text: choose another prompt")
        run[name] = {"pieces": pieces, "rewards": [round(reward, 3) for reward in entry[name]["rewards"]]}
    return run


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
    curve, y = _curve(run, scale, y + 26)
    body += curve
    frames = "\n".join(f"      {_frames(step, steps)}" for step in range(steps))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:g}" width="600" role="img" '
            'aria-labelledby="t d">',
            f'  <title id="t">{title}</title>',
            f'  <desc id="d">SmolLM2-135M answers: {html.escape(run["prompt"])} Alone: '
            f"{html.escape(''.join(run['original']['pieces']))} Guided: {html.escape(''.join(run['guided']['pieces']))}"
            "</desc>",
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
    """Returns a token on its colour. Its length is fixed, so that another font changes no position."""
    x, top, wide = MARGIN + column * LETTER, y + row * LINE, len(letters) * LETTER
    box = f'<rect x="{x:.1f}" y="{top:g}" width="{wide:.1f}" height="21" fill="{colour}"/>'
    length = f'textLength="{wide:.1f}" lengthAdjust="spacingAndGlyphs" xml:space="preserve"'
    text = f'<text class="token on" x="{x:.1f}" y="{top + 15:g}" {length}>{html.escape(letters)}</text>'
    return f'  <g class="k{step}">{box}{text if letters.strip() else ""}</g>'


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
    left, right, height = MARGIN + 34, WIDTH - 92, 110
    rewards = [reward for name in NAMES for reward in run[name]["rewards"]]
    low, high = math.floor(min(*rewards, scale.low)), math.ceil(max(*rewards, scale.high))
    steps = max(len(run[name]["rewards"]) for name in NAMES)

    def at(step: int, reward: float) -> str:
        return f"{left + (right - left) * step / (steps - 1):.1f} {top + height * (high - reward) / (high - low):.1f}"

    mean = (scale.low + scale.high) / 2
    marks = [f'  <path class="grid" stroke-dasharray="4 4" d="M{at(0, mean)}L{at(steps - 1, mean)}"/>']
    for tick in sorted({low, 0, high}):
        x, y = at(0, tick).split()
        marks.append(f'  <path class="grid" d="M{x} {y}h{right - left}"/>')
        shown = _signed(tick, 0) if tick else "0"
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


def main() -> None:
    """Draws the recorded run; with `--record` runs it first."""
    if "--record" in sys.argv[1:]:
        RUN.write_text(json.dumps(record(), ensure_ascii=False, indent=1) + "\n")
    PICTURE.write_text(draw(json.loads(RUN.read_text())))


if __name__ == "__main__":
    main()
