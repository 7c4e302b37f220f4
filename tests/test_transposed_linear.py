"""Transposed linear layers give the same products, in the running thread, for a few rows."""

import threading

import pytest
import torch
from conftest import close
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from otterlm.decoding import transposed_linear
from otterlm.decoding.transposed_linear import MOST, TransposedLinear


@given(st.lists(st.integers(1, 6), min_size=0, max_size=3), st.integers(1, 20), st.integers(1, 20), st.booleans())
def test_products_are_the_same(shape, into, out, bias) -> None:
    linear, inputs = nn.Linear(into, out, bias=bias), torch.randn(*shape, into)
    with torch.no_grad():
        expected = linear(inputs)
        with TransposedLinear():
            results = linear(inputs)
    assert results.shape == expected.shape
    close(results, expected)


@pytest.mark.parametrize(("rows", "turned"), [(1, False), (2, True), (MOST, True), (MOST + 1, False)])
def test_only_a_few_rows_are_turned(rows, turned, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = transposed_linear._linear

    def counted(*args):
        seen.append(1)
        return original(*args)

    monkeypatch.setattr(transposed_linear, "_linear", counted)
    linear, inputs = nn.Linear(4, 5), torch.randn(rows, 4)
    with TransposedLinear():
        linear(inputs)
        other = threading.Thread(target=lambda: linear(inputs))
        other.start()
        other.join()
    linear(inputs)
    assert len(seen) == int(turned)


def test_a_weight_of_another_kind_is_left_alone() -> None:
    class Quantised(torch.Tensor):
        pass

    weight, inputs = torch.randn(5, 4).as_subclass(Quantised), torch.randn(3, 4)
    with TransposedLinear():
        assert type(nn.functional.linear(inputs, weight)) is Quantised
