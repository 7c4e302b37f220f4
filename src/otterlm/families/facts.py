"""Reads a family's facts from the configuration of one model."""

from typing import Any

from otterlm.errors import OtterError
from otterlm.families.family import Family, Outline

NUMBERS = ("embedding_multiplier", "residual_multiplier", "logit_multiplier", "logit_divisor", "logit_softcap")
"""These fields of a family name numbers that scale what a base computes."""


def decoder_config(base: Any) -> Any:
    """Returns the configuration of a base's decoder; of a model that also sees or hears, the part for text."""
    return base.config.get_text_config(decoder=True)


def number(config: Any, name: str | None) -> float | None:
    """Returns the number of this name in a configuration; None where the family or this model has no such number.

    Raises:
        OtterError: the configuration does not know the name.
    """
    if name is None:
        return None
    if not hasattr(config, name):
        raise OtterError(f"the configuration of {config.model_type!r} has no {name}, which its family's entry names")
    value = getattr(config, name)
    return None if value is None else float(value)


def head_dim(config: Any) -> int:
    """Returns the width of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def kv_heads(config: Any, family: Family) -> int:
    """Returns the number of key/value heads of a block."""
    heads = None if family.kv_heads is None else getattr(config, family.kv_heads)
    return int(heads or config.num_attention_heads)


def context_length(config: Any) -> int | None:
    """Returns the most tokens that a model was made for; None where its configuration does not say."""
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)


def residual_multiplier(config: Any, family: Family) -> float:
    """Returns the factor of the outputs of attention and FFN, before they are added to the state."""
    multiplier = number(config, family.residual_multiplier)
    return 1.0 if multiplier is None else multiplier


def logit_transform(config: Any, family: Outline) -> tuple[float | None, float | None]:
    """Returns what a base does to the logits of its unembedding: a factor, and the soft cap that follows.

    Raises:
        OtterError: that is not known.
    """
    if not family.knows_logits:
        raise OtterError(f"what {config.model_type!r} does to its logits is not known, and has to be for this")
    factor, divisor = number(config, family.logit_multiplier), number(config, family.logit_divisor)
    if divisor is not None:
        factor = (1.0 if factor is None else factor) / divisor
    return factor, number(config, family.logit_softcap)


def layer_type(config: Any, family: Outline, layer: int) -> str | None:
    """Returns the type of a block, such as `sliding_attention`; None where the configuration has no types."""
    types = getattr(config, family.layer_types, None)
    return None if types is None else str(types[layer])


def window_of(config: Any, family: Outline, layer: int) -> int | None:
    """Returns how many tokens a block's attention sees; None: all.

    Blocks are distinguished as by the caches of Transformers.
    """
    if layer_type(config, family, layer) not in (None, "sliding_attention"):
        return None
    return getattr(config, family.window, None)


def activation_of(config: Any) -> str:
    """Returns the name of the FFN's activation."""
    for name in ("hidden_activation", "hidden_act", "activation_function", "activation"):
        if getattr(config, name, None):
            return str(getattr(config, name))
    raise OtterError(f"the configuration of {config.model_type!r} names no activation")
