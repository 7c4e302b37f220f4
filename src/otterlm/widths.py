"""Computes the sizes of a base and of what is inserted into it."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.families import Family, Outline
from otterlm.families.facts import decoder_config, head_dim, kv_heads
from otterlm.families.parts import blocks_of, inputs_of

HEAD_DIM = 64
"""Extra heads have this size where the base's is not known."""


@dataclass(frozen=True, slots=True)
class Widths:
    """The widths are the sizes of a base and of what is inserted into it."""

    depth: int  # blocks
    base: int  # d
    inserted: int  # d'
    heads: int  # H'
    kv_heads: int
    head_dim: int
    units: int  # f'
    layers: tuple[int, ...]
    # Of the blocks' inside; 0 where they are read at their edge.
    base_heads: int = 0  # H
    base_kv_heads: int = 0
    base_head_dim: int = 0
    base_units: int = 0  # f; 0 for experts, too

    @classmethod
    def of(cls, config: OtterConfig, base_model: PreTrainedModel, family: Outline) -> "Widths":
        """Computes the sizes for a base. Only its configuration and the shapes of its parts are read.

        Raises:
            OtterError: what is to be inserted does not fit the base.
        """
        base, depth = decoder_config(base_model), len(blocks_of(base_model, family))
        inside = sizes_inside(base_model, family) if isinstance(family, Family) else {}
        layers = config.layers or tuple(range(depth))
        widths = cls(
            depth=depth,
            base=base.hidden_size,
            inserted=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim or inside.get("base_head_dim", HEAD_DIM),
            units=config.intermediate_size,
            layers=layers,
            **inside,
        )
        if layers[-1] >= depth:
            raise OtterError(f"layer {layers[-1]} does not exist: the base has {depth}, counted from 0")
        if widths.head_dim % 2 or widths.base_head_dim % widths.head_dim:
            divides = f" and divide the base's, {widths.base_head_dim}" if inside else ""
            raise OtterError(f"head_dim {widths.head_dim} must be even{divides}")
        base_heads = widths.base_heads or max(1, widths.base // widths.head_dim)
        for name, size, limit in (
            ("hidden_size", widths.inserted, widths.base),
            ("num_attention_heads", widths.heads, 4 * base_heads),
            ("num_key_value_heads", widths.kv_heads, widths.base_kv_heads or widths.heads),
            ("intermediate_size", widths.units, widths.base_units or 4 * widths.base),
            *((name, *pair) for name, pair in config.signal.limits(widths.base, base.vocab_size).items()),
        ):
            if size > limit:
                raise OtterError(f"{name} {size} is too large for this base: at most {limit}")
        return widths


def sizes_inside(base_model: PreTrainedModel, family: Family) -> dict[str, int]:
    """Returns the sizes of the blocks' parts."""
    base, block = decoder_config(base_model), blocks_of(base_model, family)[0]
    return {
        "base_heads": base.num_attention_heads,
        "base_kv_heads": kv_heads(base, family),
        "base_head_dim": head_dim(base),
        "base_units": inputs_of(block.get_submodule(family.down)) if family.down else 0,
    }
