"""Recognises what a base is: by its name, by what its blocks do inside, or from outside its blocks alone."""

import json
from contextlib import suppress
from typing import Any

import torch
from transformers import PreTrainedModel

from otterlm.causal import decoder_of
from otterlm.detection.changed import changed_parts
from otterlm.detection.inside import known_inside, missing, reads_later
from otterlm.detection.outside import outline_of
from otterlm.errors import OtterError
from otterlm.families import FAMILIES, Family, Outline, family_of
from otterlm.families.facts import decoder_config
from otterlm.replica import replica

__all__ = ["recognize"]

_recognized: dict[tuple[object, ...], Outline] = {}
"""The keys are classes and whole configurations: two models of one type may differ in what their blocks do."""


def recognize(base: PreTrainedModel) -> Outline:
    """Returns what is known of a base: its family, by its name if it is listed, else by trial; or else its outline.

    A listed one is tried, too, if its classes are not Transformers' own or its configuration may let it read later
    tokens. Of the base's parameters only the shapes are read.

    Raises:
        OtterError: a stream cannot read it; the message says what the base lacks.
    """
    config = decoder_config(base)
    listed = _listed(config)
    if listed is not None:
        if lacking := missing(base, listed):
            raise OtterError(f"this {config.model_type} is not supported: it lacks {', '.join(lacking)}")
        if not changed_parts(base) and not _may_read_later(config):
            return listed
    key = _key(base, config)
    if key not in _recognized:
        with torch.random.fork_rng(devices=[]):  # the caller's random state stays
            _recognized[key] = _by_trial(base, config, listed)
    return _recognized[key]


def _listed(config: Any) -> Family | None:
    with suppress(OtterError):  # it is none of the list, or a variant whose inside is another
        return family_of(config)
    return None


def _may_read_later(config: Any) -> bool:
    """Returns whether a configuration has an option by which a decoder's attention becomes an encoder's."""
    return getattr(config, "is_causal", True) is False or bool(getattr(config, "use_bidirectional_attention", None))


def _by_trial(base: PreTrainedModel, config: Any, listed: Family | None) -> Outline:
    if _may_read_later(config) and reads_later(replica(base)):
        raise OtterError(f"this {config.model_type} reads later tokens, as encoders do: its signals would, too")
    if listed is not None and not changed_parts(base):
        return listed
    try:
        if listed is None and config.model_type in FAMILIES:
            return family_of(config)  # which says why it is none
        return known_inside(base, config, listed)
    except OtterError as error:
        return outline_of(base, config, str(error))


def _key(base: PreTrainedModel, config: Any) -> tuple[object, ...]:
    values = config.to_dict()
    for name in ("_name_or_path", "transformers_version", "dtype", "quantization_config", "use_cache"):
        values.pop(name, None)
    kinds = type(base), type(decoder_of(base)), type(config)
    return *kinds, changed_parts(base), json.dumps(values, sort_keys=True, default=str)
