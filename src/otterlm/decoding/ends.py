"""Judges finished texts: at their last token, or at the last one before the end token.

A reward is learned at the end token of a response. The labels of a guard are not (`SignalConfig.reads_end`): an end
token changes nothing about a text, and few texts would not teach what it means.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor
from transformers import GenerationConfig

from otterlm.generation.request import token_numbers
from otterlm.model import OtterModel
from otterlm.signals.base import Signal


def end_tokens(config: GenerationConfig | None) -> set[int]:
    """Returns the tokens that end responses."""
    return set() if config is None else set(token_numbers(config.eos_token_id))


def unread_ends(model: OtterModel, adapter_name: str) -> set[int]:
    """Returns the tokens that end responses of the running generation, or else the base's, if what an adapter says
    after them is not learned."""
    if model.adapter(adapter_name).config.signal.reads_end:
        return set()
    generation = model.generation
    return end_tokens(model.base_model.generation_config if generation is None else generation.config)


def judging(
    model: OtterModel, token: int, after: Mapping[str, Signal], before: Mapping[str, Signal]
) -> dict[str, Signal]:
    """Returns the signals that judge a text which ends with a token, by the name of the adapter.

    Args:
        model: with its adapters.
        token: its id.
        after: the signals of the pass that read it last.
        before: those of the pass that chose it.
    """
    return {
        name: before[name] if token in unread_ends(model, name) and name in before else signal
        for name, signal in after.items()
    }


def before_ends(values: Tensor, sequences: Tensor, mask: Tensor, ends: Collection[int]) -> Tensor:
    """Returns values beside tokens; at the end tokens that end a text stands what stood before them.

    Args:
        values: `[B, T, ...]`.
        sequences: `[B, T]` token ids, padded on either side.
        mask: `[B, T]`, 0 at padding.
        ends: the end tokens; empty: the values stay as they are.
    """
    if not ends:
        return values
    inside = (mask != 0) & ~torch.isin(sequences, sequences.new_tensor(sorted(ends)))  # [B, T]
    steps = torch.arange(sequences.shape[1], device=sequences.device)
    last = torch.where(inside, steps, -1).amax(dim=1, keepdim=True)  # [B, 1], of the text without its end
    # A text of end tokens alone has nothing before them.
    source = torch.where(last < 0, steps, torch.minimum(steps, last))  # [B, T]
    return values[torch.arange(len(values), device=values.device)[:, None], source]
