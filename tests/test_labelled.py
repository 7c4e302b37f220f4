"""Labelled texts are read in every usual shape, passages keep their characters, and what is wrong is named with its
row."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_tokenizer import chat_tokenizer
from conftest import refused
from transformers import PreTrainedTokenizerFast

from otterlm.signals.guard.config import GuardConfig
from otterlm.training.data.label_sets import label_set
from otterlm.training.data.labelled import LabelledRow, Span, read_labelled_rows
from otterlm.training.data.labelled_tokens import token_characters, tokenize_labelled
from otterlm.training.data.labels import LabelNames, Marks
from otterlm.training.data.rows import hold_out
from otterlm.training.data.targets import targets_of
from otterlm.training.data.tokens import Limits

BAD = "You dumb dog, be nice."


def read(*records: dict[str, Any], **names: Any) -> list[LabelledRow]:
    return read_labelled_rows(records, LabelNames(**names))


def marks(value: Any, **names: Any) -> Marks:
    result = read({"text": "a", "label": value}, **names)[0].marks
    assert result is not None
    return result


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, True, 1.0, "1", "true", "True", "unsafe", " unsafe "])
def test_an_offence(value) -> None:
    assert marks(value) == Marks(("unsafe",))


@pytest.mark.parametrize("value", [0, False, 0.0, "0", "false", "safe"])
def test_no_offence(value) -> None:
    assert marks(value) == Marks((), "safe")


@pytest.mark.parametrize("value", ["none", "Not-Toxic", "non_toxic", "not hate", "Neutral", "OK"])
def test_names_of_harmless_labels(value) -> None:
    assert marks(value) == Marks((), value)
    assert marks(value, harmless="fine").offences == (value,)
    assert marks("fine", harmless="fine") == Marks((), "fine")


def test_numbers_are_named() -> None:
    assert marks(0, label_names="toxic,safe") == Marks(("toxic",))
    assert marks(1, label_names="toxic,safe") == Marks((), "safe")
    assert marks("2", label_names="hate,offensive,neither") == Marks((), "neither")
    refused(lambda: marks(2), "row 1, column label", "the label 2 has no name", "--label-names")
    refused(lambda: marks(-1), "the label -1 has no name")
    refused(lambda: marks(0.7), "not 0.7")


def test_lists_and_mappings() -> None:
    assert marks(["insult", "threat"]) == Marks(("insult", "threat"), single=False)
    assert marks([]) == Marks((), single=False)
    assert marks("['insult']") == marks('["insult"]') == Marks(("insult",), single=False)
    question = marks({"insult": True, "threat": 0, "hate": None})
    assert (question.has("insult"), question.has("threat"), question.has("hate")) == (True, False, None)
    assert marks('{"insult": false}').has("insult") is False
    refused(lambda: marks({"insult": 0.3}), "true or false")
    refused(lambda: marks(["safe", "insult"]), "safe says that there is no offence")
    refused(lambda: marks([[1]]), "a name or a whole number")
    for number in (math.inf, 10**400, 10**5000):
        refused(partial(marks, number), "a name or a whole number")
    refused(lambda: marks([math.nan]), "a name or a whole number")
    refused(lambda: marks("[insult"), "cannot be read")


def test_columns_together() -> None:
    (row,) = read({"text": "a", "label": 1, "categories": ["S", "H"]})
    assert row.marks == Marks(("unsafe", "S", "H"), single=False)
    (row,) = read({"text": "a", "label": 0, "categories": []})
    assert row.marks == Marks((), "safe", single=False)
    refused(lambda: read({"text": "a", "label": 0, "categories": ["S"]}), "row 1", "label and categories disagree")
    refused(lambda: read({"text": "a"}), "no column label, labels, categories or spans", "there: text")


# -- texts -------------------------------------------------------------------------------------------------------------


def test_shapes_of_texts() -> None:
    question = (("user", "hi"),)
    rows = read(
        {"text": "  a raw text", "label": 0},
        {"prompt": "hi", "label": 0},
        {"prompt": "hi", "response": " yes ", "label": 1, "prompt_label": 0},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}], "label": 1},
        {"messages": [{"role": "user", "content": "hi"}], "label": 1},
        {"text": "\n\nHuman: hi\n\nAssistant: yes", "label": 1},
        {"text": "He wrote\n\nHuman: hi, and left", "label": 1},
    )
    assert [row.text.prompt for row in rows] == [None, question, question, question, question, question, None]
    assert [row.text.response for row in rows[:6]] == ["  a raw text", "", "yes", "yes", "", "yes"]
    assert rows[2].prompt_marks == Marks((), "safe")
    refused(lambda: read({"prompt": "hi", "prompt_label": 1}), "prompt_label stands beside a response")
    refused(lambda: read({"chosen": "a", "rejected": "b", "label": 1}), "one text, not chosen and rejected")
    refused(lambda: read({"text": " ", "label": 1}), "row 1")


def test_columns_of_other_names(tmp_path: Path) -> None:
    (tmp_path / "tweets.csv").write_text("id,tweet,class\n1,a nice dog,2\n2,you dog,0\n")
    names = LabelNames("hate,offensive,neither", text_column="tweet", label_column="class")
    rows = read_labelled_rows(tmp_path / "tweets.csv", names)
    assert [(row.text.response, row.marks) for row in rows] == [
        ("a nice dog", Marks((), "neither")),
        ("you dog", Marks(("hate",))),
    ]
    nested = {"prompt": {"text": "a dog", "toxic": 1}}
    (row,) = read(nested, text_column="prompt.text", label_column="prompt.toxic")
    assert (row.text.response, row.marks) == ("a dog", Marks(("unsafe",)))
    refused(lambda: read({"text": "a", "label": 1}, text_column="tweet"), "tweet is missing")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    refused(lambda: read_labelled_rows(tmp_path / "none.jsonl"), "none.jsonl holds no rows")


# -- passages ----------------------------------------------------------------------------------------------------------


def spans(record: dict[str, Any]) -> tuple[Span, ...] | None:
    return read(record)[0].spans


@pytest.mark.parametrize(
    "value",
    [[[4, 8]], [(4, 8)], "[[4, 8]]", [{"start": 4, "end": 8}], [[4.0, 8.0]]],
)
def test_a_passage(value) -> None:
    assert spans({"text": BAD, "spans": value}) == (Span(4, 8),)


def test_passages_count_characters_of_their_column() -> None:
    assert spans({"text": BAD, "spans": [[4, 8, "insult"]]}) == (Span(4, 8, "insult"),)
    assert spans({"text": BAD, "spans": []}) == ()
    assert spans({"text": BAD, "label": 1}) is None
    # What is not part of the response is not counted.
    assert spans({"prompt": "hi", "response": "  dumb dog ", "spans": [[2, 6]]}) == (Span(0, 4),)
    assert spans({"text": "\n\nHuman: dumb\n\nAssistant: dumb", "spans": [[26, 30]]}) == (Span(0, 4),)
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " dumb"}]
    assert spans({"messages": talk, "spans": [[1, 5]]}) == (Span(0, 4),)
    (row,) = read({"text": "\ufeffa\r\nb dumb", "spans": [[6, 10]]})
    assert row.spans is not None
    assert row.text.response[row.spans[0].start : row.spans[0].end] == "dumb"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"text": BAD, "spans": [[4, 99]]}, "no passage of 22 characters"),
        ({"text": BAD, "spans": [[8, 8]]}, "no passage"),
        ({"text": BAD, "spans": [4, 8]}, "a span is [start, end)"),
        ({"text": BAD, "spans": [["4", 8]]}, "a span is [start, end)"),
        ({"text": BAD, "spans": [[0, math.inf]]}, "a span is [start, end)"),
        ({"text": BAD, "spans": [[math.nan, 8]]}, "a span is [start, end)"),
        ({"text": BAD, "spans": 4}, "spans must be a list"),
        ({"text": BAD, "label": 0, "spans": [[4, 8]]}, "the label says that there is none"),
        ({"prompt": "dumb", "spans": [[0, 4]]}, "there is only a prompt"),
        ({"text": "\n\nHuman: dumb\n\nAssistant: yes", "spans": [[9, 13]]}, "lies outside the response"),
    ],
)
def test_wrong_passages_are_named(record, words) -> None:
    refused(lambda: read({"text": "a", "label": 0}, record), "row 2", words)


@pytest.mark.parametrize("text", [BAD, " a\tdog\u00e9\U0001f600 is dumb  ", "dumb", "\n\ndumb\n"])
@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("prompt", [None, "hi"])
def test_characters_of_tokens(text, template, prompt) -> None:
    tokenizer = chat_tokenizer() if template else chat_tokenizer(None)
    record = {"text": text} if prompt is None else {"prompt": prompt, "response": text}
    start = text.index("dumb")
    rows = read({**record, "label": 1, "spans": [[start, start + 4]]})
    (labelled,) = tokenize_labelled(rows, tokenizer, Limits())
    (response,), response_text = labelled.example.branches, rows[0].text.response
    assert labelled.characters is not None
    assert len(labelled.characters) == len(response)
    assert response[-1] != tokenizer.eos_token_id  # it is judged at its last token
    pieces = [response_text[begin:end] for begin, end in labelled.characters]
    for token, piece in zip(response, pieces, strict=True):
        assert piece in ("", tokenizer.decode([token]), " ") or "\ufffd" in tokenizer.decode([token])
    inside = targets_of([labelled], GuardConfig(spans=("unsafe",)))[0].spans[-len(response) :, 0]
    assert tokenizer.decode([t for t, held in zip(response, inside, strict=True) if held]).strip() == "dumb"


def test_characters_need_a_fast_tokenizer() -> None:
    tokenizer = chat_tokenizer()
    refused(lambda: token_characters("a dog", [7, 7, 7], tokenizer, "row 3"), "row 3", "could not be matched")

    class Slow(PreTrainedTokenizerFast):
        is_fast = False

    tokenizer.__class__ = Slow
    refused(lambda: token_characters("a", [7], tokenizer, "row 3"), "row 3", "fast tokenizer")


# -- targets -----------------------------------------------------------------------------------------------------------


def taught(record: dict[str, Any], config: GuardConfig) -> Any:
    """The targets beside the response's tokens, as lists; None for what is not known."""
    (labelled,) = tokenize_labelled(read(record), chat_tokenizer(), Limits())
    result = targets_of([labelled], config)[0]
    start = len(labelled.example.prefix)
    assert len(result.labels) == len(result.spans) == len(labelled.example)
    lists: Any = (result.labels[start:], result.spans[start:])
    return tuple([[None if math.isnan(x) else x for x in row] for row in part.tolist()] for part in lists)


