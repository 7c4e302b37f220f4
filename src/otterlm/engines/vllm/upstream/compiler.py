"""Wraps PyTorch's compiler, which vLLM compiles models with."""

from typing import Any


def recompute(original: Any, node: Any, *rest: Any, **named: Any) -> None:
    """Wraps what computes a node of the compiler's schedule again, to fuse it with another on CPUs.

    An operator that writes into a buffer gives it another name, and what is read after has that name. PyTorch 2.13
    forgets it here (its issue 185509). So a product was not waited for: h' was the sum of what lay in memory. PyTorch's
    pull request 185873 mends it in the same way.
    """
    original(node, *rest, **named)
    node.set_read_writes(node.read_writes.rename(node.mutation_renames))
