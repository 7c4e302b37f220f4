"""Computes the sizes of a base and of what is inserted into it."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.families import Family
from otterlm.families.facts import decoder_config, head_dim, kv_heads
from otterlm.families.parts import inputs_of


@dataclass(frozen=True, slots=True)
class Widths:
    """The widths are the sizes of a base and of what is inserted into it."""

    depth: int  # blocks
    base: int  # d
    base_heads: int  # H
    base_kv_heads: int
    base_head_dim: int
    base_units: int  # f; 0 for experts
    inserted: int  # d'
    heads: int  # H'
    kv_heads: int
    head_dim: int
    units: int  # f'
    layers: tuple[int, ...]

    @classmethod
    def of(cls, config: OtterConfig, base_model: PreTrainedModel, family: Family) -> "Widths":
        """Computes the sizes for a base. Only its configuration and the shapes of its parts are read.

        Raises:
            OtterError: what is to be inserted does not fit the base.
        """
        base = decoder_config(base_model)
        block = base_model.get_decoder().get_submodule(family.layers)[0]
        base_head_dim = head_dim(base)
        layers = config.layers or tuple(range(base.num_hidden_layers))
        widths = cls(
            depth=base.num_hidden_layers,
            base=base.hidden_size,
            base_heads=base.num_attention_heads,
            base_kv_heads=kv_heads(base, family),
            base_head_dim=base_head_dim,
            base_units=inputs_of(block.get_submodule(family.down)) if family.down else 0,
            inserted=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim or base_head_dim,
            units=config.intermediate_size,
            layers=layers,
        )
        if layers[-1] >= base.num_hidden_layers:
            raise OtterError(
                f"layer {layers[-1]} does not exist: the base has {base.num_hidden_layers}, counted from 0"
            )
        if base_head_dim % widths.head_dim or widths.head_dim % 2:
            raise OtterError(f"head_dim {widths.head_dim} must be even and divide the base's, {base_head_dim}")
        for name, size, limit in (
            ("hidden_size", widths.inserted, widths.base),
            ("num_attention_heads", widths.heads, 4 * widths.base_heads),
            ("num_key_value_heads", widths.kv_heads, widths.base_kv_heads),
            ("intermediate_size", widths.units, widths.base_units or 4 * widths.base),
            *((name, *pair) for name, pair in config.signal.limits(widths.base, base.vocab_size).items()),
        ):
            if size > limit:
                raise OtterError(f"{name} {size} is too large for this base: at most {limit}")
        return widths
