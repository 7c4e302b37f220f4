"""What decoding loops return when asked for more than the tokens."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class RewardedOutput(ModelOutput):
    """Sequences with rewards.

    Attributes:
        sequences: `[B, T]` tokens, the prompt included.
        rewards: `[B, N]` float32, of each new token's prefix; NaN after the end of a sequence.
    """

    sequences: Tensor | None = None
    rewards: Tensor | None = None
