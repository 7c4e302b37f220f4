"""The figures of the benchmarks show the numbers of the tables beside them."""

import importlib.util

import pytest
from readability import ROOT

spec = importlib.util.spec_from_file_location("figures", ROOT / "benchmarks" / "figures.py")
assert spec is not None
assert spec.loader is not None
figures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(figures)


@pytest.mark.parametrize("figure", figures.FIGURES, ids=lambda figure: figure.page)
def test_the_figure_is_its_table(figure) -> None:
    drawn = (ROOT / "docs" / "assets" / f"{figure.page}.svg").read_text()
    assert drawn == figures.draw(figure), "run python benchmarks/figures.py"


@pytest.mark.parametrize(
    ("cell", "numbers"),
    [
        ("0.5 ± 0.25", [0.5, 0.25, 0.75]),
        ("1.06 (1.02 to 1.11)", [1.06, 1.02, 1.11]),
        ("0.08 (-0.02–0.17)", [0.08, -0.02, 0.17]),  # noqa: RUF001
        ("3.48", [3.48]),
    ],
)
def test_intervals(cell, numbers) -> None:
    assert figures.interval(cell) == numbers
