"""Guards packing: a pair in one sequence gives the rewards of its two texts run alone, whatever the batch."""

from collections import Counter
from typing import Any

import pytest
import torch
from chat_tokenizer import CHAT, chat_tokenizer
from conftest import ARCHITECTURES, close, refused, tiny_base, tiny_otter
from hypothesis import given, settings
from hypothesis import strategies as st
from word_tokenizer import TEMPLATE, WORDS, tokenizer

from otterlm.training.data.conversations import Dialogue
from otterlm.training.data.packing import Example, collate, length_buckets
from otterlm.training.data.rows import PairRow, ScoredRow
from otterlm.training.data.tokens import Limits, dialogue_tokens, prompt_tokens, tokenize
from otterlm.training.sources import LiveBase


def ids(text):
    return [WORDS.index(word) for word in text.split()]


def words(sequence):
    return " ".join(WORDS[index] for index in sequence)


TURNS = (("user", "a b"), ("assistant", "c"), ("user", "d"))
LONG = Limits(64, 64)


def test_hh_format_without_a_chat_template():
    prompt, response = dialogue_tokens(Dialogue(TURNS, "e f"), tokenizer(), LONG)
    assert words(prompt) == "Human : a b Assistant : c Human : d Assistant :"
    assert words(response) == "e f <eos>"


def test_chat_template():
    prompt, response = dialogue_tokens(Dialogue(TURNS, "e f"), tokenizer(TEMPLATE), LONG)
    assert words(prompt) == "user : a b assistant : c user : d assistant :"
    assert words(response) == "e f <eos>"


@pytest.mark.parametrize("begun", ["<think>\n", "<think>\n\n</think>\n\n"])
def test_what_the_template_begins_to_say_is_not_said_twice(begun):
    """As templates of reasoning models open the thoughts (TRL, pull request 6433)."""
    thinking = chat_tokenizer(CHAT.replace("assistant\n{% endif %}", f"assistant\n{begun}{{% endif %}}"))
    once, repeated = (dialogue_tokens(Dialogue(TURNS, text), thinking, LONG) for text in ("yes", f"{begun}yes"))
    assert once == repeated
    assert thinking.decode(once[0] + once[1]).endswith(f"assistant\n{begun}yes</s>")
    plain = dialogue_tokens(Dialogue(TURNS, f"{begun}yes"), chat_tokenizer(), LONG)
    assert chat_tokenizer().decode(plain[1]) == f"{begun}yes</s>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nhm\n</think>\n\nyes", "<think>\nhm\n</think>\n\nyes"),
        ("<think>hm</think>yes", "<think>hm</think>yes"),
        ("<b>yes</b>", "<think>\n\n</think>\n\n<b>yes</b>"),
        ("", "<think>\n\n</think>\n\n"),
    ],
)
def test_a_thought_takes_the_place_of_an_empty_one(text, expected):
    """As Qwen3's template writes an empty thought where thinking is off."""
    template = CHAT.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}")
    thinking = chat_tokenizer(template)
    for turns in (TURNS, (("user", "a <|im_end|>"), ("assistant", "b"), ("user", "c"))):
        prompt, response = dialogue_tokens(Dialogue(turns, text), thinking, LONG)
        assert thinking.decode(prompt + response).endswith(f"<|im_start|>assistant\n{expected}</s>")


MISTRAL = (
    "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}"
    " {{ m['content'] }}</s>{% endif %}{% endfor %}"
)


def test_white_space_before_the_assistants_words_is_theirs():
    mistral = chat_tokenizer(MISTRAL)
    turns = (("user", "a"), ("assistant", "b"), ("user", "c"))
    prompt, response = dialogue_tokens(Dialogue(turns, "d"), mistral, LONG)
    assert mistral.decode(prompt + response) == "<s>[INST] a [/INST] b</s>[INST] c [/INST] d</s>"
    assert response == [*mistral.encode(" d"), 2]
    assert dialogue_tokens(Dialogue(turns, ""), mistral, LONG)[1] == [2]
    messages = [{"role": role, "content": content} for role, content in (*turns, ("assistant", "d"))]
    assert prompt + response == mistral.apply_chat_template(messages, return_dict=False)


def test_raw_text_starts_with_bos():
    assert dialogue_tokens(Dialogue(None, "a b"), tokenizer(TEMPLATE), LONG) == (ids("<bos>"), ids("a b <eos>"))
    assert prompt_tokens(None, tokenizer(bos_token=None)) == []


def test_limits_keep_the_prompts_end_and_the_responses_start():
    prompt, response = dialogue_tokens(Dialogue(TURNS, "e f g h"), tokenizer(), Limits(4, 2))
    assert words(prompt) == ": d Assistant :"
    assert words(response) == "e f"
    refused(lambda: Limits(prompt=0), "prompt", "got 0")
    refused(lambda: Limits(response=0), "response", "got 0")


def pair(chosen, rejected, prompt=TURNS, other=None):
    return PairRow(Dialogue(prompt, chosen), Dialogue(prompt if other is None else other, rejected))


