"""Guards the one reader of conversations: every shape of a conversation gives the same tokens, and nothing that is said
becomes a marker."""

import json
from typing import Any

import numpy
import pytest
from chat_tokenizer import CHAT, SPECIAL, STRICT, chat_tokenizer
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from otterlm.training.data.conversations import parse_dialogue, read_turns
from otterlm.training.data.corpora import tokenize_corpora
from otterlm.training.data.labelled import Span, read_labelled_rows
from otterlm.training.data.labelled_tokens import tokenize_labelled
from otterlm.training.data.prompts import read_prompts
from otterlm.training.data.rows import PairRow, read_rows
from otterlm.training.data.tokens import Limits, dialogue_tokens, encode_prompts, prompt_tokens, tokenize

LONG = Limits(100_000, 100_000)
TOKENIZERS = {kind: chat_tokenizer(template) for kind, template in (("chat", CHAT), ("plain", None))}
NAMES = {"user": "Human", "assistant": "Assistant"}


def messages(turns):
    return [{"role": role, "content": content} for role, content in turns]


def written_by_hand(turns, kind):
    """Returns prompt and response as text, written out without the code under test."""
    *prompt, (_, response) = [(role, content.replace("\r\n", "\n").strip()) for role, content in turns]
    if kind == "chat":
        before = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in prompt)
        return f"{before}<|im_start|>assistant\n", response
    names = NAMES | {"system": "System"}
    return "".join(f"\n\n{names[role]}: {text}" for role, text in prompt) + "\n\nAssistant:", f" {response}"


def tokens_of(record, kind):
    """Returns the tokens of the prompts and responses of one record."""
    row = read_rows([record])[0]
    sides = (row.chosen, row.rejected) if isinstance(row, PairRow) else (row.text,)
    return [dialogue_tokens(side, TOKENIZERS[kind], LONG) for side in sides]


# Shapes: from the turns before the responses, and the responses, to a record, or None where it cannot hold them.


def as_messages(prompt, *sides):
    return [messages([*prompt, ("assistant", side)]) for side in sides]


def as_sharegpt(prompt, *sides):
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = [[*prompt, ("assistant", side)] for side in sides]
    return [[{"from": names[role], "value": content} for role, content in side] for side in turns]


def in_parts(content):
    return [{"type": "text", "text": content[:2]}, {"type": "text", "text": content[2:]}]


def as_parts(prompt, *sides):
    return [[turn | {"content": in_parts(turn["content"])} for turn in side] for side in as_messages(prompt, *sides)]


def as_json(prompt, *sides):
    return list(map(json.dumps, as_messages(prompt, *sides)))


def as_printed(prompt, *sides):
    return list(map(str, as_messages(prompt, *sides)))


def as_numpy_printed(prompt, *sides):
    """As pandas writes parquet's lists to CSV."""
    arrays = [numpy.array(side, dtype=object) for side in as_parts(prompt, *sides)]
    for side in arrays:
        for turn in side:
            turn["content"] = numpy.array(turn["content"], dtype=object)
    return list(map(str, arrays))


def as_arrays(prompt, *sides):
    return [numpy.array(side, dtype=object) for side in as_messages(prompt, *sides)]


def as_lists(prompt, *sides):
    """As `datasets.Sequence` keeps lists of messages."""
    return [
        {name: [turn[name] for turn in side] for name in ("role", "content")} for side in as_messages(prompt, *sides)
    ]


def as_wrapped(prompt, *sides):
    return [{"messages": side} for side in as_messages(prompt, *sides)]


def as_null_columns(prompt, *sides):
    """As parquet keeps messages of two shapes in one column."""
    nulls = {"role": None, "content": None, "tool_calls": None}
    return [[nulls | turn for turn in side] for side in as_sharegpt(prompt, *sides)]


def as_texts(prompt, *sides):
    """With contents that are a list of texts, or one part."""
    turns = as_messages(prompt, *sides)
    return [
        [t | {"content": [t["content"]] if n % 2 else {"type": "text", "text": t["content"]}} for n, t in enumerate(s)]
        for s in turns
    ]


