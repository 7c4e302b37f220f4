"""Facts about architectures, as data. A new architecture is one entry here."""

from transformers import PretrainedConfig

from otterlm.errors import OtterError
from otterlm.families.family import Family
from otterlm.families.llama import LLAMA, QWEN3

FAMILIES = {model_type: family for family in (LLAMA, QWEN3) for model_type in family.model_types}

__all__ = ["FAMILIES", "Family", "family_of"]


def family_of(config: PretrainedConfig) -> Family:
    """The family of a base.

    Raises:
        OtterError: Otter does not know this architecture.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise OtterError(
            f"architecture {config.model_type!r} is not known; known: {', '.join(sorted(FAMILIES))} "
            "(add it in otterlm/families)"
        )
    return family
