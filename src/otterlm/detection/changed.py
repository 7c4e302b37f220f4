"""Finds parts of a base that are made from Transformers' own but act otherwise, as far as their classes say so."""

from types import FunctionType
from typing import Any

from torch import nn

from otterlm.causal import decoder_of


def changed_parts(base: Any) -> frozenset[type]:
    """Returns the classes of a base and its decoder's parts that replace methods of a class of Transformers.

    What a listed family says holds of Transformers' classes. Of these it has to be tried. Parts of other libraries,
    such as quantised linears, are made to act as what they stand for, and are not among them.
    """
    kinds = {type(base), *(type(part) for part in decoder_of(base).modules())}
    return frozenset(kind for kind in kinds if _is_changed(kind))


def _is_changed(kind: type) -> bool:
    if kind.__module__.startswith("torch."):  # FSDP makes classes for the parts that it splits
        return False
    theirs = next((each for each in kind.__mro__ if _of_transformers(each)), None)
    below = kind.__mro__[: kind.__mro__.index(theirs)] if theirs is not None else ()
    return any(
        isinstance(value, FunctionType) and not name.startswith("__") and hasattr(theirs, name)
        for each in below
        for name, value in vars(each).items()
    )


def _of_transformers(kind: type) -> bool:
    return issubclass(kind, nn.Module) and kind.__module__.startswith("transformers.")
