"""Reads a base once for an adapter and for probes of all its blocks. `benchmarks/bases.py` uses it."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from bases_rows import at_once
from safetensors.torch import load_file
from torch import Tensor

from otterlm.errors import OtterError
from otterlm.families.parts import blocks_of
from otterlm.files import write_tensors
from otterlm.model import OtterModel
from otterlm.taps import Visitor
from otterlm.training.data.packing import Example, collate, length_buckets
from otterlm.training.probe import fit_probe
from otterlm.training.sources import LiveBase, RecordedBase


class EndStates:
    """Reads the base's state after every block, at the ends of both texts of a pair, while others run its passes.

    Args:
        model: the base with its adapter.
        examples: all pairs that are read, in the order of `length_buckets`.

    Attributes:
        states: `[2, N, blocks, d]` float32, in the order of `examples`.
    """

    def __init__(self, model: OtterModel, examples: Sequence[Example]) -> None:
        self._blocks = blocks_of(model.base_model, model.family)
        self._groups = length_buckets(range_examples(examples), at_once(model.base_model))
        self._group: list[Example] = []
        width = model.config.get_text_config(decoder=True).hidden_size
        self.states = torch.empty(2, len(examples), len(self._blocks), width)

    def __enter__(self) -> "EndStates":
        first = self._blocks[0].register_forward_pre_hook(self._next)
        hooks = [block.register_forward_hook(self._reader(number)) for number, block in enumerate(self._blocks)]
        self._hooks = [first, *hooks]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _next(self, *_: object) -> None:
        self._group = next(self._groups)

    def _reader(self, number: int) -> Callable[..., None]:
        def read(_: object, __: object, output: Any) -> None:
            state = output[0] if isinstance(output, tuple) else output  # [B, T, d]
            rows = torch.arange(len(self._group))
            ends = [len(each.prefix) + len(each.branches[0]) - 1 for each in self._group]
            for side, last in enumerate((ends, [len(each) - 1 for each in self._group])):
                read = state[rows, last].float().cpu()  # [B, d]
                self.states[side, [each.row for each in self._group], number] = read

        return read


def range_examples(examples: Sequence[Example]) -> list[Example]:
    """Returns the examples with their indices as their rows."""
    return [Example(index, each.prefix, each.branches) for index, each in enumerate(examples)]


@torch.no_grad()
def read_states(model: OtterModel, examples: Sequence[Example]) -> Tensor:
    """Reads all pairs with the base for the probes alone, see `EndStates`."""
    check_packs(model)
    live = LiveBase(model)
    with EndStates(model, examples) as ends:
        for group in length_buckets(examples, at_once(model.base_model)):
            live.show(collate(group).to(model.device), Visitor())
    return ends.states


def check_packs(model: OtterModel) -> None:
    """Checks that the base reads both texts of a pair in one sequence.

    Raises:
        OtterError: it does not.
    """
    if not model.family.branches:
        raise OtterError("this base reads the texts of a pair apart, and its states are not read here")


def read_once(model: OtterModel, examples: Sequence[Example], out: Path) -> tuple[RecordedBase, Tensor]:
    """Reads all pairs with the base, once: for the adapter and for the probes."""
    check_packs(model)
    path = out / "states.safetensors"
    if path.exists():
        return RecordedBase(model, examples, out, at_once(model.base_model)), load_file(path)["states"]
    (out / "recording.json").unlink(missing_ok=True)  # the states are read in the same passes
    with EndStates(model, examples) as ends:
        source = RecordedBase(model, examples, out, at_once(model.base_model))
    write_tensors(path, {"states": ends.states}, {})
    return source, ends.states


def best_probe(states: Tensor, learned: list[int], tested: list[int], seed: int) -> tuple[int, list[bool]]:
    """Fits a linear probe to every block on four fifths of the pairs, and that of the best block on all of them.

    Args:
        states: see `EndStates`.
        learned, tested: indices of pairs.
        seed: of the fifth that chooses the block.

    Returns:
        The block, and which of the tested pairs are ranked right.
    """
    order = torch.randperm(len(learned), generator=torch.Generator().manual_seed(seed)).tolist()
    held = [learned[index] for index in order[: len(order) // 5]]
    rest = [learned[index] for index in order[len(order) // 5 :]]

    def right(block: int, fitted: list[int], judged: list[int]) -> Tensor:
        weight = fit_probe(*states[:, fitted, block])
        return (states[0, judged, block] - states[1, judged, block]) @ weight > 0

    # Each fit is many small steps, so cores that no product uses fit other blocks; half are left to other processes.
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // (2 * torch.get_num_threads()))) as cores:
        fits = cores.map(lambda block: right(block, rest, held), range(states.shape[2]))
        scores = [float(fit.float().mean()) for fit in fits]
    best = max(range(len(scores)), key=scores.__getitem__)
    return best, right(best, learned, tested).tolist()
