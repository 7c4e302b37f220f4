"""Candidates are read as plain passes would read them; a head fitted to them guides better."""

import copy
from typing import Any

import pytest
import torch
from conftest import close, tiny_base, tiny_otter
from training_runs import HELD_OUT, TRAIN

from otterlm.decoding import RewardGuidance, score_sequences
from otterlm.signals import two_towers as two_towers_module
from otterlm.signals.low_rank import LowRankHead
from otterlm.signals.two_towers import TwoTowerHead
from otterlm.training.data.packing import Example
from otterlm.training.vocabulary_fit import FitConfig, fit_vocabulary
from otterlm.training.vocabulary_head import read_steps

EXAMPLES = [*TRAIN[:5], Example(90, (), ((5, 6, 7),)), Example(91, (4,), ((8,),))]


@torch.no_grad()
def test_candidates_are_what_plain_passes_say() -> None:
    otter = tiny_otter(tiny_base(), layers=(0, 2))
    followed, read = read_steps(otter, EXAMPLES, k=3, count=4, batch_size=3)
    assert len(followed.gains) == sum(len(text) for e in EXAMPLES for text in e.responses) - 1  # a first token
    assert read.tokens.shape == read.gains.shape[:2] == (4 * len(EXAMPLES), 3)
    known = {}
    for example in EXAMPLES:
        for branch in example.branches:
            text = (*example.prefix, *branch)
            states = otter(torch.tensor([text])).signals["reward"].state[0]
            for end in range(max(1, len(example.prefix)), len(text)):
                known[text[:end]] = states[end - 1]
    for state, candidates, gains in zip(read.states, read.tokens, read.gains, strict=True):
        text = next(text for text, other in known.items() if torch.allclose(state.float(), other, 1e-2, 1e-2))
        output = otter(torch.tensor([text]))
        assert set(output.logits[0, -1].topk(3).indices.tolist()) == set(candidates.tolist())
        before = output.signals["reward"].prefix[0, -1]
        for token, gain in zip(candidates.tolist(), gains, strict=True):
            after = otter(torch.tensor([[*text, token]])).signals["reward"].prefix[0, -1]
            close(gain, (after - before)[None], 1e-3)


@pytest.mark.parametrize("hidden", [0, 32])
def test_a_fitted_head_explains_gains_and_guides(hidden: int) -> None:
    otter = tiny_otter(tiny_base())
    examples = [Example(row, e.prefix, e.branches) for row, e in enumerate([*TRAIN, *HELD_OUT] * 3)]
    steps = read_steps(otter, examples, k=16, count=6)
    torch.manual_seed(0)
    head = otter.adapter().head
    unembedding = otter.base_model.get_output_embeddings().weight

    def reward(weight: float) -> float:
        ids = torch.tensor([example.prefix[:2] for example in TRAIN])
        settings: dict[str, Any] = {"max_new_tokens": 1, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        responses = otter.generate(ids, logits_processor=[RewardGuidance(otter, weight, top_k=16)], **settings)
        return float(score_sequences(otter, responses, torch.ones_like(responses))[:, -1].mean())

    width, base = head.prefix.in_features, unembedding.shape[1]
    head.vocabulary = TwoTowerHead(width, 32, 16, base) if hidden else LowRankHead(width, 16, base)
    head.vocabulary.initialize()
    plain = reward(0.0)
    how = FitConfig(epochs=40, batch_size=128, learning_rate=1e-2, dropout=0.0)
    explained, spread = fit_vocabulary(head.vocabulary, unembedding, steps[0].of(0), steps[1].of(0), how)
    assert explained > 0.1
    assert spread > 0
    assert reward(50.0) > plain


def two_towers() -> tuple[TwoTowerHead, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return TwoTowerHead(12, 7, 3, 5), torch.randn(2, 1, 12), torch.tensor([[1, 8, 1], [3, 3, 40]]), torch.randn(50, 5)


@torch.no_grad()
def test_the_table_of_tokens_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    head, state, tokens, unembedding = two_towers()
    computed: list[int] = []
    plain = head._of_embeddings

    def count(embeddings: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
        computed.append(len(embeddings))
        return plain(embeddings, dropout)

    expected = head.of_embeddings(state, unembedding[tokens])
    head._of_embeddings = count  # type: ignore[method-assign]
    monkeypatch.setattr(two_towers_module, "ROWS", 20)
    close(head.of_tokens(state, tokens, unembedding), expected, 1e-6)
    close(head.of_tokens(state, tokens[:, :1], unembedding), expected[:, :1], 1e-6)
    close(head.of_tokens(state[:, 0], tokens[:, 0], unembedding), expected[:, 0], 1e-6)
    close(head(state[:, 0], unembedding).gather(-1, tokens), expected, 1e-6)
    assert computed == [20, 20, 10]


@pytest.mark.parametrize("what", ["unembedding", "token_in", "token_out", "state_in"])
def test_the_table_of_tokens_follows_the_weights(what: str) -> None:
    head, state, tokens, unembedding = two_towers()
    with torch.inference_mode():
        head.of_tokens(state, tokens, unembedding)
    changed = unembedding if what == "unembedding" else getattr(head, what).weight
    with torch.no_grad():
        changed.mul_(1.5)
        close(head.of_tokens(state, tokens, unembedding), head.of_embeddings(state, unembedding[tokens]), 1e-6)
        copied = copy.deepcopy(head)
        copied.token_out.bias.data.add_(1.0)  # which torch does not count
        expected = copied.of_embeddings(state, unembedding[tokens])
        close(copied.of_tokens(state, tokens, unembedding), expected, 1e-6)
        with torch.inference_mode():  # tensors made here have no count
            other = torch.randn(50, 5)
            for _ in range(2):
                other.mul_(1.5)
                close(head.of_tokens(state, tokens, other), head.of_embeddings(state, other[tokens]), 1e-6)


def test_gradients_reach_both_towers() -> None:
    head, state, tokens, unembedding = two_towers()
    with torch.no_grad():
        head.of_tokens(state, tokens, unembedding)
    head.of_tokens(state, tokens, unembedding).sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
