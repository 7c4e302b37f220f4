"""Makes the page of pairs and of scored texts that a reward has read."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from otterlm.cli.pages.texts import cut, turns
from otterlm.colour import colour_range, coloured_html
from otterlm.report.charts import Axes, curve, histogram
from otterlm.report.page import Figure, Part, Row, Scale, Text, page, signed
from otterlm.training.data.rows import PairRow
from otterlm.training.data.rows import Row as DataRow
from otterlm.training.evaluation.scoring import Scored, correlations, index_at, summarize, wilson_interval

PERCENTS = tuple(range(10, 101, 10))
"""Parts of the responses after which they are judged."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A reading holds what a reward says of rows, and what is needed to show them.

    Attributes:
        scored: the rows' rewards.
        rows: the rows, by their numbers.
        tokenizer: the base's.
        range: of the colours, see `otterlm.colour.colour_range`.
        limit: tokens of a response.
    """

    scored: Sequence[Scored]
    rows: Mapping[int, DataRow]
    tokenizer: PreTrainedTokenizerBase
    range: tuple[float, float]
    limit: int

    def text(self, each: Scored, side: int, name: str, good: bool | None = None) -> Text:
        """Makes one text of a row."""
        response, rewards = each.example.responses[side], each.rewards[side]
        coloured = coloured_html(self.tokenizer, response, rewards, *self.range)
        return Text(name, signed(rewards[-1]), coloured, cut(response, self.limit), good)


def reward_page(title: str, reading: Reading) -> str:
    """Returns the page as HTML."""
    pairs = [each for each in reading.scored if each.example.is_pair]
    texts = [each for each in reading.scored if not each.example.is_pair]
    parts = [_pairs(reading, pairs)] if pairs else []
    parts += [_texts(reading, texts)] if texts else []
    span = Scale(*reading.range, "Reward of the text up to and with the token; blue is better.")
    return page(title, span, parts)


def _pairs(reading: Reading, pairs: Sequence[Scored]) -> Part:
    summary = summarize(pairs)
    low, high = summary["accuracy_ci95"]
    shares = [_accuracy(pairs, percent) for percent in PERCENTS]
    points = [(percent / 100, share) for percent, share in zip(PERCENTS, shares, strict=True)]
    bands = [wilson_interval(share, len(pairs)) for share in shares]
    bottom = min(0.5, *(band[0] for band in bands))
    axes = Axes((0.0, 1.0), (bottom, 1.0), ("part of both responses read", "accuracy"), (True, True))
    finals = {name: [each.rewards[side][-1] for each in pairs] for side, name in enumerate(("chosen", "rejected"))}
    span = colour_range(None, [*finals["chosen"], *finals["rejected"]])
    return Part(
        "Pairs",
        (
            ("Accuracy", f"{summary['accuracy']:.1%}", f"95% interval {low:.1%} to {high:.1%}"),
            ("Pairs", f"{len(pairs):,}", "the chosen response should score higher"),
        ),
        (
            Figure(
                curve(axes, points, "Accuracy by part of the responses", bands, [(0.0, 0.5), (1.0, 0.5)]),
                "Accuracy while the responses are read (dashed: chance)",
            ),
            Figure(
                histogram(finals, span, "reward of the whole response", "Rewards of chosen and rejected responses"),
                "Rewards of whole responses",
                ("chosen", "rejected"),
            ),
        ),
        [_pair(reading, each) for each in pairs],
    )


def _pair(reading: Reading, each: Scored) -> Row:
    row: Any = reading.rows[each.example.row]
    assert isinstance(row, PairRow)
    prompts = [
        turns(dialogue, (*each.example.prefix, *branch)[:start], reading.tokenizer)
        for dialogue, branch, start in zip(
            (row.chosen, row.rejected), each.example.branches, each.example.starts, strict=True
        )
    ]
    before = prompts[0]
    if prompts[1] != prompts[0]:
        before = [
            (f"{role}, {side}", text)
            for side, turn in zip(("chosen", "rejected"), prompts, strict=True)
            for role, text in turn
        ]
    margin = each.rewards[0][-1] - each.rewards[1][-1]
    verdict = f"chosen {margin:.3f} above rejected" if margin > 0 else f"rejected {-margin:.3f} above chosen"
    texts = (reading.text(each, 0, "Chosen", True), reading.text(each, 1, "Rejected", False))
    return Row(f"Row {each.example.row + 1}", verdict, margin <= 0, -margin, before, texts)


def _texts(reading: Reading, texts: Sequence[Scored]) -> Part:
    summary = summarize(texts)
    by_percent = correlations(texts, PERCENTS)
    points = [(percent / 100, by_percent[f"correlation_{percent}"]) for percent in PERCENTS]
    lowest = min(0.0, *(value for _, value in points))
    axes = Axes((0.0, 1.0), (lowest, 1.0), ("part of the text read", "correlation"), (True, False))
    finals = [value[-1] for each in texts for value in each.rewards]
    scores = [score for each in texts for score in each.example.scores]
    gaps = [reward - score for reward, score in zip(_standard(finals), _standard(scores), strict=True)]
    rows = []
    for each, of_text in zip(texts, _chunks(gaps, texts), strict=True):
        worst = max(of_text, key=abs)
        row: Any = reading.rows[each.example.row]
        rows.append(
            Row(
                f"Row {each.example.row + 1}",
                f"{abs(worst):.1f} standard deviations too {'high' if worst > 0 else 'low'}",
                None,
                abs(worst),
                turns(row.text, each.example.prefix[: each.example.starts[0]], reading.tokenizer),
                [
                    reading.text(each, side, f"Score {score:g}, reward")
                    for side, score in enumerate(each.example.scores)
                ],
            )
        )
    return Part(
        "Scored texts",
        (
            ("Correlation", f"{summary['correlation']:.3f}", "of the reward with the score"),
            ("Mean reward", f"{summary['mean_reward']:.3f}", ""),
            ("Texts", f"{len(finals):,}", ""),
        ),
        (
            Figure(curve(axes, points, "Correlation by part of the text"), "Correlation while the texts are read"),
            Figure(
                histogram({"rewards": finals}, colour_range(None, finals), "reward of the whole text", "Rewards"),
                "Rewards of whole texts",
            ),
        ),
        rows,
        "The worst mistakes come first: where the reward is farthest from the score, both in standard deviations.",
    )


def _accuracy(pairs: Sequence[Scored], percent: int) -> float:
    """Returns the accuracy after so many percent of both responses; a tie counts half."""
    total = 0.0
    for each in pairs:
        chosen, rejected = (values[index_at(len(values), percent)] for values in each.rewards)
        total += 0.5 if chosen == rejected else float(chosen > rejected)
    return total / len(pairs)


def _standard(values: Sequence[float]) -> list[float]:
    """Returns numbers in standard deviations from their mean."""
    mean, spread = statistics.fmean(values), statistics.pstdev(values) or 1.0
    return [(value - mean) / spread for value in values]


def _chunks(values: Sequence[float], texts: Sequence[Scored]) -> list[list[float]]:
    """Splits numbers into those of each example."""
    rest = iter(values)
    return [[next(rest) for _ in each.rewards] for each in texts]
