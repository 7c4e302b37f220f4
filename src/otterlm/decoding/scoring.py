"""Computes the rewards and labels of existing texts, in one pass over whole sequences."""

from typing import Any

import torch
from torch import Tensor

from otterlm.decoding.ends import before_ends, unread_ends
from otterlm.errors import OtterError
from otterlm.masks import token_positions
from otterlm.model import OtterModel
from otterlm.signals.base import Capability


@torch.no_grad()
def score_sequences(
    model: OtterModel,
    sequences: Tensor,
    attention_mask: Tensor,
    adapter_name: str | None = None,
    position_ids: Tensor | None = None,
) -> Tensor:
    """Returns the reward of every prefix. A guard's at the end token of a text is the one before it.

    Args:
        model: with the adapter.
        sequences: `[B, T]` token ids, padded on either side.
        attention_mask: `[B, T]`, 1 for tokens and 0 for padding.
        adapter_name: of the reward; may be left out where there is one.
        position_ids: `[B, T]`; by default tokens are counted from 0.

    Returns:
        `[B, T]` float32; NaN at padding.

    Raises:
        OtterError: the mask is not of these sequences.
    """
    name = model.adapter_name(adapter_name, Capability.PREFIX)
    signal = _read(model, sequences, attention_mask, position_ids, name)
    return _rewards(model, signal, sequences, attention_mask, name)


@torch.no_grad()
def label_sequences(
    model: OtterModel,
    sequences: Tensor,
    attention_mask: Tensor,
    adapter_name: str | None = None,
    position_ids: Tensor | None = None,
) -> Tensor:
    """Returns the probability of every label after every prefix, `[B, T, L]` float32, NaN at padding. At the end token
    of a text it is the one before it.

    Arguments are as for `score_sequences`.
    """
    name = model.adapter_name(adapter_name, Capability.CLASSES)
    signal = _read(model, sequences, attention_mask, position_ids, name)
    return _labels(model, signal, sequences, attention_mask, name)


@torch.no_grad()
def judge_sequences(
    model: OtterModel, sequences: Tensor, attention_mask: Tensor, adapter_name: str
) -> tuple[Tensor, Tensor]:
    """Returns what `score_sequences` and `label_sequences` say of a guard, in one pass."""
    signal = _read(model, sequences, attention_mask, None, adapter_name)
    arguments = model, signal, sequences, attention_mask, adapter_name
    return _rewards(*arguments), _labels(*arguments)


def _rewards(model: OtterModel, signal: Any, sequences: Tensor, mask: Tensor, name: str) -> Tensor:
    """Returns `[B, T]` float32 of a pass, NaN at padding."""
    rewards = before_ends(signal.prefix, sequences, mask, unread_ends(model, name))
    return rewards.masked_fill(mask == 0, torch.nan)


def _labels(model: OtterModel, signal: Any, sequences: Tensor, mask: Tensor, name: str) -> Tensor:
    """Returns `[B, T, L]` float32 of a pass, NaN at padding."""
    labels = before_ends(signal.probabilities, sequences, mask, unread_ends(model, name))
    return labels.masked_fill(mask[..., None] == 0, torch.nan)


def _read(model: OtterModel, sequences: Tensor, attention_mask: Tensor, position_ids: Tensor | None, name: str) -> Any:
    """Reads an adapter's signal in one pass.

    Raises:
        OtterError: the mask is not of these texts.
    """
    if sequences.dim() != 2 or attention_mask.shape != sequences.shape or not sequences.numel():
        shapes = f"token ids {list(sequences.shape)} and an attention_mask {list(attention_mask.shape)}"
        raise OtterError(f"texts are token ids [B, T] with a mask of the same shape, got {shapes}")
    model(
        input_ids=sequences,
        attention_mask=attention_mask,
        position_ids=token_positions(attention_mask) if position_ids is None else position_ids,
        use_cache=False,
        logits_to_keep=1,
    )
    return model.signal(name)
