"""Guards what was once misread in silence: a column of another spelling, a dialogue on one side, a passage that moved.

Each is read right now, or refused in a line that names the row and what is wrong.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pandas
import pyarrow
import pytest
from chat_tokenizer import CHAT, chat_tokenizer
from conftest import refused
from datasets import ClassLabel, Dataset, Features, List, Value

from otterlm.training.data.corpora import read_labelled
from otterlm.training.data.labelled import LabelledRow, Span, read_labelled_rows
from otterlm.training.data.labels import LabelNames, Marks
from otterlm.training.data.prompts import read_prompts
from otterlm.training.data.rows import PairRow, read_rows
from otterlm.training.data.tokens import Limits, dialogue_tokens, prompt_tokens, tokenize

AB = {"chosen": "a", "rejected": "b"}
LIMITS = Limits(1000, 1000)


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def labelled(**record: Any) -> LabelledRow:
    (row,) = read_labelled_rows([record])
    return row


# -- columns -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Prompt", "PROMPT", "prompt ", "Question", "System", "system-prompt", "Messages"])
def test_a_column_of_another_spelling_is_named(name: str) -> None:
    refused(lambda: read_rows([{name: "Q", **AB}]), "row 1", repr(name), "is not read")
    refused(lambda: read_prompts([{name: "Q", "text": "T"}]), "row 1", repr(name), "is not read")
    refused(lambda: read_labelled_rows([{name: "Q", "text": "T", "label": 1}]), "row 1", repr(name), "is not read")


@pytest.mark.parametrize("name", ["Context", "HISTORY", "Tools"])
def test_a_column_that_changes_the_meaning_is_named_in_any_spelling(name: str) -> None:
    refused(lambda: read_rows([{name: "x", "prompt": "Q", **AB}]), "row 1", name, "cannot be read")


@pytest.mark.parametrize("name", ["problem", "post", "user", "user_prompt", "inputs", "dialogue", "text", "turns"])
def test_responses_without_a_prompt_beside_one_of_another_name(name: str) -> None:
    refused(lambda: read_rows([{name: ["Q"], **AB}]), "row 1", repr(name), "chosen and rejected have no prompt")
    assert read_rows([{name: ["Q"], "prompt": "P", **AB}])
    if name != "text":
        refused(lambda: read_rows([{name: "Q", "response": "a", "score": 1}]), repr(name), "response have no prompt")
        assert read_rows([{name: "Q", "text": "a", "score": 1}])  # a text may have a user


@pytest.mark.parametrize("name", ["prompt_id", "question_id", "source", "category", "user_id", "chosen_model"])
def test_other_columns_are_no_prompts(name: str) -> None:
    assert read_rows([{name: "x", **AB}]) == read_rows([AB])


@pytest.mark.parametrize("name", ["system_message", "sys_prompt", "System Instruction"])
def test_what_the_system_says_in_a_column_of_another_name(name: str) -> None:
    refused(lambda: read_rows([{name: "S", "prompt": "Q", **AB}]), "row 1", repr(name), "call it system")


@pytest.mark.parametrize("name", ["Labels", "Categories", "Spans", "Prompt_Label"])
def test_label_columns_of_another_spelling(name: str) -> None:
    record = {"prompt": "Q", "response": "a", "label": 0, name: ["hate"]}
    refused(lambda: read_labelled_rows([record]), "row 1", repr(name), "is not read")


def test_columns_of_other_preference_data_are_listed() -> None:
    row = {"prompt": "Q", "response_0": "a", "response_1": "b", "better_response_id": 0}
    refused(lambda: read_rows([row]), "row 1", "no columns chosen and rejected", "response_0, response_1")
    refused(lambda: read_rows([{"Chosen": "a", "Rejected": "b"}]), "row 1", "'Chosen'", "call it chosen")
    refused(lambda: read_rows([{"text": "a", "Score": 1}]), "row 1", "'Score'", "call it score")


# -- conversations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["Human: Q\nAssistant:", "Human: Q\n \nAssistant:", "\r\rHuman: Q\r\rAssistant: "])
def test_a_marker_without_its_blank_line_is_not_what_the_user_says(text: str) -> None:
    refused(lambda: read_rows([{"prompt": text, **AB}]), "row 1, column prompt", "blank line", "'Assistant:'")
    refused(lambda: read_prompts([{"prompt": text}]), "row 1, column prompt", "blank line", "'Assistant:'")
    asked = [message("user", "Q\nAssistant:")]  # a message may say so
    assert read_prompts([{"prompt": asked}]) == read_prompts([{"prompt": json.dumps(asked)}])


HH = "\n\nHuman: Q\n\nAssistant:"


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (f"{HH} a", " b"),
        (" a", f"{HH} b"),
        (f"{HH} a\n\nHuman: thanks", f"{HH} b\n\nHuman: thanks"),
        (json.dumps([message("user", "Q"), message("assistant", "a")]), "b"),
    ],
)
def test_a_text_that_repeats_the_prompt_on_one_side_is_refused(chosen: str, rejected: str) -> None:
    refused(lambda: read_rows([{"prompt": HH, "chosen": chosen, "rejected": rejected}]), "row 1", "repeats the prompt")


def test_a_scored_text_that_ends_with_the_user_is_refused() -> None:
    record = {"prompt": "Q", "response": f"{HH} a\n\nHuman: thanks", "score": 1}
    refused(lambda: read_rows([record]), "row 1, column response", "repeats the prompt", "end with the assistant's")


def test_a_response_without_the_prompt_of_its_rival_is_refused() -> None:
    alone = [message("assistant", "b")]
    refused(lambda: read_rows([{"chosen": [message("user", "Q"), *alone], "rejected": alone}]), "row 1", "alone")
    assert read_rows([{"chosen": alone, "rejected": alone}])


@pytest.mark.parametrize(
    "text",
    [
        "[{'at': datetime.datetime(2024, 1, 1), 'role': 'user', 'content': 'Q'}]",
        "[OrderedDict([('role', 'user'), ('content', 'Q')])]",
        "[Message(role='user', content='Q'), Message(role='assistant', content='a')]",
        "[{'id': 1, 'from': 'human', 'value': 'Q', 'at': Timestamp('2024')}]",
    ],
)
def test_printed_messages_that_cannot_be_read_are_no_text(text: str) -> None:
    refused(lambda: read_rows([{"chosen": text, "rejected": text}]), "row 1, column chosen", "printed messages")


def test_text_that_is_no_printed_message() -> None:
    for text in ("[1] the role: 'user'", "{'role': 'user'} and {'content': 'x'}, he said", "[role] x [content]"):
        (row,) = read_rows([{"prompt": "Q", "chosen": text, "rejected": "b"}])
        assert isinstance(row, PairRow)
        assert row.chosen.response == text


def test_a_long_text_is_read_in_no_time() -> None:
    """It took minutes where what it may be was looked for again at each of its words."""
    text = "[" + "'role': " * 30_000 + "]"
    (row,) = read_rows([{"prompt": text, "chosen": text, "rejected": "b"}])
    assert isinstance(row, PairRow)
    assert row.chosen.response == text


def test_messages_with_columns_of_two_shapes() -> None:
    """As parquet and Arrow keep them, with nulls."""
    both = [
        {"from": "human", "value": "Q", "role": None, "content": None},
        {"from": None, "value": None, "role": "assistant", "content": "a"},
    ]
    plain = [message("user", "Q"), message("assistant", "a")]
    table = pyarrow.Table.from_pylist([{"chosen": both, "rejected": both}])
    assert read_rows(table) == read_rows([{"chosen": plain, "rejected": plain}])


def test_parts_that_a_table_keeps_as_text() -> None:
    """A text that prints parts of a message is these parts; any other list is what somebody says."""
    parts = [{"type": "text", "text": "Q"}]
    plain = {"chosen": [message("user", "Q"), message("assistant", "a")], "rejected": [message("assistant", "b")]}
    plain["rejected"].insert(0, message("user", "Q"))
    for printed in (json.dumps(parts), str(parts), str(numpy.array(parts))):
        (row,) = read_rows([{"prompt": [message("user", printed)], **AB}])
        assert row == read_rows([plain])[0]
    picture = json.dumps([*parts, {"type": "image"}])
    refused(lambda: read_rows([{"prompt": [message("user", picture)], **AB}]), "row 1", "part of type image")
    for said in ('[{"type": "apple", "text": "Q"}]', '[{"type": "text"'):
        assert read_prompts([{"prompt": [message("user", said)]}]) == [(("user", said),)]


def test_a_conversation_beside_the_prompt_says_no_more_than_it() -> None:
    turns = [message("user", "Q"), message("assistant", "a")]
    system = message("system", "S")
    for record in ({"messages": turns}, {"system": "S", "messages": [system, *turns]}, {"messages": turns[:1]}):
        assert read_rows([{"prompt": "Q", **record, **AB}])
        assert read_prompts([{"prompt": "Q", **record}])
    assert read_rows([{"prompt": "Q", "messages": [system, *turns], **{side: [system, *turns] for side in AB}}])
    for lost in ([system, *turns], [message("user", "P"), message("assistant", "R"), *turns], [message("user", "P")]):
        refused(partial(read_rows, [{"prompt": "Q", "messages": lost, **AB}]), "prompt and messages", "keep one")
        refused(partial(read_prompts, [{"prompt": "Q", "messages": lost}]), "prompt and messages", "keep one")


def test_a_system_turn_on_one_side_is_refused() -> None:
    turns = [message("user", "Q"), message("assistant", "a")]
    for prompt in ({}, {"prompt": "Q"}):
        row = {"chosen": [message("system", "S"), *turns], "rejected": turns, **prompt}
        refused(partial(read_rows, [row]), "row 1", "one has a system turn")
    assert read_rows([{"system": "S", "chosen": [message("system", "S"), *turns], "rejected": turns}])


def test_a_part_with_a_picture_is_refused() -> None:
    part = {"type": "text", "text": "Q", "image": "x.png"}
    chosen = [message("user", [part]), message("assistant", "a")]
    refused(lambda: read_rows([{"chosen": chosen, "rejected": chosen}]), "row 1, column chosen, message 1", "image")
    fine = [message("user", [part | {"image": None}]), chosen[1]]
    assert read_rows([{"chosen": fine, "rejected": fine}])


# -- the chat template's own text --------------------------------------------------------------------------------------


def test_a_prompt_that_the_template_wrote_is_refused_without_the_answers_marker_too() -> None:
    tokenizer = chat_tokenizer(CHAT)
    for text in ("<|im_start|>user\nQ<|im_end|>\n", "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>"):
        refused(partial(prompt_tokens, (("user", text),), tokenizer), "in the chat template already")
    quoting = f"<|im_start|>user\nHe said:{HH} x<|im_end|>\n<|im_start|>assistant\na<|im_end|>"
    refused(
        lambda: tokenize(read_rows([{"chosen": quoting, "rejected": quoting}]), tokenizer, LIMITS), "row 1", "already"
    )
    assert prompt_tokens((("user", "What is <|im_start|>?"),), tokenizer)


def test_a_response_is_not_begun_twice() -> None:
    tokenizer = chat_tokenizer(CHAT)
    rows = read_rows([{"prompt": "Q", "chosen": "<|im_start|>assistant\na<|im_end|>\n", "rejected": "a"}])
    (row,) = rows
    assert isinstance(row, PairRow)
    assert dialogue_tokens(row.chosen, tokenizer, LIMITS) == dialogue_tokens(row.rejected, tokenizer, LIMITS)


# -- files and tables --------------------------------------------------------------------------------------------------


def test_a_row_of_csv_without_its_last_cells_is_refused(tmp_path: Path) -> None:
    """Its prompt may be there."""
    (tmp_path / "short.csv").write_text("chosen,rejected,prompt\na,b,Q\nc,d\n")
    refused(lambda: read_rows(tmp_path / "short.csv"), "short.csv, row 2", "fewer cells", "prompt")


def test_a_null_character_is_text_in_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"prompt,chosen,rejected\nQ,a\0a,b\n")
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "Q", "chosen": "a\0a", "rejected": "b"}))
    assert read_rows(tmp_path / "a.csv") == read_rows(tmp_path / "a.jsonl")


def test_a_table_with_one_name_twice_is_refused() -> None:
    table = pandas.DataFrame([["Q", "a", "b", "c"]], columns=["prompt", "chosen", "rejected", "rejected"])
    refused(lambda: read_rows(table), "one name", "rejected")


# -- labels and passages -----------------------------------------------------------------------------------------------


def test_a_label_beside_a_prompt_is_of_the_conversation_that_answers_it() -> None:
    turns = [message("user", "Q"), message("assistant", "a")]
    answered = labelled(messages=turns, label=1)
    assert answered.text.response == "a"
    assert labelled(prompt="Q", messages=turns, label=1) == labelled(prompt="Q", response="a", label=1) == answered
    assert labelled(prompt="Q", messages=turns, response=None, label=1) == answered
    assert labelled(prompt="Q", messages=turns[:1], label=1) == labelled(prompt="Q", label=1)


TEXT = "ok\r\nthe BAD\r\nend"
AT = TEXT.index("BAD")


@pytest.mark.parametrize(
    "record",
    [
        {"text": TEXT, "spans": [[AT, AT + 3]]},
        {"messages": [message("user", "Q\r\n"), message("assistant", TEXT)], "spans": [[AT, AT + 3]]},
        {"messages": [message("user", "Q"), message("assistant", f" {TEXT}")], "spans": [[AT + 1, AT + 4]]},
        {"text": json.dumps([message("user", "Q"), message("assistant", TEXT)]), "spans": [[AT, AT + 3]]},
        {"prompt": f"{HH} Sure,", "response": " the BAD", "spans": [[5, 8]]},
        {"prompt": [message("user", "Q"), message("assistant", "Sure,")], "response": " the BAD ", "spans": [[5, 8]]},
    ],
)
def test_a_passage_stays_where_it_is(record: dict[str, Any]) -> None:
    row = labelled(label=1, **record)
    assert row.spans is not None
    (span,) = row.spans
    assert row.text.response[span.start : span.end] == "BAD"


def test_a_label_with_half_a_character_is_refused() -> None:
    for record in ({"label": "\ud83d"}, {"labels": {"\ud83d": True}}, {"label": 1, "spans": [[0, 1, "\ud83d"]]}):
        refused(partial(labelled, text="a", **record), "row 1", "half of a character")


def test_a_truth_value_is_no_place_in_a_text() -> None:
    refused(lambda: labelled(text="the BAD", label=1, spans=[[True, 3]]), "row 1, span 1", "a span is")


def test_lists_that_numpy_printed(tmp_path: Path) -> None:
    """As pandas writes the lists of parquet to CSV."""
    spans = [[[4, 7], [0, 3]], []]
    table = pandas.DataFrame({"text": ["the BAD", "y"], "labels": [["hate", "insult"], []], "spans": spans})
    table.to_parquet(tmp_path / "a.parquet")
    arrays = pandas.read_parquet(tmp_path / "a.parquet")
    arrays.to_csv(tmp_path / "a.csv", index=False)
    assert "'hate' 'insult'" in (tmp_path / "a.csv").read_text()
    expected = read_labelled_rows(table)
    assert expected[0].marks == Marks(("hate", "insult"), single=False)
    assert expected[0].spans == (Span(4, 7), Span(0, 3))
    assert read_labelled_rows(tmp_path / "a.parquet") == read_labelled_rows(tmp_path / "a.csv") == expected
    assert labelled(text="the BAD", label=1, spans=str(numpy.array(spans[0]))).spans == expected[0].spans


def test_a_dataset_names_its_classes(tmp_path: Path) -> None:
    """The number 0 is safe only where nothing says what it is."""
    names = ClassLabel(names=["toxic", "clean"])
    features = Features({"text": Value("string"), "label": names, "labels": List(names)})
    saved = Dataset.from_dict({"text": ["x", "y"], "label": [0, 1], "labels": [[0], [1]]}, features=features)
    saved.save_to_disk(tmp_path / "saved")
    saved.to_parquet(tmp_path / "a.parquet")
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    sources: list[Any] = [saved, saved.to_iterable_dataset(), saved.data.table, tmp_path / "saved", arrow]
    for source in (*sources, tmp_path / "a.parquet"):
        rows = read_labelled_rows(source)
        assert [row.marks for row in rows] == [Marks(("toxic",), single=False), Marks((), "clean", single=False)]
        renamed = read_labelled_rows(source, LabelNames("safe,rude"))
        assert [row.marks and row.marks.offences for row in renamed] == [(), ("rude",)]
        assert list(read_labelled(source, ["1"], ["0"])[0]) == ["y"]  # a contrast's labels are numbers, as before


def test_labels_that_are_not_there_are_listed() -> None:
    table = pandas.DataFrame({"text": ["a", "b"], "label": [1.0, 2.0]})
    assert list(read_labelled(table, ["1"], ["2"])[0]) == ["a"]
    refused(lambda: read_labelled(table, ["5"], ["2"]), "positive label (5)", "labels there: 1, 2")
