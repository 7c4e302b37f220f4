"""A finished text is judged at its last token before the end token, where an adapter does not learn what that means."""

from typing import Any

import pytest
import torch
from conftest import generate, tiny_base, tiny_otter, tokens
from generation_table import tokenizer

from otterlm.decoding import (
    BestOfN,
    CandidateSearch,
    GuardRollback,
    RejectionSampling,
    label_sequences,
    score_sequences,
    stream_tokens,
)
from otterlm.decoding.ends import before_ends
from otterlm.model import OtterModel
from otterlm.signals.guard.config import GuardConfig
from otterlm.training.data.packing import Example
from otterlm.training.evaluation.scoring import score_examples
from otterlm.training.vocabulary_head import read_steps

END = 2
"""The end token of the tests' bases."""


@pytest.fixture(scope="module")
def otter() -> OtterModel:
    return tiny_otter(tiny_base(), signal=GuardConfig(("rude", "threat"), vocabulary_rank=4))


def test_values_at_end_tokens() -> None:
    values = torch.arange(24.0).view(3, 4, 2)
    sequences = torch.tensor([[7, END, 8, END], [END, END, 0, 0], [9, END, END, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    result = before_ends(values, sequences, mask, {END, 5})[..., 0]
    # An end token inside a text is none of its end, and a text of end tokens has nothing before them.
    assert result[0].tolist() == [0, 2, 4, 4]
    assert result[1, :2].tolist() == [8, 10]
    assert result[2, :3].tolist() == [16, 16, 16]
    assert before_ends(values, sequences, mask, set()) is values


@torch.no_grad()
def test_labels_of_finished_texts(otter) -> None:
    ids = torch.cat((tokens(2, 6), torch.tensor([[END], [30]])), dim=1)
    mask = torch.ones_like(ids)
    plain = otter(ids).signals["reward"]
    labels, safe = label_sequences(otter, ids, mask), score_sequences(otter, ids, mask)
    assert torch.equal(labels[0, -1], plain.probabilities[0, -2])
    assert torch.equal(labels[1], plain.probabilities[1])
    assert torch.equal(safe[0, -1], plain.prefix[0, -2])
    (scored,) = score_examples(otter, [Example(0, tuple(ids[0, :3].tolist()), (tuple(ids[0, 3:].tolist()),))])
    assert scored.rewards[0][-1] == scored.rewards[0][-2]


@torch.no_grad()
def test_a_reward_reads_the_end() -> None:
    otter = tiny_otter(tiny_base())
    ids = torch.cat((tokens(1, 6), torch.tensor([[END]])), dim=1)
    assert torch.equal(score_sequences(otter, ids, torch.ones_like(ids)), otter(ids).signals["reward"].prefix)


def test_streams_and_loops_judge_before_the_end(otter) -> None:
    ids = tokens(1, 5)
    plain = generate(otter, input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8)[0, 5:].tolist()
    end = next(token for number, token in enumerate(plain) if number and token not in plain[:number])
    length = plain.index(end) + 1
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": end, "pad_token_id": 0}
    streamed = list(stream_tokens(otter, tokenizer(), ids, **settings))
    assert [each.token for each in streamed] == plain[:length]
    assert streamed[-1].labels == streamed[-2].labels
    assert streamed[-1].signals == streamed[-2].signals
    assert streamed[-2].labels != streamed[0].labels or length == 2
    settings["return_dict_in_generate"] = True
    for loop in (CandidateSearch(1e-9, min_p=0.0), BestOfN(2)):
        sampled = {"do_sample": True, "top_k": 1} if isinstance(loop, BestOfN) else {}
        output = otter.generate(ids, custom_generate=loop, **(settings | sampled))
        assert output.sequences[0, 5:].tolist() == plain[:length]
        assert output.rewards[0, length - 1] == output.rewards[0, length - 2]


def test_an_end_token_sets_off_no_alarm(otter) -> None:
    """Its own state would: the alarm lies between what it says and the highest of the text before it."""
    for seed in range(20):
        ids = tokens(1, 5, seed=seed)
        plain = generate(otter, input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8)
        with torch.no_grad():
            peaks = otter(plain).signals["reward"].probabilities[0, 5:].amax(dim=-1).tolist()
        response = plain[0, 5:].tolist()
        at = peaks.index(max(peaks))
        if at and response[at] not in response[:at]:
            break
    alarm = (max(peaks[:at]) + peaks[at]) / 2
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    settings |= {"return_dict_in_generate": True, "custom_generate": GuardRollback(alarm=alarm)}
    output = otter.generate(ids, eos_token_id=response[at], **settings)
    assert output.rollbacks == [[]]
    assert output.sequences[0, 5:].tolist() == response[: at + 1]
    assert otter.generate(ids, eos_token_id=None, **settings).rollbacks != [[]]


def test_rejection_judges_before_the_end(otter) -> None:
    ids = tokens(1, 5)
    first = int(generate(otter, input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=1)[0, 5])
    settings: dict[str, Any] = {"do_sample": True, "top_k": 1, "max_new_tokens": 4, "pad_token_id": 0}
    with torch.no_grad():
        wanted = float(otter(ids).signals["reward"].prefix[0, -1])
    # The response is the end alone: its reward is the prompt's, which is all that is wanted.
    loop = RejectionSampling(wanted, alpha=1.0, beta=1e-9, attempts=5)
    output = otter.generate(ids, custom_generate=loop, eos_token_id=first, return_dict_in_generate=True, **settings)
    assert output.sequences[0, 5:].tolist() == [first]
    assert output.attempts == [1]


def test_the_end_changes_no_label(otter) -> None:
    """Steering heads learn so: the head could not be fitted to what nobody taught."""
    _, candidates = read_steps(otter, [Example(0, (), (tuple(tokens(1, 9)[0].tolist()),))], k=97, count=3)
    gains = candidates.gains[candidates.tokens == END]
    assert len(gains) == 3
    assert not gains.any()
    assert candidates.gains[candidates.tokens != END].any()
