"""Runs passes of a few tokens on a CPU at nearly the price of one.

A pass reads every weight once, however many tokens it has. But PyTorch multiplies a few rows by a weight,
[n, d] x [d, D], with kernels made for many. The same product transposed, [D, d] x [d, n], takes no longer than one
row's for 4 rows of SmolLM2's unembedding. Only the order of the sums changes, as with every other number of rows.

Two things undo the gain. The rows must lie one after the other in memory: with rows that are themselves the transpose
of a product, the next product took four times as long. And they must fit the processor's first cache.
"""

import threading
from functools import partial
from types import TracebackType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST = 32
"""With more rows than this PyTorch's kernel is as good."""
CACHED = 6400
"""And with more numbers in them than this, 25 KB in fp32: 4 rows of 1,536 gain, 5 lose."""


class TransposedLinear:
    """Transposes the products of linear layers on a CPU with 2 to `MOST` rows, inside the block, in this thread.

    Layers of another class, such as quantised ones, and those whose method a library has replaced are left alone.

    Args:
        models: with the layers.
    """

    def __init__(self, *models: nn.Module) -> None:
        # By identity: an adapter's model may hold the base's modules.
        modules = {id(module): module for model in models for module in model.modules()}
        self._layers = [module for module in modules.values() if type(module) is nn.Linear]
        self._turned: list[nn.Linear] = []

    def __enter__(self) -> None:
        self._turned = [layer for layer in self._layers if "forward" not in vars(layer)]
        for layer in self._turned:
            vars(layer)["forward"] = partial(_forward, layer)
        _thread.turns = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _thread.turns = False
        for layer in self._turned:
            vars(layer).pop("forward", None)


class _Thread(threading.local):
    """Says whether this thread is inside the block: others may run the same model beside it."""

    turns = False


_thread = _Thread()


def _forward(layer: nn.Linear, inputs: Tensor) -> Tensor:
    multiply = _linear if _thread.turns and _fits(inputs, layer.weight) else F.linear
    return multiply(inputs, layer.weight, layer.bias)


def _fits(inputs: Tensor, weight: Tensor) -> bool:
    rows = inputs.numel() // max(1, inputs.shape[-1])
    few = 2 <= rows <= MOST and inputs.numel() <= CACHED
    return few and type(weight) in (Tensor, nn.Parameter) and inputs.device.type == "cpu"


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = inputs.reshape(-1, inputs.shape[-1]).contiguous()  # [n, d]
    count = len(rows)
    if count == 3:  # four rows take less time than three
        rows = F.pad(rows, (0, 0, 0, 1))
    output = torch.mm(weight, rows.T).T[:count]  # [n, D]
    if bias is not None:
        output = output + bias
    return output.reshape(*inputs.shape[:-1], -1)