def as_users(prompt, *sides):
    """HH text that calls the human the user."""
    if prompt[0][0] == "system" or any("\n\nUser:" in text for text in (*(text for _, text in prompt), *sides)):
        return None
    texts = as_hh(prompt, *sides)
    return None if texts is None else [text.replace("\n\nHuman:", "\n\nUser:") for text in texts]


def as_hh(prompt, *sides, first="\n\n", end="\n"):
    prompt, sides = [(role, content.strip()) for role, content in prompt], tuple(side.strip() for side in sides)
    contents = [content.replace("\r\n", "\n") for content in (*(content for _, content in prompt), *sides)]
    if any(marker in content for content in contents for marker in ("\n\nHuman:", "\n\nAssistant:")):
        return None
    system, turns = "", list(prompt)
    if turns[0][0] == "system":
        (_, system), *turns = turns
        if not system or system.startswith(("Human:", "Assistant:", "System:")) or not turns:
            return None
    texts = ["".join(f"\n\n{NAMES[role]}: {text}" for role, text in [*turns, ("assistant", side)]) for side in sides]
    texts = [system + text if system else first + text.removeprefix("\n\n") for text in texts]
    return [text.replace("\r\n", "\n").replace("\n", end) for text in texts]


def as_nulls(prompt, *sides):
    return [[{"name": None} | turn for turn in side] for side in as_messages(prompt, *sides)]


WHOLE = {
    "messages": as_messages,
    "sharegpt": as_sharegpt,
    "parts": as_parts,
    "json": as_json,
    "printed": as_printed,
    "numpy printed": as_numpy_printed,
    "arrays": as_arrays,
    "lists": as_lists,
    "printed lists": lambda *turns: list(map(str, as_lists(*turns))),
    "wrapped": as_wrapped,
    "wrapped by another name": lambda *turns: [{"conversation": side["messages"]} for side in as_wrapped(*turns)],
    "json twice": lambda *turns: list(map(json.dumps, as_json(*turns))),
    "printed sharegpt": lambda *turns: list(map(str, as_sharegpt(*turns))),
    "wrapped json": lambda *turns: list(map(json.dumps, as_wrapped(*turns))),
    "null columns": as_null_columns,
    "texts and one part": as_texts,
    "printed with a null of pandas": lambda *turns: [str(side).replace("None", "nan") for side in as_nulls(*turns)],
    "hh": as_hh,
    "hh of users": as_users,
    "hh without a blank line": lambda *turns: as_hh(*turns, first=""),
    "hh after a byte-order mark": lambda *turns: None if (hh := as_hh(*turns)) is None else ["\ufeff" + t for t in hh],
    "hh after spaces": lambda *turns: as_hh(*turns, first="  \n"),
    "hh of Windows": lambda *turns: as_hh(*turns, end="\r\n"),
}


def split_prompts(prompt, sides):
    """Yields ways to write a prompt beside the responses."""
    yield {"prompt": messages(prompt)}
    yield {"prompt": json.dumps(messages(prompt))}
    yield {"conversations": as_sharegpt(prompt, "")[0][:-1]}
    yield {"messages": [*messages(prompt), {"role": "assistant", "content": ""}], "prompt": None}
    if hh := as_hh(prompt, ""):
        yield {"prompt": hh[0]}
    if prompt[0][0] == "system" and prompt[0][1].strip() and len(prompt) > 1:
        yield {"system": prompt[0][1], "prompt": messages(prompt[1:])}
        yield {"system_prompt": prompt[0][1], "prompt": messages(prompt)}
    users = [content for role, content in prompt if role == "user"]
    system = prompt[0][1] if prompt[0][0] == "system" else ""
    plain = users and users[0].strip() and "Assistant:" not in users[0] and read_turns(users[0], "") is None
    if plain and len(prompt) == len(users) + bool(system) == 1 + bool(system.strip()):
        for name in ("prompt", "question", "query", "instruction"):
            yield {name: users[0], "system": system}
        instruction, blank_line, more = users[0].partition("\n\n")
        if blank_line and instruction.strip() and more.strip():
            yield {"instruction": instruction, "input": more, "system": system}


