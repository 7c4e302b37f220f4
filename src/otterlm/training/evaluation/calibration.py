"""Measures what a reward means, on texts it was not trained on.

That is a curve from rewards to scores, and the threshold of an alarm with a chosen rate of false alarms.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from otterlm.checks import check_rate
from otterlm.errors import OtterError
from otterlm.signals.reward.config import Calibration
from otterlm.training.evaluation.scoring import Scored


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm rings when a prefix reward falls under a threshold.

    Attributes:
        threshold: the reward.
        false_alarms: share of the good responses in which it rings.
        detected: share of the bad ones in which it rings.
        early: how many tokens before the end it rings in detected responses, in the mean.
        early_share: the same as a share of the response's tokens.
    """

    threshold: float
    false_alarms: float
    detected: float
    early: float
    early_share: float


def calibrate(
    scored: Sequence[Scored], bad_below: float | None, false_alarm_rate: float, knots: int = 20
) -> tuple[Calibration, Alarm]:
    """Fits the curve and the threshold on every second text and measures the alarm on the others.

    Args:
        scored: held-out pairs (chosen is good, rejected bad; the curve goes to the chance of being chosen) or scored
            texts.
        bad_below: which scores are bad; for scored texts.
        false_alarm_rate: the share of good responses that may set the alarm off.
        knots: points of the curve, at most.

    Raises:
        OtterError: the rate is out of range, or one of the two halves lacks good or bad texts.
    """
    check_rate("the false-alarm rate", false_alarm_rate)
    if len({row.example.is_pair for row in scored}) > 1:
        raise OtterError("the data mixes pairs with scored texts: calibrate on one kind at a time")
    # Both texts of a pair are on one side.
    fitted, measured = ([text for row in scored[side::2] for text in _texts(row, bad_below)] for side in (0, 1))
    for half in (fitted, measured):
        if {text.bad for text in half} != {False, True}:
            raise OtterError("calibration needs good and bad texts, some of each in both halves of the data")
    lowest = sorted(min(text.rewards) for text in fitted if not text.bad)
    threshold = lowest[min(len(lowest) - 1, int(false_alarm_rate * len(lowest)))]
    curve = isotonic([text.rewards[-1] for text in fitted], [text.score for text in fitted], knots)
    return Calibration(curve, threshold, false_alarm_rate), _measure(measured, threshold)


@dataclass(frozen=True, slots=True)
class _Text:
    rewards: list[float]
    score: float
    bad: bool


def _texts(row: Scored, bad_below: float | None) -> list[_Text]:
    if row.example.is_pair:
        chosen, rejected = row.rewards
        return [_Text(chosen, 1.0, False), _Text(rejected, 0.0, True)]
    if bad_below is None:
        raise OtterError("scored texts need --bad-below: which scores are bad")
    return [_Text(*text, bad=text[1] < bad_below) for text in zip(row.rewards, row.example.scores, strict=True)]


def _measure(texts: Sequence[_Text], threshold: float) -> Alarm:
    rings: dict[bool, list[bool]] = {False: [], True: []}
    early, shares = [], []
    for text in texts:
        position = next((n for n, reward in enumerate(text.rewards, start=1) if reward < threshold), None)
        rings[text.bad].append(position is not None)
        if text.bad and position is not None:
            early.append(len(text.rewards) - position)
            shares.append((len(text.rewards) - position) / len(text.rewards))
    mean = {bad: sum(rung) / len(rung) for bad, rung in rings.items()}
    count = max(1, len(early))
    return Alarm(threshold, mean[False], mean[True], sum(early) / count, sum(shares) / count)


def isotonic(rewards: Sequence[float], scores: Sequence[float], knots: int) -> tuple[tuple[float, float], ...]:
    """Fits the rising curve with the least squared error, by pooling adjacent violators (Ayer et al., 1955).

    Returns:
        At most `knots` points (mean reward, mean score), both rising.
    """
    blocks: list[tuple[float, float, int]] = []  # sums of rewards and of scores, and how many
    for reward, score in sorted(zip(rewards, scores, strict=True)):
        blocks.append((reward, score, 1))
        while len(blocks) > 1 and blocks[-2][1] / blocks[-2][2] >= blocks[-1][1] / blocks[-1][2]:
            last = blocks.pop()
            before = blocks.pop()
            blocks.append((before[0] + last[0], before[1] + last[1], before[2] + last[2]))
    points = [(reward / count, score / count) for reward, score, count in blocks]
    step = max(1, -(-len(points) // knots))
    chosen = points[::step]
    return tuple(chosen if chosen[-1] == points[-1] or len(chosen) == knots else [*chosen, points[-1]])
