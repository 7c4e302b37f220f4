"""Colours, charts and the page of `otter score --html`: readable, escaped, whole, and the worst mistakes first."""

import itertools
import re
from xml.etree import ElementTree

import pytest
import torch
from word_tokenizer import TEMPLATE, tokenizer

from otterlm.cli.pages.guards import guard_page
from otterlm.cli.pages.rewards import Reading, reward_page
from otterlm.colour import HIGH, INK, LOW, MIDDLE, colour, colour_range, coloured, legend, scale, scale_css
from otterlm.report.charts import Axes, curve, histogram, ticks
from otterlm.report.page import Part, Row, Scale, Text, page
from otterlm.signals.guard.config import GuardConfig
from otterlm.training.data.conversations import Dialogue
from otterlm.training.data.labelled import LabelledRow
from otterlm.training.data.labelled_tokens import LabelledExample
from otterlm.training.data.labels import Marks
from otterlm.training.data.packing import Example
from otterlm.training.data.rows import PairRow, ScoredRow
from otterlm.training.evaluation.detection import auc, roc
from otterlm.training.evaluation.guard_reading import GuardReading
from otterlm.training.evaluation.guard_summary import summarize_guard
from otterlm.training.evaluation.scoring import Scored

SVG = "{http://www.w3.org/2000/svg}"


