"""Applies rotary position embedding (RoPE, arXiv 2104.09864) to the extra heads, from the base's table or another."""

from typing import Literal

import torch
from torch import Tensor


class Rotation:
    """Turns heads by their positions. One object serves all blocks of a pass that share a table.

    Args:
        cos, sin: the base's, `[B, T, rotated channels]` each.
        stride: the base's head size over the extra heads': these use every n-th of its frequencies.
        kind: which channels are turned together: `halves` (i, i + n / 2) or `pairs` (2i, 2i + 1).
        dtype: of the heads.
    """

    def __init__(
        self, cos: Tensor, sin: Tensor, stride: int, kind: Literal["halves", "pairs"], dtype: torch.dtype
    ) -> None:
        self._kind = kind
        self._cos, sin = (
            self._every_nth(table, stride).unsqueeze(2).to(dtype) for table in (cos, sin)
        )  # [B, T, 1, rotated]
        self._rotated = sin.shape[-1]
        # (a, b) becomes (a cos - b sin, b cos + a sin): the sign goes to the table, once a pass.
        sign = sin.new_ones(self._rotated)
        sign[slice(self._rotated // 2) if kind == "halves" else slice(None, None, 2)] = -1
        self._sin = sin * sign

    def __call__(self, heads: Tensor) -> Tensor:
        """Turns the first channels of `[B, T, H', head_dim]`, as many as there are frequencies for."""
        if self._rotated == heads.shape[-1]:
            return self._turn(heads)
        turned, rest = heads.tensor_split([self._rotated], dim=-1)
        return torch.cat((self._turn(turned), rest), dim=-1)

    def _every_nth(self, table: Tensor, stride: int) -> Tensor:
        if stride == 1:
            return table
        if self._kind == "halves":
            return table.unflatten(-1, (2, -1))[..., ::stride].flatten(-2)
        return table.unflatten(-1, (-1, 2))[..., ::stride, :].flatten(-2)

    def _turn(self, heads: Tensor) -> Tensor:
        if self._kind == "halves":
            other = heads.roll(self._rotated // 2, dims=-1)
        else:
            other = heads.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        return torch.addcmul(heads * self._cos, other, self._sin)


BASE = 10_000.0
"""The frequencies have this base where they are not the model's (section 3.2.2 of the paper)."""


def rotation_of(positions: Tensor, head_dim: int, dtype: torch.dtype) -> Rotation:
    """Makes a rotation of whole heads that needs nothing of the base.

    Args:
        positions: `[B, T]`.
        head_dim: of the heads.
        dtype: of the heads.
    """
    channel = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    angle = positions[..., None].float() * BASE ** (-channel / head_dim)  # [B, T, head_dim / 2]
    angle = torch.cat((angle, angle), dim=-1)
    return Rotation(angle.cos(), angle.sin(), 1, "halves", dtype)