def test_every_prefix_learns_the_label() -> None:
    config = GuardConfig(("insult", "threat"))
    labels, marked = taught({"text": " kind dog", "labels": ["insult"]}, config)
    assert labels == [[1.0, 0.0]] * 2
    assert marked == [[]] * 2
    labels, _ = taught({"text": " kind dog", "labels": {"insult": True}}, config)
    assert labels == [[1.0, None]] * 2


def test_marked_passages_are_the_truth_of_prefixes() -> None:
    config = GuardConfig(("unsafe",), spans=("unsafe",))
    expected = [[0.0]] + [[1.0]] * 2, [[0.0], [1.0], [0.0]]
    for extra in ({}, {"label": 1}):
        assert taught({"text": " kind dog is", "spans": [[6, 9]], **extra}, config) == expected
    assert taught({"text": " kind dog", "spans": []}, config) == ([[0.0]] * 2, [[0.0]] * 2)
    assert taught({"text": " kind dog", "spans": [], "label": 1}, config) == ([[1.0]] * 2, [[0.0]] * 2)
    assert taught({"text": " kind dog", "label": 1}, config) == ([[1.0]] * 2, [[None]] * 2)


def test_exclusive_labels() -> None:
    config = GuardConfig(("safe", "hate", "rude"), ("safe",), ("rude",))
    assert taught({"text": " kind", "label": "hate"}, config)[0] == [[0.0, 1.0, 0.0]]
    assert taught({"text": " kind", "spans": []}, config)[0] == [[1.0, 0.0, 0.0]]
    labels, marked = taught({"text": " kind dog", "label": "rude", "spans": [[6, 9]]}, config)
    assert labels == [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    assert marked == [[0.0], [1.0]]
    refused(lambda: taught({"text": " kind dog", "spans": [[6, 9]]}, config), "row 1", "of which label", "hate, rude")
    refused(lambda: taught({"text": " kind dog", "spans": [[6, 9, "hate"]]}, config), "'hate'", "rude")


def test_prompts_and_responses_apart() -> None:
    (labelled,) = tokenize_labelled(
        read({"prompt": "dog", "response": "nice", "label": 0, "prompt_label": 1}), chat_tokenizer(), Limits()
    )
    labels = targets_of([labelled], GuardConfig())[0].labels
    start = len(labelled.example.prefix)
    assert bool((labels[:start] == 1).all())
    assert bool((labels[start:] == 0).all())
    (alone,) = tokenize_labelled(read({"prompt": "dog", "label": 1}), chat_tokenizer(), Limits(prompt=5))
    assert (alone.example.prefix, len(alone.example.branches[0])) == ((), 5)


def labels_of(*records: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    result = label_set(read(*records))
    GuardConfig(**result)
    return result["labels"], result["harmless"], result["harmless_names"], result["spans"]


def test_labels_of_a_guard() -> None:
    one = labels_of({"text": "a", "label": 1}, {"text": "b", "label": 0})
    assert one == (("unsafe",), (), ("safe",), ())
    marked = labels_of({"text": BAD, "spans": [[4, 8]]}, {"text": "b", "spans": []})
    assert marked == (("unsafe",), (), (), ("unsafe",))
    mixed = ({"text": "a", "label": "toxic"}, {"text": "b", "label": "safe"}, {"text": BAD, "spans": [[4, 8]]})
    assert labels_of(*mixed) == (("toxic",), (), ("safe",), ("toxic",))
    classes = ({"text": "a", "label": name} for name in ("rude", "hate", "hate", "neither"))
    assert labels_of(*classes) == (("neither", "hate", "rude"), ("neither",), ("neither",), ())
    several = labels_of({"text": "a", "labels": ["rude", "hate"]}, {"text": "a", "labels": []})
    assert several == (("rude", "hate"), (), (), ())
    assert labels_of({"text": BAD, "label": 1, "spans": [[4, 8, "insult"]]}, {"text": "b", "label": 0})[3] == (
        "insult",
    )
    refused(lambda: label_set(read({"text": "a", "label": 0})), "no row with an offence", "--label-names")
    refused(lambda: label_set(read({"text": "a", "label": "ham"}, {"text": "b", "label": "spam"})), "--harmless")
    assert LabelNames(known=("ham",)).is_harmless("ham")
    assert not LabelNames(harmless="spam", known=("ham",)).is_harmless("ham")


def test_rows_of_one_prompt_stay_together() -> None:
    rows = read(*({"prompt": f"p{n // 4}", "response": f"r{n}", "label": n % 2} for n in range(16)))
    held = hold_out(rows, 0.25, seed=0)
    assert len({rows[index].text.prompt for index in held}) == 1
    assert len(held) == 4


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"text": BAD, "label": 1}) + "\n" + json.dumps({"text": BAD, "label": "x y"}) + "\n")
    assert [row.where.endswith(f"data.jsonl, row {n}") for n, row in enumerate(read_labelled_rows(path), start=1)]
    path.write_text(json.dumps({"text": BAD, "label": 1}) + "\n" + json.dumps({"text": BAD, "label": 3}) + "\n")
    refused(lambda: read_labelled_rows(path), "data.jsonl, row 2, column label", "3 has no name")


def test_targets_of_cut_texts() -> None:
    (labelled,) = tokenize_labelled(
        read({"text": "a kind dog is dumb", "spans": [[14, 18]]}), chat_tokenizer(), Limits(response=3)
    )
    result = targets_of([labelled], GuardConfig(spans=("unsafe",)))[0]
    assert not bool(result.spans[1:].any())
    assert torch.equal(result.labels[1:], torch.zeros(3, 1))
