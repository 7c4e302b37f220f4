"""Makes ARGS (arXiv 2402.01694) with a separate reward model, the rival of the benches of alignment and of steering."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.decoding.ends import end_tokens
from otterlm.errors import OtterError
from otterlm.interventions import CANDIDATES
from otterlm.peers.args import ARGS
from otterlm.signals.reward.config import NATS
from otterlm.training.data.conversations import Prompt
from otterlm.training.data.tokens import encode_prompts
from otterlm.training.teachers.continuations import pad_left
from otterlm.training.teachers.reward_model import SeparateRewardModel
from otterlm.training.vocabulary_fit import plausible_shares

CALIBRATION = 16
"""The base answers so many prompts to measure the scale of a reward model."""


def load_rival(reward_model: str | Path, base: PreTrainedModel) -> SeparateRewardModel:
    """Loads a separate reward model that reads the base's tokens.

    Raises:
        OtterError: it is no reward model, or has another vocabulary.
    """
    rival = SeparateRewardModel.from_pretrained(reward_model, base.dtype).to(base.device)
    sizes = [model.config.get_text_config().vocab_size for model in (base, rival.classifier)]
    if sizes[0] != sizes[1]:
        raise OtterError(f"{reward_model} reads the base's tokens; their vocabularies have {sizes[1]} and {sizes[0]}")
    return rival


def args_settings(
    rival: SeparateRewardModel, weight: float, top_k: int, min_p: float, pad: int
) -> Callable[[Tensor], dict[str, Any]]:
    """Returns what makes the settings of `generate` from the attention mask of a batch, `[B, P]`.

    Arguments are those of `ARGS`.
    """

    def steer(mask: Tensor) -> dict[str, Any]:
        args = ARGS(rival, weight, top_k, attention_mask=mask, min_p=min_p, pad_token_id=pad)
        return {"logits_processor": [args]}

    return steer


class CandidateSpread(ARGS):
    """Measures how far the rewards of the base's plausible next tokens are apart, and steers nothing.

    Args:
        reward_model: scores the candidates.
        attention_mask: `[B, P]` of the prompts, 0 at padding.
        ends: the tokens that end a text; after them nothing is measured.
        pad: what `generate` writes there.

    Attributes:
        squares: of every step of a text, the variance of its candidates' rewards, weighted by their probabilities.
    """

    def __init__(
        self, reward_model: SeparateRewardModel, attention_mask: Tensor, ends: Sequence[int], pad: int
    ) -> None:
        super().__init__(reward_model, 1.0, CANDIDATES, attention_mask=attention_mask, pad_token_id=pad)
        self._begin, self._ends = attention_mask.shape[1], torch.tensor(list(ends), device=attention_mask.device)
        self.squares: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the scores as they are."""
        likely, _, rewards = self.rate(input_ids, scores)
        _, shares = plausible_shares(likely)
        apart = rewards - (shares * rewards).sum(dim=1, keepdim=True)
        running = ~torch.isin(input_ids[:, self._begin :], self._ends).any(dim=1)
        self.squares += (shares * apart.square()).sum(dim=1)[running].tolist()
        return scores

    @property
    def spread(self) -> float:
        """Returns the standard deviation, as `advantage_spread` of an adapter's reward."""
        return math.sqrt(math.fsum(self.squares) / len(self.squares))


@torch.no_grad()
def unit_of(
    rival: SeparateRewardModel,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    new_tokens: int,
    max_prompt_tokens: int,
) -> float:
    """Returns what a weight of 1 stands for, measured as for an adapter's reward (`RewardConfig.unit`).

    Args:
        rival: the reward model.
        base, tokenizer: the base answers the first `CALIBRATION` prompts.
        prompts: as chat turns.
        new_tokens, max_prompt_tokens: as for `otterlm.bench.steering.answer_all`.

    Raises:
        OtterError: all candidates have the same reward.
    """
    encoded, pad = encode_prompts(prompts[:CALIBRATION], tokenizer, max_prompt_tokens), tokenizer.pad_token_id or 0
    ids, mask = pad_left(encoded, pad, base.device)
    measured = CandidateSpread(rival, mask, sorted(end_tokens(base.generation_config)), pad)
    base.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=pad,
        logits_processor=[measured],
    )
    if not measured.spread > 0:
        raise OtterError("the reward model gives all next tokens the same reward: there is no unit to count in")
    return measured.spread / NATS
