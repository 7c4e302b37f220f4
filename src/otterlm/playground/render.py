"""Renders responses, curves and costs as HTML. All text is escaped; nothing is fetched."""

import html
import math
from collections.abc import Sequence

from otterlm.colour import token_html
from otterlm.decoding import StreamedToken
from otterlm.playground.session import Comparison

WIDTH, HEIGHT, MARGIN = 1000, 220, 44
ORIGINAL, GUIDED = "#8a8f98", "#d9822b"


def responses(comparison: Comparison, shown: str) -> tuple[str, str]:
    """Renders the original and the guided response. Both are coloured on one scale: that of all their values, or of a
    guard's probabilities from 0 to 1."""
    both = comparison.original, comparison.guided
    everything = [token for tokens in both for token in tokens]
    guard = any(shown in token.labels for token in everything)
    values = [0.0, 1.0] if guard else [token.signals[shown] for token in everything]
    original, guided = (_response(tokens, shown, min(values), max(values)) for tokens in both)
    what = "the guard's alarm rang" if guard else "the reward fell under the threshold"
    stopped = f"<p><em>stopped: {what}</em></p>" if comparison.stopped else ""
    return original, guided + stopped


def _response(tokens: Sequence[StreamedToken], shown: str, low: float, high: float) -> str:
    text = "".join(
        token_html(
            token.text,
            token.signals[shown],
            low,
            high,
            _title(token),
        )
        for token in tokens
        if token.text
    )
    return f'<div class="response">{text}</div>'


def _title(token: StreamedToken) -> str:
    """Returns what a token says when pointed at: the number of each adapter, and each label of a guard."""
    numbers = [f"{name} {value:+.3f}" for name, value in token.signals.items()]
    labels = [f"{label} {share:.2f}" for shares in token.labels.values() for label, share in shares.items()]
    return ", ".join([*numbers, *labels])


def curve(comparison: Comparison, shown: str, threshold: float, length: int) -> str:
    """Draws the signal of both responses, token by token, as an SVG.

    Args:
        comparison: both responses.
        shown: the adapter whose signal is drawn.
        threshold: drawn where it is finite.
        length: tokens that the horizontal axis has room for.
    """
    original = [token.signals[shown] for token in comparison.original]
    guided = [token.signals[shown] for token in comparison.guided]
    levels = [threshold] if math.isfinite(threshold) else []
    drawn = [*levels, *original, *guided]
    low, high = min(drawn), max(drawn)

    def x(index: int) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * index / max(1, length - 1)

    def y(value: float) -> float:
        return HEIGHT - MARGIN / 2 - (HEIGHT - MARGIN) * (value - low) / ((high - low) or 1.0)

    parts = [
        f'<path d="M{x(0):.1f} {y(value):.1f}H{x(length - 1):.1f}" stroke="currentColor" stroke-dasharray="6 6"/>'
        for value in levels
    ]
    lines = ("original", ORIGINAL, original), ("guided", GUIDED, guided)
    for number, (name, colour, values) in enumerate(lines):
        points = " ".join(f"{x(index):.1f},{y(value):.1f}" for index, value in enumerate(values))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(f'<text x="{MARGIN + 80 * number}" y="14" fill="{colour}">{name}</text>')
    for value in (low, high):
        parts.append(
            f'<text x="{MARGIN - 6}" y="{y(value) + 4:.1f}" text-anchor="end" fill="currentColor">{value:.1f}</text>'
        )
    title = f"<title>{html.escape(shown)} of every token</title>"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" font-size="13" role="img">{title}{"".join(parts)}</svg>'


def cost(comparison: Comparison, base_bytes: int, inserted_bytes: int) -> str:
    """Says what the guided response costs beside the original, in a line."""
    time = "" if comparison.slowdown is None else f"<b>{comparison.slowdown:+.0%}</b> time per token, "
    space = f"<b>{inserted_bytes / 2**20:.1f} MiB</b> inserted ({inserted_bytes / base_bytes:.1%} of the base)"
    exact = "is" if comparison.exact else "is NOT"
    return f"<p>{time}{space}. The original {exact} what the base says alone, token for token.</p>"


def problem(message: str) -> str:
    """Says what is wrong with the input, in a line."""
    return f'<p role="alert">{html.escape(" ".join(message.split()))}</p>'
