"""Recognises the base an adapter was trained on, by a few sampled weights rather than a hash.

So it does not depend on dtype, quantisation or padding rows.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from otterlm.causal import decoder_of
from otterlm.detection import recognize
from otterlm.families.parts import part_of, weight_of

SAMPLES, ROWS = 32, 24
"""So many values of the last norm, and so many rows of the embedding table, one value each, are read."""
TOLERANCE = 0.02
"""The tolerance is relative. Rounding to bf16 moves a weight by at most 0.004."""
FORMER = 2 * SAMPLES
"""Former fingerprints, whose positions depended on the number of rows, had so many values. Now there are fewer."""


@torch.no_grad()
def fingerprint(base: PreTrainedModel) -> tuple[float, ...]:
    """Returns values of the last norm and of the first rows of the embedding table, which quantisation leaves alone.

    Where they lie does not depend on how many rows there are: tables are padded, and get rows for new tokens.
    """
    embedding, norm = _parts(base)
    row = torch.arange(ROWS) * torch.arange(1, ROWS + 1) // 2  # 0, 1, 3, 6, ...: denser where every table has rows
    row = row[row < embedding.shape[0]].to(embedding.device)
    values = embedding[row, (row * 7919) % embedding.shape[1]]
    return _numbers(norm[_spread(norm.numel(), norm.device)], values)


@torch.no_grad()
def same_base(base: PreTrainedModel, expected: tuple[float, ...]) -> bool:
    """Returns whether a fingerprint is of this base, as it was or with more or fewer rows in its embedding table."""
    if len(expected) == FORMER:
        return _same_former(base, torch.tensor(expected))
    return alike(expected, fingerprint(base))


def alike(expected: tuple[float, ...], actual: tuple[float, ...]) -> bool:
    """Returns whether two fingerprints are of one base. Former ones cannot be compared, and are not."""
    shared = min(len(expected), len(actual))
    norms = SAMPLES if len(actual) > ROWS else 0  # a norm without weights has none
    close = _close(torch.tensor(expected)[:shared], torch.tensor(actual)[:shared])
    return len(expected) <= SAMPLES + ROWS and bool(close[:norms].all() and _most(close[norms:]))


def _same_former(base: PreTrainedModel, expected: Tensor) -> bool:
    """Does the same for values at positions that were spread over a table of as many rows as there were then.

    That number was not stored, so all possible ones are tried, up to twice as many as there are now: then the first
    half of the positions can still be read.
    """
    embedding, norm = _parts(base)
    values = norm[_spread(norm.numel(), norm.device)].float().cpu()
    table, width = embedding.flatten(), embedding.shape[1]
    if not _close(expected[SAMPLES:], values).all() or not _close(expected[:1], table[:1].float().cpu()).all():
        return False
    likely = torch.tensor([embedding.shape[0]])
    others = torch.arange(1, 2 * embedding.shape[0] + 1)
    for rows in (likely, *others.split(1 << 14)):
        position = torch.arange(SAMPLES) * (rows[:, None] * width // SAMPLES - 1).clamp_min(1)
        position = position % (rows[:, None] * width)  # [N, SAMPLES]
        valid = position < table.numel()
        read = table[position.where(valid, 0).to(table.device)].float().cpu()
        if (_close(expected[:SAMPLES], read) | ~valid).all(dim=-1).any():
            return True
    return False


def _most(close: Tensor) -> bool:
    """Returns whether rows are of one embedding table. Those of special tokens are sometimes made again."""
    return int(close.sum()) >= len(close) - len(close) // 4


def _parts(base: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Returns the embedding table, `[V, d]`, and the last norm's weight, `[d]`, or nothing where it has none."""
    family, decoder = recognize(base), decoder_of(base)
    table, norm = weight_of(decoder.get_submodule(family.embedding)), part_of(decoder, family.final_norm)
    if norm is None or getattr(norm, "weight", None) is None:
        return table, table.new_empty(0)
    return table, weight_of(norm)


def _spread(length: int, device: torch.device) -> Tensor:
    """Returns evenly spaced positions; none where the length is 0."""
    steps = torch.arange(SAMPLES, device=device) * max(1, length // SAMPLES - 1)
    return steps % length if length else steps[:0]


def _numbers(*parts: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.5g}") for value in torch.cat([part.float().cpu() for part in parts]).tolist())


def _close(expected: Tensor, actual: Tensor) -> Tensor:
    return (expected - actual).abs() <= TOLERANCE * expected.abs() + 1e-6
