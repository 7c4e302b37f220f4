"""Passages: whole words by a threshold that is relative to their text, and outputs that wait for what follows."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from chat_tokenizer import chat_tokenizer
from conftest import tiny_base, tiny_otter, tokens
from hypothesis import given
from hypothesis import strategies as st

from otterlm.signals.guard.config import GuardConfig, MarkedWords, SpanThreshold
from otterlm.signals.guard.head import late_logits
from otterlm.signals.guard.losses import Weights, label_loss, span_loss
from otterlm.training.data.labelled import read_labelled_rows
from otterlm.training.data.labelled_tokens import tokenize_labelled
from otterlm.training.data.tokens import Limits
from otterlm.training.evaluation.detection import character_f1
from otterlm.training.evaluation.guard_calibration import calibrate_guard
from otterlm.training.evaluation.guard_metrics import span_f1s
from otterlm.training.evaluation.guard_reading import GuardReading
from otterlm.training.evaluation.marked_words import marked_words
from otterlm.training.evaluation.passages import (
    F1Curve,
    characters_in,
    limit_of,
    listed_shares,
    marked_passages,
    word_probabilities,
    word_values,
    words_of,
)

TEXT = "You f**k-ing id-iot, I'm   done!"


def test_words() -> None:
    words = [TEXT[start:end] for start, end in words_of(TEXT)]
    assert words == ["You", "f**k-ing", "id-iot", ",", "I'm", "done", "!"]
    assert [end - start for start, end in words_of("坏人 ไป ok")] == [1, 1, 1, 1, 2]
    assert words_of("  ") == []


def test_a_word_has_the_mean_of_its_tokens() -> None:
    text = "an idiot here"
    # " id", "iot", " ", and the text was cut before its last word.
    characters = [(0, 2), (2, 5), (5, 8), (8, 9)]
    values = word_probabilities(text, words_of(text), characters, [0.1, 0.2, 0.8, 0.9])
    assert values == pytest.approx([0.1, 0.5, 0.0])


def test_marked_words_join() -> None:
    words = words_of(TEXT)
    assert marked_passages(TEXT, words, [True, True, False, False, True, True, False]) == [(0, 12), (21, 31)]
    assert marked_passages(TEXT, words, [False] * 7) == []


def test_what_is_high_depends_on_the_text() -> None:
    threshold = SpanThreshold(0.2, 0.5)
    assert limit_of([0.9, 0.4], threshold) == 0.45
    assert limit_of([0.3, 0.1], threshold) == 0.2
    assert limit_of([], threshold) == 0.2


@given(st.lists(st.sampled_from([0.1, 0.2, 0.4, 0.8]), min_size=7, max_size=7), st.floats(0, 1), st.floats(0, 1))
def test_the_curve_is_the_f1_at_every_threshold(values, least, share) -> None:
    words, truth = words_of(TEXT), characters_in([(4, 19)])
    threshold = SpanThreshold(least, share)
    limit = limit_of(values, threshold)
    marked = marked_passages(TEXT, words, [value >= limit for value in values])
    assert F1Curve(TEXT, words, values, truth).at(threshold) == character_f1(characters_in(marked), truth)


# -- the list of marked words ------------------------------------------------------------------------------------------

TOXIC = GuardConfig(("toxic",), spans=("toxic",), vocabulary_rank=0)


def labelled(records: list[dict[str, Any]]) -> Any:
    return tokenize_labelled(read_labelled_rows(records), chat_tokenizer(), Limits())


def test_a_list_holds_words_that_are_often_marked() -> None:
    rows: list[dict[str, Any]] = [{"text": "a Dog is nice", "spans": [[2, 5]]}] * 4
    rows += [{"text": "dog, kind dogs", "spans": [[0, 3], [5, 7]]}]  # of 'kind' only a part
    rows += [{"text": "nice", "spans": []}] * 30 + [{"text": "nice", "spans": [[0, 4]]}] * 4  # marked too seldom
    rows += [{"text": "is", "spans": [[0, 2]]}]  # once
    rows += [{"text": "kind", "label": 1}] * 4  # its passages are not known
    (found,) = marked_words(labelled(rows), TOXIC)
    assert found == MarkedWords("toxic", {"dog": round(5 / 7, 3)})
    assert marked_words(labelled(rows[-4:]), TOXIC) == ()


def test_the_words_of_each_label() -> None:
    two = GuardConfig(("rude", "hate"), spans=("rude", "hate"))
    rows = [{"text": "kind dog", "labels": ["rude", "hate"], "spans": [[0, 4, "hate"], [5, 8, "rude"]]}] * 3
    assert marked_words(labelled(rows), two) == (MarkedWords("rude", {"dog": 0.6}), MarkedWords("hate", {"kind": 0.6}))


def test_values_of_words_in_a_list() -> None:
    words = words_of(TEXT)
    listed = listed_shares(TEXT, words, {"id-iot": 0.8, "done": 0.2})
    assert listed == [0.0, 0.0, 0.8, 0.0, 0.0, 0.2, 0.0]
    assert word_values([0.4, 0.0], [0.8, 0.1], 0.25) == pytest.approx([0.5, 0.025])
    assert word_values([0.4, 0.3], [0.8, 0.1], 0.0) == [0.4, 0.3]


@pytest.mark.parametrize(
    ("says", "span", "counts"), [([0.6, 0.1, 0.1], [6, 9], True), ([0.1, 0.1, 0.9], [10, 12], False)]
)
def test_calibration_weighs_the_list(says, span, counts) -> None:
    """The list counts where the guard is wrong and it is right, and not where the guard is right."""
    config = replace(TOXIC, marked_words=(MarkedWords("toxic", {"dog": 0.9}),))
    rows: list[dict[str, Any]] = [
        {"text": " kind dog is", "label": "toxic", "spans": [span]},
        {"text": " kind dog is", "label": "safe"},
    ]
    toxic, safe = (
        GuardReading(each, config, torch.full((3, 1), level), torch.tensor(says)[:, None])
        for each, level in zip(labelled(rows), (0.8, 0.2), strict=True)
    )
    (calibration,) = calibrate_guard([toxic, safe], 0.1)
    assert (calibration.span_listed > 0) == counts
    assert span_f1s([replace(toxic, config=replace(config, calibrations=(calibration,)))], "toxic") == [1.0]
    (alone,) = calibrate_guard([replace(each, config=TOXIC) for each in (toxic, safe)], 0.1)
    assert alone.span_listed == 0.0
    assert (span_f1s([replace(toxic, config=replace(TOXIC, calibrations=(alone,)))], "toxic") == [1.0]) != counts


@torch.no_grad()
def test_late_outputs() -> None:
    config = GuardConfig(("rude", "threat"), spans=("rude", "threat"), span_delay=2, vocabulary_rank=0)
    otter = tiny_otter(tiny_base(), signal=config)
    signal: Any = otter(tokens(2, 7)).signals["reward"]
    logits = signal.span_logits
    assert logits.shape == (2, 7, 3, 2)
    assert torch.equal(signal.span_probabilities, logits[:, :, 0].sigmoid())
    outputs = otter.adapter().head.spans(signal.state).view(2, 7, 3, 2)
    torch.testing.assert_close(logits[1, 5, 2], outputs[1, 3, 0] + outputs[1, 4, 1] + outputs[1, 5, 2])
    late = late_logits(logits[1], 2, 6)  # the tokens 2 to 5
    read = [(4, 2), (5, 2), (5, 1), (5, 0)]  # at which position, by which output
    assert torch.equal(late, torch.stack([logits[1, position, delay] for position, delay in read]))


def test_late_outputs_learn_of_earlier_tokens() -> None:
    logits = torch.randn(1, 5, 2, 1)
    targets = torch.tensor([[[math.nan], [1.0], [0.0], [1.0], [math.nan]]])  # a prompt, three tokens, padding
    ones = Weights(torch.ones(1), torch.ones(1))
    late = torch.tensor([[[math.nan], [math.nan], [1.0], [0.0], [math.nan]]])
    expected = (label_loss(logits[:, :, 0], targets, ones, False) + label_loss(logits[:, :, 1], late, ones, False)) / 2
    torch.testing.assert_close(span_loss(logits, targets, ones), expected)
