"""Makes bases with random weights, for time and space, which do not depend on weights."""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.signals.reward.config import RewardConfig

SHAPES = {
    "smollm2-135m": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "llama-3.2-1b": LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "llama-2-7b": LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
    ),
}
"""The shapes are those of the models of these names (arXiv 2502.02737, 2407.21783, 2307.09288)."""


def check_shape(shape: str) -> None:
    """Checks that a shape is one of `SHAPES`.

    Raises:
        OtterError: the shape is not known.
    """
    if shape not in SHAPES:
        raise OtterError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def random_base(shape: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Makes a frozen base of a shape, with weights N(0, 0.02).

    Raises:
        OtterError: the shape is not known.
    """
    check_shape(shape)
    with torch.device(device):
        base: PreTrainedModel = AutoModelForCausalLM.from_config(SHAPES[shape], dtype=dtype)
    return base.requires_grad_(False).eval()


def adapter_for(shape: str) -> OtterConfig:
    """Returns an adapter in proportion: every second block of the upper two thirds, as the shipped one of SmolLM2."""
    layers = SHAPES[shape].num_hidden_layers
    first = layers - 2 * (layers // 3) + 1
    return OtterConfig(layers=tuple(range(first, layers, 2)), signal=RewardConfig(vocabulary_rank=16))
