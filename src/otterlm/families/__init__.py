"""Lists facts about architectures, as data. A new architecture is one entry here."""

from collections.abc import Callable
from typing import Any

from transformers import PretrainedConfig

from otterlm.errors import OtterError
from otterlm.families.family import Family, Outline
from otterlm.families.gemma import GEMMA2, GEMMA3
from otterlm.families.gpt import GPT2, NEOX, OPT, neox, opt
from otterlm.families.llama import GRANITE, GRANITE_MOE, LLAMA, MIXTRAL, OLMO2, PHI3, QWEN3, QWEN3_MOE
from otterlm.families.parallel import COHERE, FALCON, STABLELM, falcon, stablelm

KNOWN = (
    *(LLAMA, GRANITE, QWEN3, PHI3, OLMO2, GEMMA2, GEMMA3, MIXTRAL, GRANITE_MOE, QWEN3_MOE),
    *(GPT2, OPT, NEOX, FALCON, STABLELM, COHERE),
)
FAMILIES = {model_type: family for family in KNOWN for model_type in family.model_types}

VARIANTS: dict[str, Callable[[Any], Family]] = {"opt": opt, "gpt_neox": neox, "falcon": falcon, "stablelm": stablelm}
"""The facts of these families depend on the configuration."""

__all__ = ["FAMILIES", "KNOWN", "Family", "Outline", "facts_for", "family_of", "register"]


def register(family: Family) -> None:
    """Makes a family known, for all its `model_types`."""
    FAMILIES.update(dict.fromkeys(family.model_types, family))


def facts_for(taps: str | None, family: Outline) -> Outline:
    """Returns the facts by which a stream reads a base.

    Args:
        taps: `inside`, `edge` or None, see `otterlm.config.OtterConfig`.
        family: the base's.

    Raises:
        OtterError: the inside of the base's blocks is to be read, but is not known.
    """
    if taps == "inside" and not isinstance(family, Family):
        raise OtterError(f"taps cannot be inside the blocks of this base: {family.why}; edge reads any")
    return family.outline if taps == "edge" and isinstance(family, Family) else family


def family_of(config: PretrainedConfig) -> Family:
    """Returns the family of a listed architecture. `otterlm.detection.recognize` knows others, too.

    Raises:
        OtterError: it is not listed, or a variant that is not supported.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise OtterError(
            f"architecture {config.model_type!r} is not known; known: {', '.join(sorted(FAMILIES))} "
            "(see docs/families.md to add it)"
        )
    variant = VARIANTS.get(config.model_type)
    return family if variant is None else variant(config)
