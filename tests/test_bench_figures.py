"""The figures of the benches have one style: Otter is seen first, intervals are drawn, the title is the finding."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.colors import to_hex

from otterlm.bench import figures

ROWS = [
    {"method": "base", "time": 1.0, "time_ci95": [1.0, 1.0], "gain": 0.0, "gain_ci95": 0.0},
    {"method": "Otter, guidance", "time": 1.1, "time_ci95": [1.0, 1.3], "gain": 1.5, "gain_ci95": 0.25},
    {"method": "ARGS", "time": 2.0, "time_ci95": [1.9, 2.2], "gain": 1.0, "gain_ci95": 0.5},
    {"method": "best-of-4", "time": 40.0, "time_ci95": None, "gain": None, "gain_ci95": None},
]


def test_colours_and_labels() -> None:
    (axes,) = figures.new_axes(figures.new_figure(4, 3))
    figures.scatter(axes, ROWS, "time", "gain")
    colours = {text.get_text(): to_hex(text.get_color()) for text in axes.texts}
    assert colours == {"base": figures.RIVAL, "Otter, guidance": figures.OTTER, "ARGS": figures.RIVAL}
    assert axes.get_xscale() == "log"
    assert axes.get_legend() is None


def test_intervals_are_drawn() -> None:
    (axes,) = figures.new_axes(figures.new_figure(4, 3))
    figures.scatter(axes, ROWS[1:2], "time", "gain")
    segments = [line.get_segments()[0].tolist() for line in axes.collections if hasattr(line, "get_segments")]
    assert segments == [[[1.0, 1.5], [1.3, 1.5]], [[1.1, 1.25], [1.1, 1.75]]]


@pytest.mark.parametrize(
    ("row", "column", "ends"),
    [
        ({"x": 2.0, "x_ci95": [1.0, 3.0]}, "x", (1.0, 3.0)),
        ({"x": 2.0, "x_ci95": 0.5}, "x", (1.5, 2.5)),
        ({"perplexity": 20.0, "perplexity_ci95": 0.5}, "perplexity", (10.0, 30.0)),
        ({"x": 2.0}, "x", None),
        ({"x": None, "x_ci95": 0.5}, "x", None),
    ],
)
def test_ends_of_intervals(row, column, ends) -> None:
    assert figures.bounds(row, column) == ends


def test_titles_state_the_finding() -> None:
    assert figures.finding(ROWS, "gain", "higher") == "Gain: Otter, guidance 1.5; best rival: ARGS 1"
    assert figures.finding(ROWS, "time", "lower") == "Time: Otter, guidance 1.1; best rival: ARGS 2"
    assert figures.finding(ROWS[:2], "gain", "higher") == "Gain: Otter, guidance 1.5"
    speeds = [{"method": name, "speed": speed} for name, speed in (("mine, 3 drafts", 1.4), ("Medusa", 1.1))]
    found = figures.finding(speeds, "speed", "higher", ["mine, 3 drafts"])
    assert found == "Speed: mine, 3 drafts 1.4; best rival: Medusa 1.1"
    assert figures.look("mine, 3 drafts", ["mine, 3 drafts"], ["mine, 3 drafts"])["color"] == figures.OTTER
    assert [figures.is_otter(name) for name in ("guidance, sampled", "search", "best-of-4", "Otter")] == [1, 1, 0, 1]


def test_a_figure_is_written_twice(tmp_path: Path) -> None:
    figure = figures.new_figure(4, 3)
    left, right = figures.new_axes(figure, 2)
    figures.scatter(left, ROWS, "time", "gain")
    figures.lines(right, {"Otter": ([25, 100], [0.7, 0.9]), "probe": ([25, 100], [0.6, 0.8])})
    figures.write_figure(tmp_path / "a.png", figure)
    figures.write_figure(tmp_path / "b.svg", figure)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg", "b.svg"]
    drawn = (tmp_path / "a.svg").read_text()
    assert "<svg" in (tmp_path / "b.svg").read_text()
    texts = {"".join(each.itertext()).strip() for each in ElementTree.fromstring(drawn).iter()}
    assert {"Otter, guidance", "ARGS", "probe"} <= texts
