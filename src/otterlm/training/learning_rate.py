"""Chooses a learning rate that suits a base.

AdamW moves every weight by about the learning rate, whatever its gradient. So one step moves what an inserted weight
computes by about the learning rate times the sum of the magnitudes of what it reads. That sum is ten times as large in
Qwen2.5 as in SmolLM2: a rate that suits the second makes the first forget what it started from.
"""

import statistics
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from otterlm.families import Family, Outline
from otterlm.families.facts import decoder_config
from otterlm.families.parts import blocks_of, part_of, tensor_of
from otterlm.model import OtterModel
from otterlm.training.config import RATE, TrainingConfig

SIZE = 200.0
"""The blocks of SmolLM2-135M read normed states whose magnitudes add up to 100 to 190."""
WIDTH = 576
"""Its width. At a block's edge the stream has norms of its own, so there the size goes by the width alone."""
MEAN_MAGNITUDE = (2 / torch.pi) ** 0.5
"""Of a normal variable of variance 1."""


def suited(
    config: TrainingConfig, base: PreTrainedModel, family: Outline, layers: tuple[int, ...] | None
) -> TrainingConfig:
    """Returns a configuration with a learning rate: its own, or else one that suits a base.

    Args:
        config: of the training.
        base: what is read.
        family: the facts by which it is read.
        layers: the widened blocks; None: all.
    """
    if config.learning_rate is not None:
        return config
    if isinstance(family, Family):
        share = SIZE / _size(base, family, layers)
    else:
        share = WIDTH / decoder_config(base).hidden_size
    return replace(config, learning_rate=RATE * min(1.0, share))


def suited_to(objective: nn.Module, config: TrainingConfig) -> TrainingConfig:
    """Returns the same for an objective. One that trains no adapter has the rate of small states."""
    model: Any = getattr(objective, "model", None)
    if not isinstance(model, OtterModel):
        return replace(config, learning_rate=config.peak)
    adapter = model.adapter(getattr(objective, "name", None))
    return suited(config, model.base_model, adapter.family, adapter.config.layers)


@torch.no_grad()
def _size(base: PreTrainedModel, family: Family, layers: tuple[int, ...] | None) -> float:
    """Returns the sum of the magnitudes of a normed state that a widened block reads: the median over their norms.

    A norm makes each channel as large as its weight; without a norm or a weight it is taken to be 1.
    """
    width = decoder_config(base).hidden_size
    blocks, sums = blocks_of(base, family), []
    for index in range(len(blocks)) if layers is None else layers:
        for path in (family.attention_norm, family.ffn_norm):
            norm = part_of(blocks[index], path)
            weight = None if norm is None else tensor_of(norm, "weight")
            if weight is None:
                sums.append(float(width))
            else:
                sums.append(float((weight.float() + family.norm_offset).abs().sum()))
    return MEAN_MAGNITUDE * statistics.median(sums)