def luminance(colour: str) -> float:
    """Returns the relative luminance of WCAG 2.2."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_scale_is_readable_everywhere() -> None:
    assert all(contrast(colour(step, 0, 100), INK) >= 7 for step in range(101))
    assert colour(-9, 0, 1) == colour(0, 0, 1) == scale()["low"]
    assert colour(0.5, 0, 1) == scale()["middle"] == "#" + "".join(f"{part:02x}" for part in MIDDLE)
    assert colour(9, 0, 1) == scale()["high"]
    assert colour(3, 1, 1) == scale()["middle"]  # of no range
    # Orange has the red, blue has the blue: they differ without green, and in brightness from the middle.
    assert LOW[0] > HIGH[0]
    assert HIGH[2] > LOW[2]
    assert scale_css().count("{background:#") == 33


def test_the_range_is_the_signals_own() -> None:
    assert colour_range((-1.0, 2.0), [5.0, -7.0]) == (-1.0, 2.0)
    assert colour_range(None, [5.0, -7.0]) == (-7.0, 5.0)
    assert colour_range(None, []) == (0.0, 0.0)


def test_the_terminal_has_dark_text_and_a_legend() -> None:
    text = coloured(tokenizer(), [10, 11], [0.0, 1.0], 0.0, 1.0)
    assert text.plain == "a b"
    assert [str(span.style) for span in text.spans] == [f"{INK} on {scale()[end]}" for end in ("low", "high")]
    line = legend(-1.25, 0.5)
    assert line.plain.split() == ["-1.25", "+0.50"]
    assert legend(0.0, 1.0).plain.split() == ["0.00", "1.00"]
    assert str(line.spans[0].style).endswith(scale()["low"])
    assert str(line.spans[-1].style).endswith(scale()["high"])


def points(svg: str, kind: str) -> list[tuple[float, float]]:
    (element,) = (each for each in ElementTree.fromstring(svg).iter() if each.get("class") == kind)
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in element.get("points", "").split())]


def test_a_curve() -> None:
    axes = Axes((0.0, 1.0), (0.5, 1.0), ("part <read>", "accuracy"), (True, True))
    svg = curve(axes, [(0.5, 0.6), (1.0, 0.9)], "a & b", [(0.5, 0.7), (0.8, 1.0)], [(0.0, 0.5), (1.0, 0.5)])
    (x, y), (later, higher) = points(svg, "line")
    assert later > x
    assert higher < y
    assert len(points(svg, "band")) == 4
    assert "part &lt;read&gt;" in svg
    assert "50%" in svg
    assert 'aria-label="a &amp; b"' in svg


def test_a_histogram_counts_everything() -> None:
    svg = histogram({"a": [0.0, 0.1, 5.0], "b": [-3.0]}, (0.0, 1.0), "score", "scores")
    heights = [y for _, y in points(svg, "bars bars-0")]
    assert heights[-2] < heights[0]  # what lies outside counts at the end
    assert min(y for _, y in points(svg, "bars bars-1")) <= min(heights)
    assert histogram({"a": []}, (0.0, 0.0), "score", "none")


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.3, 1.1), (0.0, 0.0), (1e-3, 2e-3), (-40.0, 400.0)])
def test_ticks_lie_inside(low, high) -> None:
    made = ticks(low, high)
    assert 1 <= len(made) <= 7
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in made)


def test_the_roc_curve_has_the_area_of_the_auc() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 8, (60,), generator=generator).float()
    truth = torch.rand(60, generator=generator) < 0.4
    made = roc(scores, truth)
    assert (made[0], made[-1]) == ((0.0, 0.0), (1.0, 1.0))
    area = sum((x - a) * (y + b) / 2 for (a, b), (x, y) in itertools.pairwise(made))
    assert area == pytest.approx(auc(scores, truth))


def test_the_page_escapes_and_sorts() -> None:
    rows = [
        Row(
            f"Row {n}",
            "verdict <b>",
            n > 1,
            float(n),
            [("User", "<script>")],
            [Text("Chosen", "+1", "<i>x</i>", "cut")],
        )
        for n in (1, 3, 2)
    ]
    html = page("a <title>", Scale(0.0, 1.0, "meaning", ("bad", "good")), [Part("Pairs", [("A", "<1>", "")], [], rows)])
    assert re.findall(r"<h3>(Row \d)", html) == ["Row 3", "Row 2", "Row 1"]
    assert "&lt;script&gt;" in html
    assert html.count("<script>") == 1  # the page's own
    assert "&lt;title&gt;" in html
    assert "&lt;1&gt;" in html
    assert "width=device-width" in html
    assert "prefers-color-scheme:dark" in html


def dialogue(text: str) -> Dialogue:
    return Dialogue((("user", "a"),), text)


def test_pairs_show_both_sides_and_the_prompt() -> None:
    examples = [Example(row, (8, 7, 10), ((11, 12), (13,))) for row in (4, 6)]
    scored = [Scored(examples[0], ([0.0, 1.0], [0.5])), Scored(examples[1], ([0.0, -1.0], [2.0]))]
    rows = {row: PairRow(dialogue("b c"), dialogue("d")) for row in (4, 6)}
    html = reward_page("pairs", Reading(scored, rows, tokenizer(TEMPLATE), (-1.0, 1.0), 2))
    assert re.findall(r"<h3>(Row \d)", html) == ["Row 7", "Row 5"]
    assert "50.0%" in html
    assert "rejected 3.000 above chosen" in html
    for words in ("Chosen", "Rejected", "User", "cut at 2 tokens", "Accuracy while", "+1.00"):
        assert words in html
    assert "Score" not in html


def test_scored_texts_show_the_worst_first() -> None:
    scored = [Scored(Example(row, (10,), ((11, 12),), (score,)), ([0.0, reward],))
              for row, score, reward in ((0, 1.0, 1.0), (1, 2.0, 5.0), (2, 3.0, 0.0))]  # fmt: skip
    rows = {row: ScoredRow(dialogue("b c"), 1.0) for row in range(3)}
    span = colour_range(None, [0.0, 1.0, 0.0, 5.0, 0.0, 0.0])
    html = reward_page("texts", Reading(scored, rows, tokenizer(TEMPLATE), span, 9))
    assert re.findall(r"<h3>(Row \d)", html)[0] in ("Row 2", "Row 3")
    assert "standard deviations too" in html
    assert "Correlation" in html
    assert "cut at" not in html


def test_a_guards_page_names_labels_and_mistakes() -> None:
    config = GuardConfig(("rude",))

    def reading(row: int, rude: bool | None, probability: float) -> GuardReading:
        marks = None if rude is None else Marks(("rude",) if rude else ())
        labelled = LabelledExample(Example(row, (10,), ((11, 12),)), LabelledRow(dialogue("b c"), marks))
        return GuardReading(labelled, config, torch.tensor([[0.1], [probability]]), torch.zeros(2, 0))

    readings = [reading(0, True, 0.9), reading(1, False, 0.8), reading(2, False, 0.1), reading(3, None, 0.5)]
    html = guard_page("labels", readings, summarize_guard(readings), tokenizer(TEMPLATE), 9)
    order = re.findall(r"<h3>(Row \d)", html)
    assert (order[0], order[-1]) == ("Row 2", "Row 4")
    for words in ("Labelled rude", "Labelled harmless", "No label", "ROC curve", "AUC", "the alarm rings at token 2"):
        assert words in html
    assert ">0.00 offence<" in html
