"""Recognises blocks that are not listed, by trying the facts of the listed ones and checking that they hold.

The check is of behaviour, not of names: a stream that starts as a copy must carry the first channels of the base's
state through every block. Whatever a block does that the facts do not say (a multiplier, another norm) breaks that.
"""

from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from itertools import product
from typing import Any

import torch
from transformers import PreTrainedModel

from otterlm.causal import decoder_of
from otterlm.config import OtterConfig
from otterlm.detection.changed import changed_parts
from otterlm.errors import OtterError, reason
from otterlm.families import KNOWN, Family
from otterlm.families.facts import NUMBERS
from otterlm.families.parts import base_logits, device_of, part_of
from otterlm.initialization import initialize
from otterlm.passes import StreamPass
from otterlm.replica import replica
from otterlm.stream import InsertedStream
from otterlm.taps import Taps

CHANNELS, TOKENS = 8, 6
TOLERANCE = 1e-3
"""Relative to the state's largest value."""


def known_inside(base: PreTrainedModel, config: Any, listed: Family | None = None) -> Family:
    """Returns the family whose facts hold of a base's blocks.

    Args:
        base: of its parameters only the shapes are read.
        config: its decoder's.
        listed: is tried first; the family of a base of this name whose parts are Transformers' own.

    Raises:
        OtterError: none holds; the message names what the closest has and the base lacks.
    """
    kind, changed = config.model_type, changed_parts(base)
    what = f"architecture {kind!r} is not known" if listed is None else f"this {kind!r} has its own {_names(changed)}"
    families = KNOWN if listed is None else (listed, *KNOWN)
    lacking = [(family, missing(base, family)) for family in families]
    alike = [family for family, lacks in lacking if not lacks]
    failures = []
    try:
        small = replica(base) if alike else None
        if small is not None and (put := changed - changed_parts(small)):
            raise OtterError(f"{_names(put)} was put into it after it was made")
        if small is not None and reads_later(small):
            raise OtterError("it reads later tokens, as encoders do")
    except OtterError as error:
        raise OtterError(f"{what}, and {error} (see docs/families.md to add it)") from None
    for family in alike:
        for variant in _variants(family, config):
            failure = _failure(small, variant)
            if failure is None:
                return replace(variant, model_types=(kind,))
            failures.append((failure, family.model_types[0]))
    if failures:
        failure, name = min(failures, key=lambda pair: (pair[0] != OTHER_LOGITS, pair[0] != MISFIT))
        why = f"its parts are named as {name}'s but {failure}"
    else:
        closest, lacks = min(lacking, key=lambda pair: len(pair[1]) / len(_paths(pair[0])))
        why = f"the closest, {closest.model_types[0]}, has {', '.join(lacks)}, which this has not"
    raise OtterError(f"{what} and no known family fits: {why} (see docs/families.md to add it)")


def _names(kinds: Iterable[type]) -> str:
    return ", ".join(sorted({kind.__name__ for kind in kinds}))


_TOP = ("layers", "embedding", "final_norm", "rotary")
_BLOCK = (
    *("attention", "query_key_value", "attention_output", "ffn", "gate_up", "down"),
    *("attention_norm", "ffn_norm", "attention_post_norm", "ffn_post_norm"),
)


def _paths(family: Family) -> list[tuple[bool, str]]:
    """Returns the family's parts: whether each is a part of a block, and its path."""
    paths = []
    for field in fields(family):
        value = getattr(family, field.name)
        if field.name in (*_TOP, *_BLOCK) and value is not None:
            paths += [(field.name in _BLOCK, path) for path in ([value] if isinstance(value, str) else value)]
    return paths


def missing(base: PreTrainedModel, family: Family) -> list[str]:
    """Returns the family's parts that the base, or one of its blocks, lacks."""
    decoder: Any = decoder_of(base)
    blocks: Any = part_of(decoder, family.layers) or ()
    return [
        path
        for in_block, path in _paths(family)
        if (
            (not len(blocks) or any(part_of(block, path) is None for block in blocks))
            if in_block
            else part_of(decoder, path) is None
        )
    ]


def _variants(family: Family, config: Any) -> Iterator[Family]:
    """Yields the family as listed, and as it would be with other norms or other residuals.

    Each comes first with the numbers that both listed families and this configuration have, then without.
    """
    none: dict[str, Any] = dict.fromkeys(NUMBERS)
    named = {
        field: name for known in KNOWN for field in NUMBERS if hasattr(config, name := getattr(known, field) or "")
    }
    for numbers in (none | named, none) if named else (none,):
        alike = replace(family, **numbers)
        yield alike
        for parallel, centred, offset in product((False, True), (False, True), (0.0, 1.0)):
            yield replace(alike, parallel=parallel, centred=centred, norm_offset=offset)


@torch.no_grad()
def reads_later(model: Any) -> bool:
    """Returns whether what a model says of a token depends on later ones."""
    ids = torch.arange(1, TOKENS + 1, device=device_of(model.get_input_embeddings()))[None]
    other = ids.clone()
    other[:, -1] = 0
    one, two = (model(each, use_cache=False)[0][:, :-1] for each in (ids, other))
    return bool((one - two).abs().max() > TOLERANCE * one.abs().max())


MISFIT = "act otherwise"
OTHER_LOGITS = "its logits are scaled otherwise"


@torch.no_grad()
def _failure(base: Any, family: Family) -> str | None:
    """Returns why the facts do not hold; None where they hold.

    A copied stream may not pass through the base as its first channels do, or may change what the base computes, or the
    logits may not be what the facts say.
    """
    config = OtterConfig(hidden_size=CHANNELS, num_attention_heads=1, intermediate_size=1)
    device = device_of(base.get_input_embeddings())
    ids = torch.arange(1, TOKENS + 1, device=device)[None]
    try:
        stream = InsertedStream(config, base, family, base.dtype, device)
        initialize(stream, config, base, family)
        plain = base(ids, use_cache=False)[0]
        taps = Taps(base, family, stream.widths.layers, inside=True, edge=False)
        seen = StreamPass(stream, stream.first_slot)
        with taps.visit(seen):
            output = base(ids, use_cache=False)[0]
        taps.remove()
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError, OtterError) as error:
        return f"cannot be read so ({reason(error)})"  # a part of this name is another kind of part
    if seen.state is None or not torch.equal(plain, output):
        return MISFIT
    width = stream.widths.base
    inserted, expected = seen.state[..., width:].float(), seen.state[..., :CHANNELS].float()
    if inserted.shape != expected.shape or (inserted - expected).abs().max() > TOLERANCE * seen.state.abs().max():
        return MISFIT
    if base.get_output_embeddings() is None:  # the decoder of a model that also sees or hears
        return None
    logits = base_logits(base, family, seen.state[..., :width])
    return None if (logits - plain).abs().max() <= TOLERANCE * plain.abs().max() else OTHER_LOGITS
