"""Lists the hook points of a block: what is read of it while it runs."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from otterlm.families.family import Family


@dataclass(frozen=True, slots=True)
class HookPoint:
    """A hook point is one tensor that is read of a block.

    Attributes:
        tap: its name in `otterlm.taps.LayerTaps`.
        part: the path, from the block, of the part it is read from; empty for the block itself.
        side: whether it is an input of the part or an output.
        position: which of those; None: it is passed by name only.
        keywords: its names, where it is passed by name.
    """

    tap: str
    part: str
    side: Literal["input", "output"] = "input"
    position: int | None = 0
    keywords: tuple[str, ...] = ()

    def of_inputs(self, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns the input that is read; None where the part does not receive it."""
        if self.position is not None and self.position < len(inputs):
            return inputs[self.position]
        for name in self.keywords:
            if name in kwargs:
                return kwargs[name]
        return None

    def of_output(self, output: Any) -> Any:
        """Returns the output that is read."""
        return output if isinstance(output, Tensor) else output[self.position]


EDGE = (
    HookPoint("hidden", "", keywords=("hidden_states", "hidden", "x")),
    HookPoint("left", "", "output"),
)
"""The hook points of any block: the state that enters it, and the one that leaves it."""


def text_points(names: tuple[str, ...]) -> tuple[HookPoint, ...]:
    """Returns the hook points of a decoder: its arguments that describe the text.

    Args:
        names: of all its arguments, in their order.
    """
    return tuple(
        HookPoint(tap, "", position=names.index(name) if name in names else None, keywords=(name,))
        for tap, name in (("mask", "attention_mask"), ("positions", "position_ids"))
    )


def hook_points(family: Family) -> tuple[HookPoint, ...]:
    """Returns the hook points of a block of Transformers, in the order in which the block passes them."""
    attention = family.attention
    points = [
        HookPoint("hidden", "", keywords=("hidden_states",)),
        HookPoint("attention_input", attention, keywords=("hidden_states",)),
        HookPoint("rotary", attention, position=None, keywords=("position_embeddings",)),
        HookPoint("mask", attention, position=None, keywords=("attention_mask",)),
        HookPoint("cache", attention, position=None, keywords=("past_key_values", "layer_past")),
        HookPoint("heads", family.attention_output),
    ]
    if family.attention_post_norm is not None:
        points.append(HookPoint("attended", family.attention_post_norm))
    if family.ffn_norm is not None and not family.parallel:
        points.append(HookPoint("middle", family.ffn_norm))
    points.append(HookPoint("ffn_input", family.ffn, keywords=("hidden_states",)))
    if family.down is not None:
        points.append(HookPoint("units", family.down))
    if family.ffn_post_norm is not None:
        points.append(HookPoint("produced", family.ffn_post_norm))
    elif family.down is None:
        points.append(HookPoint("produced", family.ffn, "output"))
    return tuple(points)


def by_part(points: tuple[HookPoint, ...]) -> dict[tuple[str, str], tuple[HookPoint, ...]]:
    """Groups the points that one hook reads together, by path and side."""
    grouped: dict[tuple[str, str], tuple[HookPoint, ...]] = {}
    for point in points:
        key = (point.part, point.side)
        grouped[key] = (*grouped.get(key, ()), point)
    return grouped
