"""Draws curves and histograms as SVG. Colours are the page's CSS variables, so that they fit light and dark."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 22, 14, 46
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Axes:
    """The axes are two ranges with their labels.

    Attributes:
        x, y: lowest and highest value.
        labels: of both.
        percent: whether both count in percent of 1.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    labels: tuple[str, str]
    percent: tuple[bool, bool] = (False, False)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns where a point is drawn."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1.0)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1.0)
        return LEFT + (WIDTH - LEFT - RIGHT) * across, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * up


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Returns round numbers inside a range."""
    rough = (high - low) / most
    if not rough > 0:
        return [low]
    power = 10 ** math.floor(math.log10(rough))
    step = power * next(each for each in (1, 2, 5, 10) if each * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def curve(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    title: str,
    band: Sequence[tuple[float, float]] = (),
    reference: Sequence[tuple[float, float]] = (),
) -> str:
    """Draws a curve.

    Args:
        axes: see there.
        points: of the curve.
        title: what it shows, for people who do not see it.
        band: the lowest and highest value at each point.
        reference: points of a dashed line, such as what chance gives.
    """
    parts = []
    if band:
        upper = [(x, high) for (x, _), (_, high) in zip(points, band, strict=True)]
        lower = [(x, low) for (x, _), (low, _) in zip(points, band, strict=True)]
        parts.append(f'<polygon class="band" points="{_points(axes, [*upper, *reversed(lower)])}"/>')
    if reference:
        parts.append(f'<polyline class="reference" points="{_points(axes, reference)}"/>')
    parts.append(f'<polyline class="line" points="{_points(axes, points)}"/>')
    if len(points) <= 20:
        for x, y in points:
            across, up = axes.at(x, y)
            parts.append(f'<circle class="dot" cx="{across:.1f}" cy="{up:.1f}" r="3.5"><title>{y:.3f}</title></circle>')
    return _svg(axes, parts, title)


def histogram(groups: Mapping[str, Sequence[float]], span: tuple[float, float], label: str, title: str) -> str:
    """Draws the shares of numbers in each of twenty ranges, a group of numbers over the other.

    Args:
        groups: one or two, by name; the first is drawn in the scale's blue, the second in its orange.
        span: lowest and highest number; what lies outside counts at the ends.
        label: of the numbers.
        title: what it shows, for people who do not see it.
    """
    bins = 20
    low, high = span
    shares = {name: _shares(values, low, high, bins) for name, values in groups.items()}
    most = max((share for each in shares.values() for share in each), default=0.0) or 1.0
    axes = Axes((low, high), (0.0, most), (label, "share of the texts"), (False, True))
    parts = []
    for number, each in enumerate(shares.values()):
        points = [(low, 0.0)]
        for index, share in enumerate(each):
            edges = (low + (high - low) * (index + side) / bins for side in (0, 1))
            points += [(edge, share) for edge in edges]
        parts.append(f'<polygon class="bars bars-{number}" points="{_points(axes, [*points, (high, 0.0)])}"/>')
    return _svg(axes, parts, title)


def _shares(values: Sequence[float], low: float, high: float, bins: int) -> list[float]:
    counts = [0] * bins
    for value in values:
        share = (value - low) / ((high - low) or 1.0)
        counts[min(bins - 1, max(0, int(share * bins)))] += 1
    return [count / max(1, len(values)) for count in counts]


def _points(axes: Axes, points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{across:.1f},{up:.1f}" for across, up in (axes.at(x, y) for x, y in points))


def _svg(axes: Axes, parts: Sequence[str], title: str) -> str:
    """Adds the axes, their numbers and labels."""
    drawn = []
    for value in ticks(*axes.y):
        across, up = axes.at(axes.x[0], value)
        drawn.append(f'<path class="grid" d="M{across:.1f} {up:.1f}H{WIDTH - RIGHT}"/>')
        drawn.append(f'<text x="{across - 7:.1f}" y="{up + 4:.1f}" text-anchor="end">{_number(value, axes, 1)}</text>')
    for value in ticks(*axes.x):
        across, up = axes.at(value, axes.y[0])
        drawn.append(f'<path class="axis" d="M{across:.1f} {up:.1f}v4"/>')
        drawn.append(f'<text x="{across:.1f}" y="{up + 18:.1f}" text-anchor="middle">{_number(value, axes, 0)}</text>')
    drawn.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(axes.labels[0])}</text>')
    up = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'x="13" y="{up}" text-anchor="middle" transform="rotate(-90 13 {up})"'
    drawn.append(f"<text {turned}>{html.escape(axes.labels[1])}</text>")
    name = html.escape(title)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{"".join([*drawn, *parts])}</svg>'


def _number(value: float, axes: Axes, axis: int) -> str:
    if axes.percent[axis]:
        return f"{100 * value:.0f}%" if abs(100 * value - round(100 * value)) < 1e-6 else f"{100 * value:.1f}%"
    return f"{value:.6g}".replace("-", MINUS) if value else "0"
