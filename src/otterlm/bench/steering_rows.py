"""Computes the rows of the steering bench: the gain in reward, and its cost in fluency, variety and time."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from otterlm.bench.answering import time_over
from otterlm.bench.judges import distinct
from otterlm.bench.steering import Answers, answers_of, samples_of, trained_spread
from otterlm.bench.steering_judges import Rated, judge_all, lengths_of
from otterlm.bench.steering_methods import BASE, SAMPLE, SAMPLED_GUIDANCE, Label
from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.training.data.conversations import Prompt
from otterlm.training.evaluation.bootstrap import interval, mean_of
from otterlm.training.teachers.scorers import Scorer


@dataclass(frozen=True, slots=True)
class SteeringRow:
    """A row is one method over all prompts.

    `..._ci95` is the 95% interval, lower and upper bound, by the bootstrap over prompts. Comparisons are made prompt by
    prompt, with the base's greedy response; those of sampled guidance with one sample of the base.

    Attributes:
        method, weight: its name and weight; None: it has no weight.
        prompts: how many there are.
        compared_with: the method that it is compared with.
        reward_gain: mean final reward more than that of the other response, in spreads.
        share_up, share_same: share of prompts whose final reward is higher than the other's, and equal to it.
        perplexity: geometric mean over the prompts; None: all responses are empty.
        perplexity_ratio: that / the other's, over prompts where neither response is empty.
        tokens: mean length of a response, its end included.
        distinct_2: mean over responses of two words or more of the share of distinct bigrams of words; None: there are
            none.
        judges: by the name of a judge, how much higher it rates the responses, see
            `otterlm.bench.steering_judges.judge_all`.
        time_over_base: median over the batches of seconds a step / those of the base; `_ci95` is its interval.
    """

    method: str
    weight: float | None
    prompts: int
    compared_with: str
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
    judges: dict[str, dict[str, Any]]
    time_over_base: float
    time_over_base_ci95: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Returns the row for JSON."""
        return asdict(self)


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
    judges: Mapping[str, Scorer],
) -> list[SteeringRow]:
    """Rates the responses of `otterlm.bench.steering.answer_all`.

    Args:
        labels: of the methods, in their order.
        tokenizer, prompts: as for `answer_all`; at least two prompts.
        batches: from `answer_all`.
        spread: of final rewards.
        fluency: computes perplexities, NaN for empty texts.
        judges: by name.
    """
    answers = answers_of(labels, batches)
    columns = [each.responses for each in answers.values()]
    perplexities = Rated(fluency, tokenizer, prompts)(columns)  # [N, methods]
    logarithms = dict(zip(answers, perplexities.log().T, strict=True))
    references = {label: (SAMPLE, None) if label[0] == SAMPLED_GUIDANCE else (BASE, None) for label in answers}
    judged = {
        name: judge_all(judge, tokenizer, prompts, answers, references, batches) for name, judge in judges.items()
    }
    return [
        SteeringRow(
            method=label[0],
            weight=label[1],
            prompts=len(prompts),
            compared_with=references[label][0],
            **_gains((each.rewards - answers[references[label]].rewards) / spread),
            **_perplexity(logarithms[label], logarithms[references[label]]),
            tokens=float(lengths_of(each.responses).mean()),
            distinct_2=_distinct_bigrams(tokenizer, each.responses),
            judges={name: rated[label] for name, rated in judged.items()},
            **_time(each, answers[BASE, None]),
        )
        for label, each in answers.items()
    ]


def _time(answers: Answers, base: Answers) -> dict[str, Any]:
    ratio, interval = time_over(answers.paces, base.paces)
    return {"time_over_base": ratio, "time_over_base_ci95": interval}


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


def _perplexity(steered: Tensor, other: Tensor) -> dict[str, Any]:
    """Returns the columns of perplexity, from logarithms for each prompt, `[N]`; NaN is that of an empty response."""
    finite, ratios = steered[steered.isfinite()], (steered - other)[(steered - other).isfinite()]
    ratio = ratios.mean().exp().item() if len(ratios) else None
    bounds = interval(len(ratios), mean_of(ratios)) if len(ratios) > 1 else None
    return {
        "perplexity": finite.mean().exp().item() if len(finite) else None,
        "perplexity_ratio": ratio,
        "perplexity_ratio_ci95": None if bounds is None else [math.exp(bound) for bound in bounds],
    }


def _distinct_bigrams(tokenizer: PreTrainedTokenizerBase, responses: Sequence[Sequence[int]]) -> float | None:
    texts = [tokenizer.decode(list(tokens), skip_special_tokens=True) for tokens in responses]
    shares = [distinct([text], 2) for text in texts if len(text.split()) > 1]
    return statistics.mean(shares) if shares else None
