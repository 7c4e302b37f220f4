"""Makes hooks that act only on the base they were made for."""

from contextlib import nullcontext
from functools import partial
from typing import Any

from torch import nn


class Hook(partial[None]):
    """A hook acts only on the base it was made for.

    A copied or pickled one does nothing: it becomes a method of the standard library that takes any arguments and gives
    None, so that a pickled base can be read without Otter.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


def remove_copied_hooks(base: nn.Module) -> None:
    """Removes the hooks that do nothing from a copied base."""
    for module in base.modules():
        for hooks, with_kwargs in (
            (module._forward_hooks, module._forward_hooks_with_kwargs),
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
        ):
            for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), nullcontext)]:
                del hooks[key]
                with_kwargs.pop(key, None)
