"""Reads the prompt of a decoding loop into a KV cache that can be cropped."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from otterlm.decoding.loop import Run
from otterlm.errors import OtterError
from otterlm.families.facts import decoder_config, window_of
from otterlm.families.parts import blocks_of
from otterlm.masks import token_positions
from otterlm.model import OtterModel


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt has been read by a pass.

    Attributes:
        seen: `[B, P]`, 1 for its tokens and 0 for padding.
        cache: holds the prompt. Unlike a sliding-window cache it can be cropped, and a token in it can be hidden.
        output: of the pass; logits of the last token only, `[B, 1, V]`.
        position: `[B]`, of the token after the prompt.
    """

    seen: Tensor
    cache: DynamicCache
    output: Any
    position: Tensor


def read_prompt(run: Run, drafts: int = 0, **settings: Any) -> Prompt:
    """Reads a prompt.

    Args:
        run: has the prompt.
        drafts: how many tokens beside the text will be in the cache at most.
        settings: more arguments of the pass.

    Raises:
        OtterError: the base cannot keep texts apart that begin alike, prompt and new tokens do not fit its sliding
            window, or the pass would take an argument that the loop does not know.
    """
    check_branches(run.model)
    run.check_inputs()
    seen, positions, cache = run.prompt_mask, run.prompt_positions, DynamicCache()
    check_window(run.model, seen.shape[1] + run.new_tokens + drafts)
    embeddings = run.inputs.get("inputs_embeds")
    prompt = {"input_ids": run.input_ids} if embeddings is None else {"inputs_embeds": embeddings}
    output = run.model(
        **prompt,
        attention_mask=seen,
        position_ids=positions,
        past_key_values=cache,
        logits_to_keep=1,
        **settings,
    )
    return Prompt(seen, cache, output, positions[:, -1] + 1)


def check_branches(model: OtterModel) -> None:
    """Checks that a base can read several continuations of one text side by side.

    Raises:
        OtterError: it cannot.
    """
    if not model.family.branches:
        kind = decoder_config(model.base_model).model_type
        raise OtterError(
            f"this reads several tokens at one position side by side, and {kind!r} cannot keep them apart: "
            "use guidance, best-of-n or a stop instead"
        )


def check_window(model: OtterModel, length: int) -> None:
    """Checks that a text of this length fits the base's sliding window, if it has one.

    Several tokens that are tried at one position need a cache that holds the whole prefix.

    Raises:
        OtterError: the text does not fit.
    """
    config = decoder_config(model.base_model)
    depth = len(blocks_of(model.base_model, model.family))
    windows = [window_of(config, model.family, layer) for layer in range(depth)]
    window = min((window for window in windows if window is not None), default=None)
    if window is not None and length > window:
        raise OtterError(
            f"this decoding needs the whole prefix in the window: {length} tokens, but the base's window is {window}"
        )


@torch.no_grad()
def read_once(model: Any, input_ids: Tensor, attention_mask: Tensor, samples: int) -> DynamicCache:
    """Returns a KV cache of all but each prompt's last token, read once for all its samples.

    Args:
        model: a base or an `OtterModel`.
        input_ids, attention_mask: `[B, P]`, padded on the left.
        samples: how many of each prompt; row `samples * b + n` is the n-th of prompt b.

    Returns:
        The cache for `generate(..., past_key_values=...)` of the repeated prompts, `[B samples, P]`.
    """
    cache = DynamicCache(config=model.config)
    if input_ids.shape[1] > 1:
        ids, mask, positions = (x[:, :-1] for x in (input_ids, attention_mask, token_positions(attention_mask)))
        model(ids, mask, positions, past_key_values=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(samples)
    return cache
