"""Changes logits where they are, on a CPU: `candidates.cpp` finds the plausible tokens and rules out the others."""

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from otterlm.decoding.steering import MANY, guide, log_share
from otterlm.engines.vllm.kernels.block import COUNT, POINTER
from otterlm.engines.vllm.kernels.building import library


def operator_for(logits: Tensor, top_k: int | None, min_p: float) -> ctypes.CDLL | None:
    """Returns the operator if it reads these logits, `[N, V]`, and knows the settings of `guide`; else None."""
    fits = logits.device.type == "cpu" and logits.dtype == torch.float32 and logits.stride(1) == 1
    return library() if fits and top_k is None and min_p > 0 else None


def guide_rows(
    built: ctypes.CDLL,
    logits: Tensor,
    rows: Tensor,
    rewards: Callable[[Tensor | None], Tensor],
    weight: Tensor,
    min_p: float,
) -> None:
    """Makes of some rows of logits, in place, what `guide` makes of them, to the bit.

    Args:
        built: the operator, see `operator_for`.
        logits: `[N, V]` float32 on a CPU.
        rows: those that are guided, `[n]` int64.
        rewards: of these rows, see `guide`.
        weight: of the reward, `[n, 1]`.
        min_p: over 0.
    """
    count = len(rows)
    tokens, scores = torch.empty(count, MANY, dtype=torch.int64), torch.empty(count, MANY)
    most: int = built.otter_rule_out(
        COUNT(count),
        COUNT(logits.stride(0)),
        COUNT(logits.shape[1]),
        COUNT(MANY),
        ctypes.c_float(_log(min_p)),
        *(POINTER(each.data_ptr()) for each in (logits, rows, tokens, scores)),
    )
    if most == 0:  # many tokens of a row are plausible, or none; what was ruled out changes nothing for `guide`
        logits[rows] = guide(logits[rows], rewards, weight, None, min_p)
        return
    few = tokens[:, :most]  # [n, k]
    logits[rows[:, None], few] = scores[:, :most] + weight * rewards(few).to(scores)


@functools.cache
def _log(share: float) -> float:
    return float(log_share(share, torch.empty(0)))
