"""Recognises an architecture that is not listed, by trying the facts of the listed ones and checking that they hold.

What is checked is behaviour, not names: a stream that starts as a copy must carry the first channels of the base's own
state through every block. Whatever a block does that the facts do not say (a multiplier, another norm) breaks that.
"""

from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import product

import torch
from transformers import PreTrainedModel

from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.families import FAMILIES, KNOWN, Family, family_of, register
from otterlm.families.parts import device_of, part_of
from otterlm.initialization import initialize
from otterlm.stream import InsertedStream, StreamPass
from otterlm.taps import Taps

CHANNELS, TOKENS = 8, 6
TOLERANCE = 1e-3
"""Relative to the state's largest value."""


def recognize(base: PreTrainedModel) -> Family:
    """The family of a base: by its name if it is listed, else by trial.

    Raises:
        OtterError: it is neither; says what was not found in it.
    """
    kind = base.config.model_type
    if kind in FAMILIES:
        return family_of(base.config)
    lacking: dict[str, list[str]] = {}
    for family in KNOWN:
        missing = _missing(base, family)
        if not missing:
            for variant in _variants(family):
                if _carries_the_state(base, variant):
                    found = replace(variant, model_types=(kind,))
                    register(found)
                    return found
        lacking[family.model_types[0]] = missing
    closest = min(lacking, key=lambda name: len(lacking[name]))
    if lacking[closest]:
        why = f"the closest, {closest}, has {', '.join(lacking[closest])}, which this has not"
    else:
        why = f"its parts are named as {closest}'s but act otherwise"
    raise OtterError(
        f"architecture {kind!r} is not known and no known family fits: {why} (see docs/families.md to add it)"
    )


def _missing(base: PreTrainedModel, family: Family) -> list[str]:
    """The family's parts that the base lacks."""
    decoder = base.get_decoder()
    top = ("layers", "embedding", "final_norm", "rotary")
    missing = [path for name in top if (path := getattr(family, name)) and part_of(decoder, path) is None]
    if family.layers in missing:
        return missing
    optional = ("query_norm", "key_norm")
    block = decoder.get_submodule(family.layers)[0]
    for field in fields(family):
        value = getattr(family, field.name)
        if field.name in top or field.name in optional or field.name not in _PATHS or value is None:
            continue
        missing += [path for path in ([value] if isinstance(value, str) else value) if part_of(block, path) is None]
    return missing


_PATHS = (
    *("attention", "query_key_value", "attention_output", "ffn", "gate_up", "down"),
    *("attention_norm", "ffn_norm", "attention_post_norm", "ffn_post_norm"),
)


def _variants(family: Family) -> Iterator[Family]:
    """The family as listed, and as it would be with other norms or other residuals."""
    yield family
    for parallel, centred, offset in product((False, True), (False, True), (0.0, 1.0)):
        yield replace(family, parallel=parallel, centred=centred, norm_offset=offset)


@torch.no_grad()
def _carries_the_state(base: PreTrainedModel, family: Family) -> bool:
    """Whether a copied stream goes through the base as the base's own first channels do, and leaves its logits."""
    config = OtterConfig(hidden_size=CHANNELS, num_attention_heads=1, intermediate_size=1)
    device = device_of(base.get_input_embeddings())
    ids = torch.arange(1, TOKENS + 1, device=device)[None]
    try:
        stream = InsertedStream(config, base, family, base.dtype, device)
        initialize(stream, config, base, family)
        plain = base(ids, use_cache=False).logits
        taps = Taps(base, family, stream.widths.layers)
        seen = StreamPass(stream, base.config.num_hidden_layers, ())
        with taps.visit(seen):
            logits = base(ids, use_cache=False).logits
        taps.remove()
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError, OtterError):
        return False  # a part of this name is another kind of part
    if seen.state is None or not torch.equal(plain, logits):
        return False
    width = base.config.hidden_size
    ours, theirs = seen.state[..., width:].float(), seen.state[..., :CHANNELS].float()
    return bool((ours - theirs).abs().max() <= TOLERANCE * seen.state.abs().max())
