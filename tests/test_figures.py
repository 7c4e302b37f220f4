"""The figures of the benchmarks show the numbers of the tables beside them, the moving picture those of its run."""

import importlib.util
import json
import re
import shutil
import sys
from typing import Any
from xml.etree import ElementTree

import pytest
from readability import ROOT


def script(name: str) -> Any:
    """Imports a script of `benchmarks/`."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


figures, picture, runs = script("figures"), script("picture"), script("picture_runs")


@pytest.mark.parametrize("figure", figures.FIGURES, ids=lambda figure: figure.page)
def test_the_figure_is_its_table(figure) -> None:
    drawn = (ROOT / "docs" / "assets" / f"{figure.page}.svg").read_text()
    assert drawn == figures.draw(figure), "run python benchmarks/figures.py"


def test_a_figure_as_png(tmp_path) -> None:
    if shutil.which("rsvg-convert") is None:
        pytest.skip("rsvg-convert is not installed")
    figures.write_png("guard", tmp_path / "out")
    assert (tmp_path / "out" / "guard.png").read_bytes().startswith(b"\x89PNG")


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


# -- the moving picture ------------------------------------------------------------------------------------------------

RUN = json.loads(picture.RUN.read_text())


def test_the_picture_is_its_run() -> None:
    drawn = picture.PICTURE.read_text()
    assert drawn == picture.draw(RUN), "run python benchmarks/picture.py"
    assert len(drawn) < 50_000


def test_the_picture_is_whole_where_nothing_moves() -> None:
    """Every token and number is there. Only the animation, which readers may have turned off, hides any."""
    root = ElementTree.fromstring(picture.PICTURE.read_text())
    texts = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    for name in picture.NAMES:
        shown = [piece.strip() for piece in RUN[name]["pieces"] if piece.strip()]
        assert [text.strip() for text in texts if text.strip() in shown][: len(shown)]
        assert any(f"{abs(RUN[name]['rewards'][-1]):.2f}" in text for text in texts)
    guard = RUN["guard"]
    written = [text.strip() for text in texts]
    assert "".join(guard["prompt"].split() + [piece.strip() for piece in guard["pieces"]]) in "".join(written)
    assert f"stopped: {guard['label']}" in written
    assert 1 - guard["harmless"][-2] > 0.9
    still, moving = picture.PICTURE.read_text().split("@media (prefers-reduced-motion: no-preference)")
    assert "opacity" not in still
    assert "opacity" not in moving.split("</style>")[1]
    steps = max(len(RUN[name]["pieces"]) for name in picture.NAMES) + len(guard["pieces"])
    assert len(re.findall(r"@keyframes", moving)) == steps


def test_pieces_stay_inside_the_picture() -> None:
    laid = picture.lay_out(["word " * 3, "longer", "\n", "next", " end"])
    assert all(column + len(letters) <= picture.COLUMNS for _, column, letters in laid)
    assert [row for row, _, _ in laid] == [0, 0, 1, 1, 1]


@pytest.mark.slow
def test_the_run_can_be_repeated() -> None:
    again = runs.record()
    assert again["guard"]["pieces"] == RUN["guard"]["pieces"]
    assert again["guard"]["harmless"] == pytest.approx(RUN["guard"]["harmless"], abs=0.01)
    for name in picture.NAMES:
        assert again[name]["pieces"] == RUN[name]["pieces"]
        assert again[name]["rewards"] == pytest.approx(RUN[name]["rewards"], abs=0.01)