PAIRS = [
    pair("e f", "g"),
    pair("e f g h", "e f h"),
    pair("a", "a b c d e f"),
    pair("a b", "a b", other=(("user", "j"),)),
    pair("c d", "e", prompt=None),
    pair("a b c", "a b c d", prompt=(("user", "i j " * 5),)),
]


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_packed_pair_is_its_two_texts(template):
    limits, words_of = Limits(12, 4), tokenizer(template)
    examples = tokenize(PAIRS, words_of, limits)
    assert [example.row for example in examples] == list(range(len(PAIRS)))
    for example, row in zip(examples, PAIRS, strict=True):
        for branch, side in zip(example.branches, (row.chosen, row.rejected), strict=True):
            prompt, response = dialogue_tokens(side, words_of, limits)
            assert [*example.prefix, *branch] == prompt + response
            assert branch
        first, second = example.branches
        assert first[0] != second[0] or 1 in (len(first), len(second))


def test_identical_responses_are_dropped():
    rows = [pair("a b c", "a b d"), pair("a b c", "a b c"), pair("e", "f")]
    assert [example.row for example in tokenize(rows, tokenizer(), LONG)] == [0, 2]
    assert [example.row for example in tokenize(rows, tokenizer(), Limits(64, 2))] == [2]
    refused(lambda: tokenize(rows[1:2], tokenizer(), LONG), "no usable rows")


def test_scored_rows_have_one_branch():
    example = tokenize([ScoredRow(Dialogue(TURNS, "a"), 1.5)], tokenizer(), LONG)[0]
    assert words(example.branches[0]) == "a <eos>"
    assert (len(example.branches), example.scores) == (1, (1.5,))
    assert collate([example]).scores.tolist() == [[1.5]]


@pytest.mark.parametrize("row", [ScoredRow(Dialogue(TURNS, ""), 1.0), pair("", "a", prompt=None)])
def test_an_empty_response_has_no_token_to_judge(row):
    """Where no end-of-sequence token is added, there is nothing whose reward could be read: the row is left out."""
    plain = tokenizer(eos_token=None, bos_token=None)
    refused(lambda: tokenize([row], plain, LONG), "every response is empty")
    assert [example.row for example in tokenize([row, pair("a", "b")], plain, LONG)] == [1]
    assert len(tokenize([row], tokenizer(), LONG)) == 1


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_packed_rewards_are_those_of_the_texts_alone(model_type, attention):
    otter = tiny_otter(tiny_base(model_type, attention=attention))
    batch_of = tokenize([*PAIRS, ScoredRow(Dialogue(TURNS, "a b"), 1.0)], tokenizer(), LONG)
    batch, stream = collate(batch_of), otter.stream_passes(["reward"])["reward"]
    LiveBase(otter).show(batch, stream)
    assert stream.state is not None
    signal: Any = otter.read_signals({"reward": stream.state})["reward"]
    packed = signal.prefix
    for row, example in enumerate(batch_of):
        for number, branch in enumerate(example.branches, start=1):
            alone = otter(torch.tensor([[*example.prefix, *branch]])).signals["reward"].prefix[0]
            close(packed[row][batch.segments[row] == 0], alone[: len(example.prefix)])
            close(packed[row][batch.segments[row] == number], alone[len(example.prefix) :])


part = st.lists(st.integers(1, 90), min_size=1, max_size=6).map(tuple)
some_examples = st.lists(
    st.builds(Example, row=st.integers(0, 99), prefix=part, branches=st.lists(part, min_size=1, max_size=2).map(tuple)),
    min_size=1,
    max_size=5,
)


def text_before(batch, row, position):
    """Returns the indices on the way back from a token to the start of its text."""
    while batch.parents[row, position] != position:
        yield position
        position = int(batch.parents[row, position])
    yield position


@settings(max_examples=60, deadline=None)
@given(examples=some_examples)
def test_collate(examples):
    batch = collate(examples, pad_token_id=95)
    assert batch.input_ids.shape == (len(examples), max(map(len, examples)))
    assert batch.rows.tolist() == [example.row for example in examples]
    for row, example in enumerate(examples):
        inside = batch.segments[row] >= 0
        assert inside.sum() == len(example)
        assert inside[: len(example)].all()
        assert (batch.input_ids[row][~inside] == 95).all()
        for number, branch in enumerate(example.branches, start=1):
            last = int((batch.segments[row] == number).nonzero().max())
            path = list(text_before(batch, row, last))[::-1]
            assert batch.input_ids[row, path].tolist() == [*example.prefix, *branch]
            assert batch.position_ids[row, path].tolist() == list(range(len(path)))


def test_without_a_shared_prefix_the_branches_start_apart():
    batch = collate([Example(0, (), ((5, 6), (7, 8)))])
    assert batch.parents.tolist() == [[0, 0, 2, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1]]


@settings(max_examples=40, deadline=None)
@given(examples=some_examples, size=st.integers(1, 4), seed=st.none() | st.integers(0, 9))
def test_buckets_hold_every_example_once(examples, size, seed):
    buckets = list(length_buckets(examples, size, seed))
    assert all(1 <= len(bucket) <= size for bucket in buckets)
    assert Counter(example for bucket in buckets for example in bucket) == Counter(examples)
    assert buckets == list(length_buckets(examples, size, seed))


def test_buckets_group_like_lengths_and_follow_the_seed():
    examples = [Example(n, tuple(range(1, 2 + n * 7 % 50)), ((1,),)) for n in range(64)]
    buckets = list(length_buckets(examples, 8, seed=0))
    assert max(max(map(len, bucket)) - min(map(len, bucket)) for bucket in buckets) <= 8
    assert buckets != list(length_buckets(examples, 8, seed=1))
