"""Answers prompts by methods and times them, for the benches of alignment and of steering."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from otterlm.decoding.prompt import read_once
from otterlm.identity import Identity
from otterlm.model import OtterModel
from otterlm.training.evaluation.bootstrap import median_interval
from otterlm.training.teachers.continuations import responses_of

SAMPLING: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}


@dataclass(frozen=True, slots=True)
class Method:
    """A method generates responses.

    Attributes:
        model: the model that generates.
        steer: the attention mask of a batch, `[B, P]`, to settings of `generate`.
        extra_parameters: beside the base, derived ones included.
        depends: what its responses depend on, beside the base.
    """

    model: PreTrainedModel | OtterModel
    steer: Callable[[Tensor], dict[str, Any]]
    extra_parameters: int = 0
    depends: Identity = field(default_factory=dict)


@torch.no_grad()
def respond(
    method: Method, ids: Tensor, mask: Tensor, new_tokens: int, pad: int, base: PreTrainedModel, samples: int = 1
) -> dict[str, Any]:
    """Answers a batch of prompts.

    Args:
        method: the method that answers, greedily by default.
        ids, mask: `[B, P]`, padded on the left.
        new_tokens: at most so many are generated.
        pad: the token that pads.
        base: its end tokens end a response.
        samples: responses of each prompt, one after the other; the prompt is read once for all.

    Returns:
        `seconds`, and `responses`, a list of tokens each.
    """
    settings = {"do_sample": False} | method.steer(mask)
    started = time.perf_counter()
    if samples > 1:
        settings["past_key_values"] = read_once(method.model, ids, mask, samples)
        ids, mask = (rows.repeat_interleave(samples, dim=0) for rows in (ids, mask))
    output = method.model.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, pad_token_id=pad, **settings)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "responses": responses_of(output, ids.shape[1], base)}


def pace(answered: Mapping[str, Any]) -> float:
    """Returns the seconds a step of the responses of `respond`: seconds / tokens of the longest one."""
    return answered["seconds"] / max(map(len, answered["responses"]))


def time_over(paces: Sequence[float], base_paces: Sequence[float]) -> tuple[float, list[float]]:
    """Returns the median over batches of a method's seconds a step / those of the base, and its 95% interval."""
    ratios = [steered / plain for steered, plain in zip(paces, base_paces, strict=True)]
    return statistics.median(ratios), median_interval(ratios)
