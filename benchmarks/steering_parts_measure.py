"""Measures the variants of `benchmarks/steering_parts.py`, all by the teacher's reward."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from steering_parts_fit import BATCH, MAX_PROMPT, Fitter

from otterlm.bases import load_base
from otterlm.bench.answering import Method, respond
from otterlm.bench.judges import Perplexity
from otterlm.bench.steering_methods import FinalReward
from otterlm.decoding import RewardGuidance
from otterlm.model import OtterModel
from otterlm.training.evaluation.scoring import correlations, score_examples
from otterlm.training.teachers.continuations import pad_left

if TYPE_CHECKING:
    from steering_parts import Variant


class Measure:
    """Measures adapters on the same questions. Text is generated in float32, whatever the precision of training.

    Args:
        fitter: has trained them.
    """

    def __init__(self, fitter: Fitter) -> None:
        self._fitter = fitter
        self._base = load_base(fitter.arguments.base)
        self._pad = fitter.tokenizer.pad_token_id or 0
        teacher = OtterModel.from_pretrained(self._base, fitter.arguments.teacher)
        self._reward = FinalReward(teacher, teacher.adapter_name(None), self._pad)
        self._perplexity = Perplexity(self._base, fitter.tokenizer)

    def base_answers(self) -> dict[str, Any]:
        """Answers the questions with the base, greedily; see `_answers`."""
        return self._answers(Method(self._base, lambda mask: {}))

    def of(self, variant: "Variant", base: Mapping[str, Any]) -> dict[str, Any]:
        """Trains a variant, and measures it.

        Args:
            variant: which.
            base: from `base_answers`.

        Returns:
            `correlation_P`, of the reward after P percent of the base's response with the teacher's final reward;
            `explained`, see `judge_scores`, of candidates there; and for each question of guidance at weight 1 its
            `gains` in the teacher's reward, in spreads, and its `nats` a token under the base.
        """
        model = self._fitter.fitted(variant)
        correlated = correlations(score_examples(model, self._fitter.tests, BATCH))
        explained = self._fitter.explained(model, variant)
        guiding = OtterModel(self._base, model.adapter().config, dtype=torch.float32).eval()
        guiding.adapter().load_state_dict(model.adapter().state_dict())
        guidance = RewardGuidance(guiding, 1.0)
        guided = self._answers(Method(guiding, lambda mask: {"logits_processor": [guidance]}))
        both = zip(guided["rewards"], base["rewards"], strict=True)
        gains = [(more - less) / self._fitter.spread for more, less in both]
        unit = guiding.adapter().config.signal.unit
        return {**correlated, "explained": explained, "unit": unit, "gains": gains, **guided}

    def _answers(self, method: Method) -> dict[str, Any]:
        """Returns `texts`, `rewards` and `nats`, a list each; nats are None for an empty text."""
        fitter, responses = self._fitter, list[list[int]]()
        for start in range(0, len(fitter.encoded), 20):
            ids, mask = pad_left(fitter.encoded[start : start + 20], self._pad, self._base.device)
            responses += respond(method, ids, mask, fitter.arguments.new_tokens, self._pad, self._base)["responses"]
        texts = [fitter.tokenizer.decode(response, skip_special_tokens=True) for response in responses]
        perplexities = self._perplexity.of_responses(fitter.questions, texts, MAX_PROMPT)
        return {
            "texts": texts,
            "rewards": self._reward(fitter.encoded, responses),
            "nats": [None if math.isnan(each) else math.log(each) for each in perplexities],
        }
