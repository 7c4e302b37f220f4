"""Transposed linear layers give the same products, in the running thread, for a few rows."""

import threading

import pytest
import torch
from conftest import close
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from otterlm.decoding import transposed_linear
from otterlm.decoding.transposed_linear import CACHED, MOST, TransposedLinear


@given(st.lists(st.integers(1, 6), min_size=0, max_size=3), st.integers(1, 20), st.integers(1, 20), st.booleans())
def test_products_are_the_same(shape, into, out, bias) -> None:
    linear, inputs = nn.Linear(into, out, bias=bias), torch.randn(*shape, into)
    with torch.no_grad():
        expected = linear(inputs)
        with TransposedLinear(linear):
            results = linear(inputs)
            again = linear(results) if into == out else None  # its rows are the transpose of a product
    assert results.shape == expected.shape
    close(results, expected)
    if again is not None:
        close(again, linear(expected))


@pytest.mark.parametrize(
    ("rows", "width", "turned"),
    [(1, 4, False), (2, 4, True), (3, 4, True), (MOST, 4, True), (MOST + 1, 4, False), (2, CACHED // 2 + 1, False)],
)
def test_only_a_few_rows_are_turned(rows, width, turned, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = transposed_linear._linear

    def counted(*args):
        seen.append(1)
        return original(*args)

    monkeypatch.setattr(transposed_linear, "_linear", counted)
    linear, inputs = nn.Linear(width, 5), torch.randn(rows, width)
    with TransposedLinear(linear):
        linear(inputs)
        other = threading.Thread(target=lambda: linear(inputs))
        other.start()
        other.join()
    linear(inputs)
    assert len(seen) == int(turned)


def test_the_layer_is_as_before_after_an_error() -> None:
    linear = nn.Linear(4, 5)
    with pytest.raises(RuntimeError), TransposedLinear(nn.Sequential(linear), linear):
        linear(torch.randn(3, 6))
    assert "forward" not in vars(linear)


def test_layers_of_another_kind_are_left_alone() -> None:
    class Quantised(nn.Linear):
        pass

    replaced = nn.Linear(4, 5)
    replaced.forward = lambda inputs: inputs  # type: ignore[assignment, method-assign]
    other = Quantised(4, 5)
    inputs = torch.randn(3, 4)
    with TransposedLinear(replaced, other):
        assert replaced(inputs) is inputs
        assert "forward" not in vars(other)
    assert replaced(inputs) is inputs


def test_a_weight_of_another_kind_is_left_alone() -> None:
    class Marked(torch.Tensor):
        pass

    linear, inputs = nn.Linear(4, 5, bias=False), torch.randn(3, 4)
    vars(linear)["_parameters"]["weight"] = torch.randn(5, 4).as_subclass(Marked)
    with TransposedLinear(linear):
        assert type(linear(inputs)) is Marked