def records(prompt, sides, columns):
    for shape in WHOLE.values():
        if (whole := shape(prompt, *sides)) is not None:
            yield dict(zip(columns, whole, strict=True))
            for before in split_prompts(prompt, sides):
                yield before | dict(zip(columns, whole, strict=True))
    for before in split_prompts(prompt, sides):
        alone = [{"role": "assistant", "content": side} for side in sides]
        yield before | dict(zip(columns, alone, strict=True))
        yield before | {column: [message] for column, message in zip(columns, alone, strict=True)}
        if prompt[-1][0] != "assistant" and not any(map(looks_whole, sides)):
            yield before | dict(zip(columns, sides, strict=True))


def looks_whole(text):
    turns = read_turns(text, "")
    return turns is not None and text.strip().startswith(("Human:", "Assistant:", "["))


pieces = ["the dog", "a", " ", "\n", "\n\n", "\r\n", "é😀", "\u2028", "'", '"', "} {", "{", "[", "\\n", "\\", "Human:"]
contents = st.lists(st.sampled_from([*pieces, "\n\nHuman: ", "\n\nAssistant:", "System:"]), max_size=6).map("".join)
marked = st.lists(st.sampled_from([*pieces, *SPECIAL]), max_size=6).map("".join)


@st.composite
def prompts(draw, words=contents):
    turns = [("system", draw(words))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        turns += [("user", draw(words)), ("assistant", draw(words))]
    return [*turns, ("user", draw(words))]


@settings(max_examples=40, deadline=None)
@given(prompt=prompts(), chosen=contents, rejected=contents, kind=st.sampled_from(list(TOKENIZERS)))
def test_every_shape_of_a_pair_gives_the_same_tokens(prompt, chosen, rejected, kind):
    expected = []
    for side in (chosen, rejected):
        before, after = written_by_hand([*prompt, ("assistant", side)], kind)
        encode = TOKENIZERS[kind].encode
        expected.append((encode(before), [*encode(after), 2]))
    for record in records(prompt, (chosen, rejected), ("chosen", "rejected")):
        assert tokens_of(record, kind) == expected, record
    if kind == "chat" and as_hh(prompt, chosen, rejected) is not None:
        texts = ["".join(written_by_hand([*prompt, ("assistant", side)], kind)) for side in (chosen, rejected)]
        rendered = dict(zip(("chosen", "rejected"), (f"{text}<|im_end|>\n" for text in texts), strict=True))
        assert tokens_of(rendered, kind) == expected, rendered


@settings(max_examples=30, deadline=None)
@given(prompt=prompts(), before=contents, after=contents)
def test_every_shape_of_a_labelled_text_gives_the_same_tokens_and_passages(prompt, before, after):
    """Passages count characters of what is written: of HH text the whole, of messages what the last one says."""
    response = f"{before}BAD{after}"
    content = response.replace("\r\n", "\n").strip()
    start = content.index("BAD")
    expected = None
    shapes = [(name, shape(prompt, response)) for name, shape in WHOLE.items()]
    for name, whole in [*shapes, ("alone", [response])]:
        if whole is None:
            continue
        written = whole[0] if name.startswith("hh") else response
        at = written.rindex("BAD")
        record = {"text": whole[0], "label": 1, "spans": [[at, at + 3]]}
        if name == "alone":
            record = record | {"prompt": messages(prompt)}
        if name == "alone" and looks_whole(response):
            continue
        (row,) = read_labelled_rows([record])
        assert row.spans == (Span(start, start + 3),), record
        (labelled,) = tokenize_labelled([row], TOKENIZERS["chat"], LONG)
        tokens = labelled.example.prefix, labelled.example.branches, labelled.characters
        expected = expected or tokens
        assert tokens == expected, record


@settings(max_examples=30, deadline=None)
@given(prompt=prompts(), response=contents)
def test_every_shape_of_a_scored_text_and_of_a_prompt_gives_the_same_tokens(prompt, response):
    before, after = written_by_hand([*prompt, ("assistant", response)], "chat")
    encode = TOKENIZERS["chat"].encode
    for record in records(prompt, (response,), ("text",)):
        assert tokens_of(record | {"score": 1}, "chat") == [(encode(before), [*encode(after), 2])], record
        assert encode_prompts(read_prompts([record]), TOKENIZERS["chat"], 100_000) == [encode(before)], record
    for record in split_prompts(prompt, ()):
        assert encode_prompts(read_prompts([record]), TOKENIZERS["chat"], 100_000) == [encode(before)], record


def chat(*turns):
    """Makes messages, of users and assistants in turn."""
    return messages(zip(["user", "assistant"] * len(turns), turns, strict=False))


Q = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
TWO = "<|im_start|>user\nP<|im_end|>\n<|im_start|>assistant\nR<|im_end|>\n" + Q
HH = "\n\nHuman: Q\n\nAssistant:"
SAME = {
    "both responses begin with the prompt": ({"prompt": "Q", "chosen": "Q, yes", "rejected": "Q"}, Q, "Q, yes", "Q"),
    "one does": ({"prompt": "Q", "chosen": "Q, yes", "rejected": "no"}, Q, "Q, yes", "no"),
    "whole HH texts": ({"prompt": HH, "chosen": f"{HH} a", "rejected": f"{HH} b"}, Q, "a", "b"),
    "only one looks like HH": ({"prompt": "Q", "chosen": "Assistant: a", "rejected": "b"}, Q, "Assistant: a", "b"),
    "both name the assistant": ({"prompt": "Q", "chosen": "\n\nAssistant: a", "rejected": "Assistant: b"}, Q, "a", "b"),
    "a turn inside a response": ({"prompt": HH, "chosen": "a\n\nHuman: c", "rejected": "b"}, Q, "a\n\nHuman: c", "b"),
    "a begun response": ({"prompt": f"{HH} Sure,", "chosen": " a", "rejected": " b"}, Q, "Sure, a", "Sure, b"),
    "a begun response in messages": (
        {"prompt": chat("Q", "Sure, "), "chosen": "a", "rejected": ""},
        Q,
        "Sure, a",
        "Sure,",
    ),
    "User for Human": (
        {"chosen": "\n\nUser: Q\n\nAssistant: a", "rejected": "User: Q\n\nAssistant: b"},
        Q,
        "a",
        "b",
    ),
    "User and Human in what is said": (
        {"chosen": "User: Q\n\nAssistant: a\n\nHuman: c", "rejected": f"{HH} b\n\nUser: c"},
        Q,
        "a\n\nHuman: c",
        "b\n\nUser: c",
    ),
    "a whole conversation beside its responses": (
        {"messages": chat("Q", "a"), "chosen": "a", "rejected": "b"},
        Q,
        "a",
        "b",
    ),
    "a whole conversation beside whole dialogues": (
        {"conversations": chat("Q", "a"), "chosen": chat("Q", "a"), "rejected": chat("Q", "b")},
        Q,
        "a",
        "b",
    ),
    "messages that go on with a begun response": (
        {"prompt": chat("Q", "Sure,"), "chosen": chat("Q", " a")[1:], "rejected": chat("Q", " b")[1:]},
        Q,
        "Sure, a",
        "Sure, b",
    ),
    "dialogues that go on with a begun response": (
        {"prompt": chat("Q", "Sure,"), "chosen": chat("Q", "Sure, a"), "rejected": chat("Q", "Sure, b")},
        Q,
        "Sure, a",
        "Sure, b",
    ),
    "the last question beside the dialogue": (
        {"prompt": "Q", "chosen": chat("P", "R", "Q", "a"), "rejected": chat("P", "R", "Q", "b")},
        TWO,
        "a",
        "b",
    ),
    "further turns": (
        {"prompt": chat("P"), "chosen": chat("P", "R", "Q", "a")[1:], "rejected": chat("P", "R", "Q", "b")[1:]},
        TWO,
        "a",
        "b",
    ),
    "instruction and input": (
        {"instruction": "Do", "input": "Q", "chosen": "a", "rejected": "b"},
        Q.replace("Q", "Do\n\nQ"),
        "a",
        "b",
    ),
    "a prompt made of a question": (
        {"prompt": "Say: Q", "question": "Q", "chosen": "a", "rejected": "b"},
        Q.replace("Q", "Say: Q"),
        "a",
        "b",
    ),
    "a question that the dialogues hold": (
        {"question": "Q", "chosen": chat("Say: Q", "a"), "rejected": chat("Say: Q", "b")},
        Q.replace("Q", "Say: Q"),
        "a",
        "b",
    ),
    "further turns that hold the prompt's words": (
        {
            "prompt": "P",
            "chosen": [{"role": "assistant", "content": "R"}, *chat("Q", "a")],
            "rejected": [{"role": "assistant", "content": "R"}, *chat("Q", "P")],
        },
        TWO,
        "a",
        "P",
    ),
    "a prompt made of an instruction and its input": (
        {"prompt": "Do: x, Q", "instruction": "Do", "input": "Q", "chosen": "a", "rejected": "b"},
        Q.replace("Q", "Do: x, Q"),
        "a",
        "b",
    ),
    "UltraFeedback": (
        {
            "prompt": "Q",
            "prompt_id": "1",
            "messages": chat("Q", "a"),
            "chosen": chat("Q", "a"),
            "rejected": chat("Q", "b"),
            "score_chosen": 1.0,
        },
        Q,
        "a",
        "b",
    ),
    "LLaMA-Factory": (
        {
            "conversations": [{"from": "human", "value": "Q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        Q,
        "a",
        "b",
    ),
    "an empty response": ({"prompt": "Q", "chosen": "a", "rejected": " \n"}, Q, "a", ""),
    "end tokens after responses": ({"prompt": "Q", "chosen": "a</s>", "rejected": "b <|im_end|>\n</s>\n"}, Q, "a", "b"),
    "nothing but an end token": ({"prompt": "Q", "chosen": "a", "rejected": "</s>"}, Q, "a", ""),
    "end tokens after earlier turns": (
        {"chosen": chat("P", "R</s>", "Q", "a"), "rejected": chat("P", "R<|im_end|>", "Q", "b")},
        TWO,
        "a",
        "b",
    ),
    "the chat template's own text": ({"chosen": f"{Q}a<|im_end|>\n", "rejected": f"{Q}b</s>"}, Q, "a", "b"),
    "text as JSON that is no message": (
        {"prompt": "Q", "chosen": '[{"name": "x"}]', "rejected": "[1"},
        Q,
        '[{"name": "x"}]',
        "[1",
    ),
    "other names of roles": (
        {"chosen": [{"role": "Human", "content": "Q"}, {"role": "bot", "content": "a"}], "rejected": chat("Q", "b")},
        Q,
        "a",
        "b",
    ),
    "surrogates that pair": (
        {"prompt": "\ud83d\ude00", "chosen": "a", "rejected": "b"},
        Q.replace("Q", "😀"),
        "a",
        "b",
    ),
    "nulls of parquet": (
        {
            "system": None,
            "text": None,
            "chosen": [turn | {"tool_calls": None} for turn in chat("Q", "a")],
            "rejected": chat("Q", "b"),
        },
        Q,
        "a",
        "b",
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_a_pair_is_its_prompt_and_its_responses(name):
    record, prompt, *responses = SAME[name]
    encode = TOKENIZERS["chat"].encode
    assert tokens_of(record, "chat") == [(encode(prompt), [*encode(response), 2]) for response in responses]
    if "Q" in prompt:
        assert tokens_of(json.loads(json.dumps(record)), "chat") == tokens_of(record, "chat")


USER = {"role": "user", "content": "Q"}
REFUSED = {
    "null content": ([USER, {"role": "assistant", "content": None}], "message 2"),
    "tool calls": ([USER, {"role": "assistant", "content": "a", "tool_calls": [{"id": 1}]}], "tool_calls"),
    "reasoning": ([USER, {"role": "assistant", "content": "a", "reasoning_content": "hm"}], "reasoning_content"),
    "an image": ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "image_url"),
    "a part without text": ([{"role": "user", "content": [{"type": "text", "text": None}]}], "part without text"),
    "a number": ([{"role": "user", "content": 5}], "int"),
    "an unknown role": ([USER, {"role": "narrator", "content": "x"}], "narrator"),
    "texts": (["Q", "a"], "str"),
    "no messages": ([], "missing or empty"),
    "lists of two lengths": ({"role": ["user", "assistant"], "content": ["Q"]}, "message 2"),
    "a printed message without content": (str([USER, {"role": "assistant"}]), "message 2"),
    "printed messages cut short": ("[{'role': 'user', 'content': 'Q'}", "printed messages"),
    "half a character": ("\ud83d", "half of a character"),
    "one line feed before the assistant": ("Human: Q\nAssistant: a", "blank line"),
    "bytes": (b"a", "bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_named(name):
    value, named = REFUSED[name]
    good = {"chosen": chat("Q", "a"), "rejected": chat("Q", "b")}
    refused(lambda: read_rows([good, good | {"rejected": value}]), "row 2", "rejected", named)


CLASHES: dict[str, tuple[dict[str, Any], str]] = {
    "prompt and question": ({"prompt": "P", "question": "Q"}, "columns prompt and question"),
    "two system texts": ({"system": "S", "prompt": [{"role": "system", "content": "T"}, USER]}, "system"),
    "a history": ({"prompt": "Q", "history": [["P", "R"]]}, "history"),
    "a system list": ({"prompt": "Q", "system": ["S"]}, "system"),
}


@pytest.mark.parametrize("name", CLASHES)
def test_columns_that_clash_are_named(name):
    record, named = CLASHES[name]
    refused(lambda: read_rows([record | {"chosen": "a", "rejected": "b"}]), "row 1", named)
    refused(lambda: read_prompts([record]), "row 1", named)


def test_what_was_found_is_named():
    refused(lambda: read_rows([{"prompt": "P", "completion": "a", "label": True}]), "row 1", "score", "label")
    refused(lambda: read_rows([{"prompt": "P", "chosen": "a", "rejected": "b", "margin": 2.0}]), "row 1", "margin")
    settings = {"chat_template_kwargs": {"enable_thinking": False}}
    refused(lambda: read_rows([{"prompt": "P", "chosen": "a", "rejected": "b", **settings}]), "chat_template_kwargs")


def test_dialogues_without_their_prompt_or_of_two_kinds_are_refused():
    dialogues = {"chosen": chat("Q", "a"), "rejected": chat("Q", "b")}
    refused(lambda: read_rows([{"prompt": "P", **dialogues}]), "row 1", "does not begin with the prompt")
    refused(lambda: read_rows([{"prompt": chat("Q", "Sure,"), **dialogues}]), "row 1", "does not begin with the prompt")
    with_system = [{"role": "system", "content": "S"}, *chat("Q", "a")]
    refused(lambda: read_rows([dialogues | {"system": "T", "chosen": with_system}]), "row 1", "system turns")
    refused(lambda: read_rows([{"chosen": chat("Q", "a"), "rejected": "b"}]), "row 1", "chosen and rejected")
    refused(lambda: read_rows([{"text": "a", "response": "b", "score": 1}]), "row 1", "text and response")
    whole = {"messages": chat("Q", "c"), "chosen": "a", "rejected": "b"}
    refused(lambda: read_rows([whole]), "row 1", "chosen and rejected", "leave it out")


@pytest.mark.parametrize("text", ["What is 2+2?\n\nAssistant:", "Q: 2+2?\n\nAssistant: 4"])
def test_hh_text_in_which_no_human_speaks_is_refused(text):
    refused(lambda: read_rows([{"prompt": text, "chosen": "a", "rejected": "b"}]), "row 1", "prompt", "'Human:'")
    refused(lambda: read_rows([{"chosen": text, "rejected": text}]), "row 1", "chosen", "'Human:'")
    refused(lambda: read_prompts([{"text": text}]), "row 1", "text", "'Human:'")
    (row,) = read_rows([{"prompt": "Q", "chosen": text, "rejected": "b"}])
    assert isinstance(row, PairRow)
    assert row.chosen.response == text  # a response may say anything


def test_a_prompt_in_which_nobody_speaks_is_refused():
    refused(lambda: read_prompts([{"text": "Q"}, {"text": "\n\nAssistant:"}]), "row 2", "no prompt")


@settings(max_examples=40, deadline=None)
@given(prompt=prompts(marked), response=marked, kind=st.sampled_from(list(TOKENIZERS)))
def test_only_the_template_writes_special_tokens(prompt, response, kind):
    """What is said decodes to itself, and has no special token but those that the template writes around it."""
    tokenizer = TOKENIZERS[kind]
    dialogue = parse_dialogue(messages([*prompt, ("assistant", response)]))
    ends = ("</s>", "<|im_end|>") if kind == "chat" else ("</s>",)
    turns = [
        (role, without_ends(content, ends) if role == "assistant" else content)
        for role, content in [*prompt, ("assistant", response)]
    ]
    before, after = written_by_hand(turns, kind)
    first, second = dialogue_tokens(dialogue, tokenizer, LONG)
    assert tokenizer.decode(first) == before
    assert tokenizer.decode(second) == f"{after}</s>"
    assert [token for token in first if token < 5] == [3, 4] * (len(prompt) if kind == "chat" else 0) + [3] * (
        kind == "chat"
    )
    assert [token for token in second if token < 5] == [2]


def without_ends(text, ends):
    text = text.replace("\r\n", "\n").strip()
    while text.endswith(ends):
        text = next(text.removesuffix(end) for end in ends if text.endswith(end)).rstrip()
    return text


def test_a_raw_text_begins_and_ends_once():
    record = {"chosen": "<s>a <|im_start|> b</s>\n", "rejected": " c"}
    (start, first), (_, second) = tokens_of(record, "chat")
    plain = TOKENIZERS["chat"].encode("a <|im_start|> b", split_special_tokens=True)
    assert (start, first, second) == ([1], [*plain, 2], [*TOKENIZERS["chat"].encode(" c"), 2])


def test_what_the_template_wrote_is_no_prompt():
    refused(
        lambda: tokenize(read_rows([{"prompt": Q, "chosen": "a", "rejected": "b"}]), TOKENIZERS["chat"], LONG),
        "row 1: the prompt is in the chat template already",
    )


def test_what_a_template_refuses_is_named_with_its_words(tmp_path):
    strict = chat_tokenizer(STRICT)
    rows = [{"prompt": "Q", "chosen": "a", "rejected": "b"}] * 3 + [
        {"system": "S", "prompt": "Q", "chosen": "a", "rejected": "b"}
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = ("pairs.jsonl, row 4", "the chat template refuses it", "System role not supported")
    refused(lambda: tokenize(read_rows(path), strict, LONG), *named)
    refused(lambda: encode_prompts(read_prompts(path), strict, 9), *named)
    refused(lambda: prompt_tokens((("user", "a"), ("user", "b")), strict), "the prompt", "Roles must alternate")
    refused(
        lambda: tokenize(read_rows([{"chosen": chat("Q", "a")[1:], "rejected": chat("Q", "b")[1:]}]), strict, LONG),
        "row 1: nothing stands before the response",
    )


def test_a_turn_that_the_template_passes_over_is_refused():
    silent = chat_tokenizer(CHAT.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'tool' %}"))
    turns = (("user", "Q"), ("tool", "42"))
    assert prompt_tokens(turns[:1], silent) == TOKENIZERS["chat"].encode(Q)
    refused(lambda: prompt_tokens(turns, silent), "leaves out", "tool")
    assert 3 in prompt_tokens(turns, TOKENIZERS["chat"])


@pytest.mark.parametrize(
    ("messages", "role"), [("messages[-1:]", "user"), ("messages if m['role'] == 'user'", "assistant")]
)
def test_an_earlier_turn_that_the_template_passes_over_is_refused(messages, role):
    silent = chat_tokenizer(CHAT.replace("in messages", f"in {messages}"))
    turns = (("user", "P"), ("assistant", "R"), ("user", "Q"))
    assert prompt_tokens(turns[:1], silent) == prompt_tokens(turns[:1], TOKENIZERS["chat"])
    refused(lambda: prompt_tokens(turns, silent), "leaves out", role)


def test_what_a_template_writes_in_another_way_is_not_left_out():
    """Qwen3's template leaves out the thoughts of earlier turns; another one writes JSON, in ASCII alone."""
    turns = (("user", "P"), ("assistant", "<think>t</think>R"), ("user", "Q"))
    thoughts = chat_tokenizer(CHAT.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}"))
    assert thoughts.decode(prompt_tokens(turns, thoughts)) == TWO
    ascii_json = chat_tokenizer(CHAT.replace("m['content'] }}", "m['content'] | tojson(ensure_ascii=True) }}"))
    assert '"P"' in ascii_json.decode(prompt_tokens(turns, ascii_json))


def test_a_tokenizer_may_have_several_templates():
    several = chat_tokenizer({"default": CHAT, "tool_use": STRICT})
    assert prompt_tokens((("user", "Q </s>"),), several) == prompt_tokens((("user", "Q </s>"),), TOKENIZERS["chat"])


def test_a_pair_in_the_template_on_one_side_is_refused():
    rows = read_rows([{"chosen": f"{Q}a", "rejected": "b"}])
    refused(lambda: tokenize(rows, TOKENIZERS["chat"], LONG), "row 1", "the other was not")


def test_what_is_learnt_of_a_tokenizer_follows_its_changes():
    changed = chat_tokenizer()
    assert prompt_tokens((("user", "Q <new>"),), changed) == prompt_tokens((("user", "Q <new>"),), TOKENIZERS["chat"])
    changed.add_special_tokens({"additional_special_tokens": ["<new>"]})
    assert max(prompt_tokens((("user", "Q <new>"),), changed)) < 300


def test_a_text_goes_on_after_a_marker_without_a_space():
    """Tokenizers such as Llama 2's put a space before a text; the words after a special token in a content get none."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", *SPECIAL], show_progress=False)
    inner.train_from_iterator(["the user said </s><|im_end|>and\nassistant"] * 9, trainer)
    spaced = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    spaced.chat_template = CHAT
    tokens = spaced.convert_ids_to_tokens(prompt_tokens((("user", "the</s>user said"),), spaced))
    assert "".join(tokens[tokens.index("the") : tokens.index("<|im_end|>")]) == "the</s>user▁said"


def test_a_special_token_that_has_no_plain_form_is_refused():
    inner = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("▁", -1.0), ("a", -1.0)], unk_id=0))
    plain = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="</s>")
    assert prompt_tokens((("user", "a"),), plain)
    refused(lambda: prompt_tokens((("user", "a </s> a"),), plain), "the prompt", "</s>")


def test_corpora_spell_no_special_tokens():
    positive, negative = tokenize_corpora(["the </s> dog"], ["is <|im_start|> nice"], TOKENIZERS["chat"], 99)
    for example, text in ((positive, "the </s> dog"), (negative, "is <|im_start|> nice")):
        assert TOKENIZERS["chat"].decode(example.branches[0]) == text
        assert min(example.branches[0]) > 4
