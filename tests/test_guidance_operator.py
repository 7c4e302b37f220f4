"""The C++ operator guides logits where they are, to the same bits as `guide` does."""

import math
from typing import Any

import pytest
import torch
from conftest import needs_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from otterlm.decoding.steering import MANY, guide
from otterlm.engines.vllm.kernels import building
from otterlm.engines.vllm.kernels.candidates import guide_rows, operator_for

pytestmark = [needs_compiler, pytest.mark.usefixtures("library")]


def of(rewards: Tensor, tokens: Tensor | None) -> Tensor:
    return rewards if tokens is None else rewards.gather(-1, tokens)


def check(library: Any, logits: Tensor, rows: list[int], min_p: float) -> list[Tensor | None]:
    """Compares the operator with `guide`. Returns the tokens whose rewards it asked for."""
    generator = torch.Generator().manual_seed(len(rows))
    rewards = torch.randn(len(rows), logits.shape[1], generator=generator)
    weight = torch.randn(len(rows), 1, generator=generator)
    asked: tuple[list[Tensor | None], list[Tensor | None]] = ([], [])

    def ask(which: int, tokens: Tensor | None) -> Tensor:
        asked[which].append(None if tokens is None else tokens.clone())
        return of(rewards, tokens)

    expected, at = logits.clone(), torch.tensor(rows)
    expected[at] = guide(expected[at], lambda tokens: ask(0, tokens), weight, None, min_p)
    guide_rows(library, logits, at, lambda tokens: ask(1, tokens), weight, min_p)
    assert torch.equal(logits, expected)
    for ours, theirs in zip(asked[1], asked[0], strict=True):
        if ours is None or theirs is None:
            assert ours is theirs
        else:
            assert torch.equal(ours, theirs)
    return asked[1]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 1500),
    st.integers(0, 5),
    st.sampled_from([0.1, 1.0, 5.0, 30.0]),
    st.floats(0.001, 1.0),
    st.sampled_from([1, 3]),
    st.data(),
)
def test_the_operator_is_the_function(library, batch, vocabulary, padding, scale, min_p, threads, data) -> None:
    """Some rows are guided, and the others and what lies beside the logits stay."""
    generator = torch.Generator().manual_seed(vocabulary)
    memory = scale * torch.randn(batch, vocabulary + padding, generator=generator)
    rows = data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=batch, unique=True).map(sorted))
    beside = memory[:, vocabulary:].clone()
    torch.set_num_threads(threads)
    check(library, memory[:, :vocabulary], rows, min_p)
    torch.set_num_threads(1)
    assert torch.equal(memory[:, vocabulary:], beside)


@pytest.mark.parametrize("vocabulary", [40, 300, 1000])
def test_rows_that_are_special(library, vocabulary) -> None:
    flat = torch.zeros(vocabulary)
    sharp = flat.clone()
    sharp[vocabulary - 1] = 20.0
    equal = sharp.clone()
    equal[:3] = 20.0
    unknown, endless = sharp.clone(), sharp.clone()
    unknown[vocabulary // 2], endless[7] = math.nan, math.inf
    ruled_out = torch.full((vocabulary,), -math.inf)
    one = ruled_out.clone()
    one[11] = -3.0
    assert [
        None if each is None else each.tolist() for each in check(library, torch.stack([sharp, one]), [0, 1], 0.15)
    ] == [[[vocabulary - 1], [11]]]
    (few,) = check(library, torch.stack([sharp, equal, endless]), [0, 1, 2], 1.0)
    assert few is not None
    assert few.tolist() == [[vocabulary - 1] * 4, [0, 1, 2, vocabulary - 1], [7] * 4]
    for row in (unknown, flat, ruled_out):
        asked = check(library, torch.stack([sharp, row, equal]), [0, 1, 2], 0.15)
        assert (asked == [None]) == (row is unknown or vocabulary > MANY)


def test_what_the_operator_does_not_read(library, monkeypatch) -> None:
    logits = torch.zeros(2, 8)
    assert operator_for(logits, None, 0.15) is library
    assert operator_for(logits, 3, 0.15) is None
    assert operator_for(logits, None, 0.0) is None
    assert operator_for(logits.double(), None, 0.15) is None
    assert operator_for(torch.zeros(8, 2).T, None, 0.15) is None
    monkeypatch.setenv(building.SWITCH, "0")
    building.library.cache_clear()
    assert operator_for(logits, None, 0.15) is None
