"""Computes the rows of the steering bench: the gain in reward, and its cost in fluency, variety and time."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from otterlm.bench.answering import time_over
from otterlm.bench.judges import distinct
from otterlm.bench.steering import Answers, answers_of, samples_of, trained_spread
from otterlm.bench.steering_methods import BASE, Label
from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.training.data.conversations import Prompt
from otterlm.training.evaluation.bootstrap import Statistic, interval, mean_of
from otterlm.training.teachers.scorers import Scorer


@dataclass(frozen=True, slots=True)
class SteeringRow:
    """A row is one method over all prompts.

    `..._ci95` is the 95% interval, lower and upper bound, by the bootstrap over prompts. Comparisons with the base are
    made prompt by prompt.

    Attributes:
        method, weight: its name and weight; None: it has no weight.
        prompts: how many there are.
        reward_gain: mean final reward more than that of the base's greedy response, in spreads.
        share_up, share_same: share of prompts whose final reward is higher than the base's, and equal to it.
        perplexity: geometric mean over the prompts; None: all responses are empty.
        perplexity_ratio: that / the base's, over prompts where neither response is empty.
        tokens: mean length of a response, its end included.
        distinct_2: mean over responses of two words or more of the share of distinct bigrams of words; None: there are
            none.
        judge: mean of the judge's reward more than the base's; None: no judge.
        judge_at_equal_length: see `at_equal_length`.
        time_over_base: median over the batches of seconds a step / those of the base; `_ci95` is its interval.
    """

    method: str
    weight: float | None
    prompts: int
    reward_gain: float
    reward_gain_ci95: list[float]
    share_up: float
    share_up_ci95: list[float]
    share_same: float
    perplexity: float | None
    perplexity_ratio: float | None
    perplexity_ratio_ci95: list[float] | None
    tokens: float
    distinct_2: float | None
    judge: float | None
    judge_ci95: list[float] | None
    judge_at_equal_length: float | None
    judge_at_equal_length_ci95: list[float] | None
    time_over_base: float
    time_over_base_ci95: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Returns the row for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Judged:
    """The judged rewards are those of a judge.

    Attributes:
        methods: of each method's responses, `[N]`.
        lengths, samples: the length and the reward of the base's greedy response and of its samples, `[N, S]`.
    """

    methods: dict[Label, Tensor]
    lengths: Tensor
    samples: Tensor


def spread_of(model: OtterModel, adapter_name: str, batches: Sequence[Mapping[str, Any]]) -> tuple[float, str]:
    """Returns the standard deviation of final rewards over responses of the base, and the name of these responses.

    They are those of training where it measured the spread, else the base's samples.

    Args:
        model: the base with the adapter.
        adapter_name: of the reward.
        batches: from `otterlm.bench.steering.answer_all`.

    Raises:
        OtterError: all rewards are the same.
    """
    trained = trained_spread(model, adapter_name)
    if trained is not None:
        return trained, "training"
    spread = float(samples_of(batches)[1].std())
    if not spread > 0:
        raise OtterError("the adapter gives all samples of the base the same reward: there is no spread to count in")
    return spread, "the base's samples"


def rows_of(
    labels: Sequence[Label],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    batches: Sequence[Mapping[str, Any]],
    spread: float,
    fluency: Scorer,
    judge: Scorer | None,
) -> list[SteeringRow]:
    """Rates the responses of `otterlm.bench.steering.answer_all`.

    Args:
        labels: of the methods, in their order.
        tokenizer, prompts: as for `answer_all`; at least two prompts.
        batches: from `answer_all`.
        spread: of final rewards.
        fluency: computes perplexities, NaN for empty texts.
        judge: computes rewards; None: not measured.
    """
    answers = answers_of(labels, batches)
    texts = {label: _texts(tokenizer, each.responses) for label, each in answers.items()}
    logarithms = {label: ratings.log() for label, ratings in _rate(fluency, prompts, texts).items()}
    judged = None if judge is None else _judge(judge, tokenizer, prompts, answers, texts, batches)
    base = (BASE, None)
    return [
        SteeringRow(
            method=label[0],
            weight=label[1],
            prompts=len(prompts),
            **_gains((each.rewards - answers[base].rewards) / spread),
            **_perplexity(logarithms[label], logarithms[base]),
            tokens=float(_lengths(each.responses).mean()),
            distinct_2=_distinct_bigrams(texts[label]),
            **_judgement(judged, label, each, answers[base]),
            **_time(each, answers[base]),
        )
        for label, each in answers.items()
    ]


def _time(answers: Answers, base: Answers) -> dict[str, Any]:
    ratio, interval = time_over(answers.paces, base.paces)
    return {"time_over_base": ratio, "time_over_base_ci95": interval}


def at_equal_length(more: Tensor, longer: Tensor, lengths: Tensor, ratings: Tensor) -> Statistic:
    """Makes the statistic that is a difference in ratings with length regressed out.

    It is mean(more) - slope * mean(longer). The slope is that of the least squares fit rating ~ length with an
    intercept for each prompt, over responses of the base; 0 where all of a prompt's are equally long. It is fitted
    again to the prompts that are drawn.

    Args:
        more, longer: how much higher and longer the method's responses are than the base's greedy ones, `[N]`.
        lengths, ratings: of responses of the base to each prompt, `[N, S]`.
    """
    x = lengths - lengths.mean(dim=1, keepdim=True)  # [N, S]
    y = ratings - ratings.mean(dim=1, keepdim=True)
    products, squares = (x * y).sum(dim=1), (x * x).sum(dim=1)  # [N]

    def statistic(rows: Tensor) -> float:
        square = float(squares[rows].sum())
        slope = float(products[rows].sum()) / square if square else 0.0
        return float(more[rows].mean()) - slope * float(longer[rows].mean())

    return statistic


def _texts(tokenizer: PreTrainedTokenizerBase, responses: Sequence[Sequence[int]]) -> list[str]:
    return [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in responses]


def _lengths(responses: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([len(tokens) for tokens in responses], dtype=torch.float64)


def _rate(rate: Scorer, prompts: Sequence[Prompt], texts: Mapping[Any, Sequence[str]]) -> dict[Any, Tensor]:
    """Rates one text to each prompt, by key; the same text of one prompt once."""
    pairs = list(dict.fromkeys(pair for column in texts.values() for pair in enumerate(column)))
    rated = rate([prompts[row] for row, _ in pairs], [text for _, text in pairs])
    values = dict(zip(pairs, rated, strict=True))
    return {
        key: torch.tensor([values[pair] for pair in enumerate(column)], dtype=torch.float64)
        for key, column in texts.items()
    }


def _judge(
    judge: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    answers: Mapping[Label, Answers],
    texts: Mapping[Label, list[str]],
    batches: Sequence[Mapping[str, Any]],
) -> Judged:
    samples = list(zip(*samples_of(batches)[0], strict=True))  # of each sample, one response to each prompt
    sampled = {number: _texts(tokenizer, responses) for number, responses in enumerate(samples)}
    rewards = _rate(judge, prompts, {**texts, **sampled})
    base = (BASE, None)
    return Judged(
        {label: rewards[label] for label in texts},
        torch.stack([_lengths(responses) for responses in (answers[base].responses, *samples)], dim=1),
        torch.stack([rewards[key] for key in (base, *sampled)], dim=1),
    )


def _gains(gains: Tensor) -> dict[str, Any]:
    """Returns the columns of the adapter's reward, from each prompt's gain in spreads, `[N]`."""
    up = (gains > 0).double()
    return {
        "reward_gain": float(gains.mean()),
        "reward_gain_ci95": interval(len(gains), mean_of(gains)),
        "share_up": float(up.mean()),
        "share_up_ci95": interval(len(up), mean_of(up)),
        "share_same": float((gains == 0).double().mean()),
    }


def _perplexity(steered: Tensor, base: Tensor) -> dict[str, Any]:
    """Returns the columns of perplexity, from logarithms for each prompt, `[N]`; NaN is that of an empty response."""
    finite, ratios = steered[steered.isfinite()], (steered - base)[(steered - base).isfinite()]
    ratio = ratios.mean().exp().item() if len(ratios) else None
    bounds = interval(len(ratios), mean_of(ratios)) if len(ratios) > 1 else None
    return {
        "perplexity": finite.mean().exp().item() if len(finite) else None,
        "perplexity_ratio": ratio,
        "perplexity_ratio_ci95": None if bounds is None else [math.exp(bound) for bound in bounds],
    }


def _judgement(judged: Judged | None, label: Label, steered: Answers, base: Answers) -> dict[str, Any]:
    """Returns the columns of the judge."""
    names = ("judge", "judge_at_equal_length")
    if judged is None:
        return {f"{name}{end}": None for name in names for end in ("", "_ci95")}
    more = judged.methods[label] - judged.methods[BASE, None]
    longer = _lengths(steered.responses) - _lengths(base.responses)
    each = mean_of(more), at_equal_length(more, longer, judged.lengths, judged.samples)
    everyone = torch.arange(len(more))
    columns: dict[str, Any] = {}
    for name, statistic in zip(names, each, strict=True):
        columns |= {name: statistic(everyone), f"{name}_ci95": interval(len(more), statistic)}
    return columns


def _distinct_bigrams(texts: Sequence[str]) -> float | None:
    shares = [distinct([text], 2) for text in texts if len(text.split()) > 1]
    return statistics.mean(shares) if shares else None
