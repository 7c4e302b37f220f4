"""Defines what decoding loops return when a dict is asked for."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class RewardedOutput(ModelOutput):
    """The output holds sequences with rewards.

    Attributes:
        sequences: `[B, T]` tokens, the prompt included.
        rewards: `[B, N]` float32, of each new token's prefix; NaN after the end of a sequence. None at weight 0.
    """

    sequences: Tensor | None = None
    rewards: Tensor | None = None


@dataclass
class ReplacedOutput(ModelOutput):
    """The output holds sequences, some of which may have been replaced.

    Attributes:
        sequences: `[B, T]` tokens, the prompt included.
        replaced: `[B]` bool, which responses were. None at threshold minus infinity.
    """

    sequences: Tensor | None = None
    replaced: Tensor | None = None
