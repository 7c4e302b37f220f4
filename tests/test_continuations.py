"""The base's continuations are greedy, end where it ends, are made once, and a killed run resumes."""

import json
from pathlib import Path

import pytest
import torch
from conftest import refused, tiny_base
from word_tokenizer import TEMPLATE, WORDS, tokenizer

from otterlm.training.data.continuations import continuation_examples, read_continuations
from otterlm.training.data.prompts import read_prompts
from otterlm.training.data.tokens import Limits, prompt_tokens
from otterlm.training.teachers import continuations
from otterlm.training.teachers.continuations import continue_prompts, continue_texts

PROMPTS = [(("user", " ".join(WORDS[10 : 11 + n])),) for n in range(7)]


@pytest.fixture(scope="module")
def base():
    return tiny_base(vocab_size=len(WORDS))


def run(base, path, prompts=PROMPTS, **settings):
    settings = {"max_new_tokens": 6, "batch_size": 3} | settings
    return continue_prompts(base, tokenizer(TEMPLATE), prompts, path, **settings)


def test_they_are_the_bases_greedy_choice(base, tmp_path: Path) -> None:
    examples = run(base, tmp_path / "c.jsonl")
    for prompt, example in zip(PROMPTS, examples, strict=True):
        ids = torch.tensor([prompt_tokens(prompt, tokenizer(TEMPLATE))])
        response = base.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert example.prefix == tuple(ids[0].tolist())
        assert example.branches == (tuple(response[0, ids.shape[1] :].tolist()),)
        assert 2 not in example.branches[0][:-1]  # nothing after its end


def test_a_killed_run_goes_on(base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, path = run(base, tmp_path / "whole.jsonl"), tmp_path / "c.jsonl"
    run(base, path)
    text = path.read_text()
    path.write_text(text[:-9])  # in the middle of a line
    assert run(base, path) == whole
    path.write_text(text[:99])  # in the middle of the first line
    assert run(base, path) == whole
    monkeypatch.setattr(continuations, "continue_greedily", None)
    assert run(base, path) == whole  # nothing is left to do


def test_another_runs_file_is_refused(base, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    run(base, path)
    before = path.read_text()
    refused(lambda: run(base, path, PROMPTS[1:]), "c.jsonl", "other prompts (7 there, 6 now)")
    refused(lambda: run(base, path, max_new_tokens=5), "c.jsonl", "max_new_tokens (6 there, 5 now)")
    refused(lambda: run(tiny_base(vocab_size=len(WORDS), seed=4), path), "c.jsonl", "other base:")
    half = tiny_base(vocab_size=len(WORDS), dtype=torch.bfloat16)
    refused(lambda: run(half, path), "c.jsonl", "base (float32 there, bfloat16 now)")
    longer = tiny_base(vocab_size=len(WORDS))
    longer.generation_config.repetition_penalty = 1.5
    refused(lambda: run(longer, path), "c.jsonl", "generation_config.repetition_penalty")
    assert path.read_text() == before
    path.write_text("garbage\n")
    refused(lambda: run(base, path), "c.jsonl is not a file of results", "delete or move it")


def test_texts_are_continued_from_the_nucleus(base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(WORDS[10 : 11 + n]) for n in range(7)]

    def sampled(name, **settings):
        settings = {"max_new_tokens": 6, "batch_size": 3} | settings
        return continue_texts(base, tokenizer(), texts, tmp_path / name, **settings)

    whole = sampled("whole.jsonl")
    for text, example in zip(texts, whole, strict=True):
        start = tokenizer().encode(text)
        assert example.prefix == ()
        assert example.branches[0][: len(start)] == tuple(start)
        assert 1 <= len(example) - len(start) <= 6
    assert sampled("again.jsonl") == whole
    assert sampled("other.jsonl", seed=1) != whole
    path = tmp_path / "torn.jsonl"
    path.write_text((tmp_path / "whole.jsonl").read_text()[:-30])  # the last batches are sampled as they were
    assert sampled("torn.jsonl") == whole
    refused(lambda: sampled("torn.jsonl", top_p=0.5), "torn.jsonl", "delete")
    # A nucleus of next to nothing is the likeliest token.
    greedy = sampled("greedy.jsonl", top_p=1e-6)[0].branches[0]
    ids = torch.tensor([tokenizer().encode(texts[0])])
    response = base.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert greedy == tuple(response[0].tolist())


def test_prompts_are_read_once_each(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    dialogue = "\n\nHuman: c\n\nAssistant: d\n\nHuman: e\n\nAssistant: f"
    rows = [
        {"prompt": "a"},
        {"question": "b"},
        {"prompt": [{"role": "user", "content": "a"}]},
        {"chosen": dialogue, "rejected": dialogue},
        {"text": "g"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    turns = (("user", "c"), ("assistant", "d"), ("user", "e"))
    assert read_prompts(path) == [(("user", "a"),), (("user", "b"),), turns, (("user", "g"),)]
    for row, named in (({"text": ""}, "no column"), ([1], "columns"), ({"prompt": [{"role": "user"}]}, "prompt")):
        path.write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps(row) + "\n")
        refused(lambda: read_prompts(path), "row 2" if row != [1] else "row", named)
    path.write_text("")
    refused(lambda: read_prompts(path), "no prompts")


READY = {"prompt": "a b", "response": "c d e"}
WORD_TOKENS = {"prompt_tokens": [8, 7, 10], "response_tokens": [12, 13, 14, 2]}


def ready(records, limits=Limits()):
    return continuation_examples(read_continuations(records), tokenizer(TEMPLATE), limits)


def test_ready_continuations_are_read_as_text_or_as_tokens() -> None:
    (text,) = ready([READY])
    assert text.prefix == tuple(prompt_tokens((("user", "a b"),), tokenizer(TEMPLATE)))
    assert text.branches == ((12, 13, 14, 2),)
    for records in ([WORD_TOKENS], [READY | WORD_TOKENS]):
        (tokens,) = ready(records)
        assert tokens.prefix == (8, 7, 10)  # as they are, not as the template would make them
        assert tokens.branches == ((12, 13, 14, 2),)
    (cut,) = ready([WORD_TOKENS], Limits(2, 3))
    assert (cut.prefix, cut.branches) == ((7, 10), ((12, 13, 14),))
    assert len(read_continuations([WORD_TOKENS] * 5, limit=3)) == 3
    two = ready([WORD_TOKENS, WORD_TOKENS | {"response_tokens": [2]}, WORD_TOKENS])
    assert [example.row for example in two] == [0, 2]  # nothing is drafted after one token


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (WORD_TOKENS | {"response_tokens": [12, 99]}, "another base"),
        (READY | WORD_TOKENS | {"response_tokens": [13, 12, 14]}, "another base"),
        ({"prompt_tokens": [8]}, "response_tokens"),
        (WORD_TOKENS | {"prompt_tokens": [8.5]}, "list of token ids"),
        ({"prompt": "a b"}, "no columns prompt and response"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "--prompts"),
        (WORD_TOKENS | {"response_tokens": [12]}, "two tokens"),
    ],
)
def test_what_is_no_continuation_is_refused(record, message) -> None:
    refused(lambda: ready([record]), message)
