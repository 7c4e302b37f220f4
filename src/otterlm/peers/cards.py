"""Implements CARDS (arXiv 2406.16306) as published: a separate reward model judges every segment."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from otterlm.cache import remove_last
from otterlm.decoding.rejection import RejectionSampling, Segments
from otterlm.model import OtterModel
from otterlm.training.teachers.reward_model import SeparateRewardModel


class CARDS(RejectionSampling):
    """Samples as `RejectionSampling` does, with a reward model that reads each segment once, over a KV cache.

    Args:
        reward_model: judges the segments.
        threshold: the reward that a whole response should have.
        settings: as for `RejectionSampling`.
    """

    def __init__(self, reward_model: SeparateRewardModel, threshold: float, **settings: Any) -> None:
        super().__init__(threshold, **settings)
        self.reward_model = reward_model
        self._read: dict[int, tuple[Tensor, DynamicCache]] = {}  # by row, its cache and the tokens in it

    def reads(self, model: OtterModel) -> None:
        """Returns None: no adapter is needed."""

    def _rewards(self, model: OtterModel, output: Any, rows: list[Segments], judged: list[int]) -> list[float]:
        return [self._reward(index, rows[index].tokens) for index in judged]

    def _reward(self, index: int, tokens: Tensor) -> float:
        known, cache = self._read.get(index, (tokens[:0], DynamicCache()))
        same = min(len(known), len(tokens) - 1)
        different = (known[:same] != tokens[:same]).nonzero()
        if len(different):
            same = int(different[0])
        if same < len(known):
            remove_last(cache, len(known) - same)
        positions = torch.arange(same, len(tokens), device=tokens.device)
        rewards = self.reward_model.read(
            input_ids=tokens[None, same:], position_ids=positions[None], past_key_values=cache
        )
        self._read[index] = (tokens, cache)
        return float(rewards[0, -1])
