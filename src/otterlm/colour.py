"""Colours tokens by a number such as their reward, from orange over white to blue, on a terminal and as HTML.

Orange and blue differ for people who see no red or no green, too. Text on the scale is dark: its contrast is at least
7 to 1 everywhere (WCAG 2.2, success criterion 1.4.3, asks for 4.5).
"""

import html
from collections.abc import Iterator, Sequence

from rich.text import Text
from transformers import PreTrainedTokenizerBase

LOW, MIDDLE, HIGH = (240, 150, 60), (248, 248, 248), (106, 172, 230)
"""Red, green and blue of the scale's ends and of its middle."""

INK = "#1a1a1a"
"""Text on the scale."""

STEPS = 32
"""Steps of the scale in HTML."""


def colour(value: float, low: float, high: float) -> str:
    """Returns the background of a number: orange at `low` and below, white midway, blue at `high` and above."""
    share = _share(value, low, high)
    end, part = (HIGH, 2 * share - 1) if share >= 0.5 else (LOW, 1 - 2 * share)
    return _hex([round(middle + part * (far - middle)) for middle, far in zip(MIDDLE, end, strict=True)])


def scale() -> dict[str, str]:
    """Returns the colours of the scale by name: low, middle, high, and ink for text."""
    return {"low": _hex(LOW), "middle": _hex(MIDDLE), "high": _hex(HIGH), "ink": INK}


def colour_range(typical: tuple[float, float] | None, values: Sequence[float]) -> tuple[float, float]:
    """Returns the range of a scale.

    Args:
        typical: of the signal, see `SignalConfig.typical_range`.
        values: all that are shown; their range is the scale's where no other is known.
    """
    return typical or (min(values, default=0.0), max(values, default=0.0))


def coloured(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], values: Sequence[float], low: float, high: float
) -> Text:
    """Returns a text whose tokens have a background from orange (`low`) over white to blue (`high`)."""
    text = Text()
    for piece, value in pieces(tokenizer, tokens, values):
        text.append(piece, style=f"{INK} on {colour(value, low, high)}")
    return text


def legend(low: float, high: float, steps: int = 13) -> Text:
    """Returns a line that shows the scale and what its ends stand for."""
    sign = "+" if low < 0 else ""  # a probability has none
    text = Text(f"{low:{sign}.2f} ")
    for step in range(steps):
        text.append(" ", style=f"{INK} on {colour(step, 0, steps - 1)}")
    return text.append(f" {high:{sign}.2f}")


def coloured_html(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], values: Sequence[float], low: float, high: float
) -> str:
    """Returns the same as HTML, in the classes of `scale_css`. Each token shows its number when pointed at."""
    return "".join(
        f'<i class="c{round(STEPS * _share(value, low, high))}" title="{value:+.3f}">{html.escape(piece)}</i>'
        for piece, value in pieces(tokenizer, tokens, values)
    )


def scale_css() -> str:
    """Returns the classes of `coloured_html`: c0 is at the scale's low end. A page of many tokens stays small."""
    return "".join(f".c{step}{{background:{colour(step, 0, STEPS)}}}" for step in range(STEPS + 1))


def pieces(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], values: Sequence[float]
) -> Iterator[tuple[str, float]]:
    """Yields what each token adds to the text. A character may be spread over several tokens: the last one has it."""
    shown = ""
    for end, value in enumerate(values, start=1):
        # Cleaning up spaces would change what was shown before.
        decoded = tokenizer.decode(tokens[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if not decoded.endswith("\ufffd") or end == len(values):
            yield decoded[len(shown) :], value
            shown = decoded


def _share(value: float, low: float, high: float) -> float:
    return 0.5 if high <= low else min(1.0, max(0.0, (value - low) / (high - low)))


def _hex(parts: Sequence[int]) -> str:
    return "#" + "".join(f"{part:02x}" for part in parts)
