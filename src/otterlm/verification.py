"""Proves on one base and adapter that the logits are the base's, bit for bit, over everything that could change
them."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.model import OtterModel
from otterlm.progress import bar

PROMPTS = ("The otter dives", "Once upon a time there was a river, and in the river there lived")


@dataclass(frozen=True, slots=True)
class Check:
    """A check compares the base alone with the base that carries the adapter, in one case."""

    dtype: str
    attention: str
    case: str
    exact: bool


def _full_pass(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    return model(input_ids=ids[:1], use_cache=False).logits


def _padded_batch(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


_CACHES = ("past_key_values", "cache_params")
"""Models have one of these names for their cache."""


def _cached_steps(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Runs the prompt in two halves, then token by token, over one cache; without one, over longer and longer texts."""
    cut, past = ids.shape[1] // 2, 0
    caches: dict[str, Any] = {}
    logits = []
    for stop in (cut, cut + 2, *range(cut + 3, ids.shape[1] + 1)):
        seen = mask[:, past if "cache_params" in caches else 0 : stop]  # a Mamba remembers what was padding
        output = model(input_ids=ids[:, past:stop], attention_mask=seen, use_cache=True, **caches)
        caches = {name: cache for name in _CACHES if (cache := getattr(output, name, None)) is not None}
        past = stop if caches else 0
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


def _generate(**settings: Any) -> Callable[[Any, Tensor, Tensor], Tensor]:
    def run(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
        torch.manual_seed(0)
        settings_here = {"max_new_tokens": 16, "min_new_tokens": 16, **settings}
        output = model.generate(
            ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True, **settings_here
        )
        logits = torch.stack(output.logits, dim=1).flatten(0, 1).double()
        return torch.cat((output.sequences.flatten().double(), logits.flatten()))

    return run


CASES: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "full pass": _full_pass,
    "left-padded batch": _padded_batch,
    "KV cache, step by step": _cached_steps,
    "greedy generate": _generate(do_sample=False),
    "sampled generate": _generate(do_sample=True),
    "beam generate": _generate(do_sample=False, num_beams=3),
}


@torch.no_grad()
def verify(
    load: Callable[[torch.dtype], PreTrainedModel],
    adapter: str,
    tokenizer: PreTrainedTokenizerBase,
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16),
    attentions: tuple[str, ...] = ("eager", "sdpa"),
) -> list[Check]:
    """Compares logits (and generated tokens) of the base, before anything is attached to it, with those beside the
    adapter.

    Args:
        load: makes the base in a dtype.
        adapter: a folder.
        tokenizer: the base's, padding on the left.
        dtypes, attentions: what to try.

    Raises:
        OtterError: the adapter cannot be loaded on this base.
    """
    batch = tokenizer(list(PROMPTS), return_tensors="pt", padding=True, padding_side="left")
    settings = list(product(attentions, CASES.items()))
    checks = []
    with bar() as shown:
        task = shown.add_task("comparing", total=2 * len(dtypes) * len(settings))
        for dtype in dtypes:
            # PyTorch may take another kernel for a weight that requires a gradient; OtterModel freezes its base.
            base = load(dtype).requires_grad_(False)
            ids, mask = batch.input_ids.to(base.device), batch.attention_mask.to(base.device)
            expected = {}
            for attention, (case, run) in settings:
                base.set_attn_implementation(attention)
                expected[attention, case] = run(base, ids, mask)
                shown.advance(task)
            model = OtterModel.from_pretrained(base, adapter)
            for attention, (case, run) in settings:
                base.set_attn_implementation(attention)
                exact = torch.equal(run(model, ids, mask), expected[attention, case])
                checks.append(Check(str(dtype).removeprefix("torch."), attention, case, exact))
                shown.advance(task)
    return checks
