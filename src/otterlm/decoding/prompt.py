"""How the decoding loops begin: the prompt is read into a KV cache that can be cropped."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from otterlm.decoding.checks import check_window
from otterlm.masks import token_positions
from otterlm.model import OtterModel


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that has been read.

    Attributes:
        seen: `[B, P]`, 1 for its tokens and 0 for padding.
        cache: holds it. Unlike a sliding-window cache it can be cropped, and a token in it can be hidden.
        output: of the pass; logits of the last token only, `[B, 1, V]`.
        position: `[B]`, of the token after it.
    """

    seen: Tensor
    cache: DynamicCache
    output: Any
    position: Tensor


def prompt_mask(input_ids: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
    """The attention mask that `generate` was given, or one without padding, `[B, P]`."""
    mask: Tensor | None = model_kwargs.get("attention_mask")
    return torch.ones_like(input_ids) if mask is None else mask


def read_prompt(
    model: OtterModel, input_ids: Tensor, model_kwargs: dict[str, Any], new_tokens: int, **settings: Any
) -> Prompt:
    """Reads a prompt.

    Args:
        model: to pass it through.
        input_ids: `[B, P]`, padded on the left.
        model_kwargs: of `generate`, see `prompt_mask`.
        new_tokens: how many at most will be in the cache beside it.
        settings: more arguments of the pass.

    Raises:
        OtterError: prompt and new tokens do not fit the base's sliding window.
    """
    check_window(model, input_ids.shape[1] + new_tokens)
    seen, cache = prompt_mask(input_ids, model_kwargs), DynamicCache()
    positions = token_positions(seen)
    output = model(
        input_ids=input_ids,
        attention_mask=seen,
        position_ids=positions,
        past_key_values=cache,
        logits_to_keep=1,
        **settings,
    )
    return Prompt(seen, cache, output, positions[:, -1] + 1)


@torch.no_grad()
def read_once(model: Any, input_ids: Tensor, attention_mask: Tensor, samples: int) -> DynamicCache:
    """A KV cache of all but each prompt's last token, read once for all its samples.

    Args:
        model: a base or an `OtterModel`.
        input_ids, attention_mask: `[B, P]`, padded on the left.
        samples: how many of each prompt; row `samples * b + n` is the n-th of prompt b.

    Returns:
        For `generate(..., past_key_values=...)` of the prompts repeated, `[B samples, P]`.
    """
    cache = DynamicCache(config=model.config)
    if input_ids.shape[1] > 1:
        ids, mask, positions = (x[:, :-1] for x in (input_ids, attention_mask, token_positions(attention_mask)))
        model(ids, mask, positions, past_key_values=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(samples)
    return cache
