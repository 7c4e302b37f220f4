"""Passages: whole words by a threshold that is relative to their text, and outputs that wait for what follows."""

import math
from typing import Any

import pytest
import torch
from conftest import tiny_base, tiny_otter, tokens
from hypothesis import given
from hypothesis import strategies as st

from otterlm.signals.guard.config import GuardConfig, SpanThreshold
from otterlm.signals.guard.head import late_logits
from otterlm.signals.guard.losses import Weights, label_loss, span_loss
from otterlm.training.evaluation.detection import character_f1
from otterlm.training.evaluation.passages import (
    F1Curve,
    characters_in,
    limit_of,
    marked_passages,
    word_probabilities,
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
