"""Recognises the base an adapter was trained on, whatever its dtype or quantisation: a few sampled weights, not a
hash."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from otterlm.families import family_of
from otterlm.families.parts import weight_of

SAMPLES = 32
TOLERANCE = 0.02
"""Relative; rounding to bf16 moves a weight by at most 0.004."""


@torch.no_grad()
def fingerprint(base: PreTrainedModel) -> tuple[float, ...]:
    """Evenly spaced values of the embedding table and of the last norm, which quantisation leaves alone."""
    family, decoder = family_of(base.config), base.get_decoder()
    parts: list[Tensor] = []
    for path in (family.embedding, family.final_norm):
        weight = weight_of(decoder.get_submodule(path)).flatten()
        # A whole number of steps that shares no factor with powers of two, so that columns vary too.
        index = torch.arange(SAMPLES, device=weight.device) * max(1, weight.numel() // SAMPLES - 1)
        parts.append(weight[index % weight.numel()])
    return tuple(float(f"{value:.5g}") for value in torch.cat([part.float().cpu() for part in parts]).tolist())


def same_base(expected: tuple[float, ...], actual: tuple[float, ...]) -> bool:
    """Whether two fingerprints are of one base."""
    if len(expected) != len(actual):
        return False
    left, right = torch.tensor(expected), torch.tensor(actual)
    return bool(((left - right).abs() <= TOLERANCE * left.abs() + 1e-6).all())
