"""The tensor functions that `generate` and engines share are tested here."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from otterlm.decoding.steering import contrast, count_under, guide, nucleus, plausible

shapes = st.tuples(st.integers(1, 4), st.integers(1, 50), st.integers(0, 10**6))


def numbers(rows: int, vocabulary: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores, rewards = (3 * torch.randn(rows, vocabulary, generator=generator) for _ in range(2))
    return scores, rewards, torch.randn(rows, 1, generator=generator)


def of(rewards: Tensor, tokens: Tensor | None) -> Tensor:
    return rewards if tokens is None else rewards.gather(-1, tokens)


@given(shapes, st.integers(1, 60))
def test_guidance(shape: tuple[int, int, int], top_k: int) -> None:
    scores, rewards, weight = numbers(*shape)
    whole = guide(scores, lambda tokens: of(rewards, tokens), weight)
    assert torch.equal(whole, scores + weight * rewards)
    guided = guide(scores, lambda tokens: of(rewards, tokens), weight, top_k)
    best = scores.topk(min(top_k, shape[1]), dim=-1).indices
    inside = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
    assert torch.equal(guided, whole.masked_fill(~inside, -torch.inf))
    # One weight for all rows, and one for each, are the same sum.
    assert torch.equal(guide(scores, lambda tokens: of(rewards, tokens), 2.0)[0], (scores + 2.0 * rewards)[0])


@given(st.tuples(st.integers(1, 4), st.integers(1, 200), st.integers(0, 10**6)), st.floats(0.001, 1.0))
def test_guidance_stays_inside_the_plausible_tokens(shape: tuple[int, int, int], min_p: float) -> None:
    scores, rewards, weight = numbers(*shape)
    guided = guide(scores, lambda tokens: of(rewards, tokens), weight, min_p=min_p)
    chances = scores.double().softmax(dim=-1)
    share = chances / chances.amax(dim=-1, keepdim=True)
    assert torch.isfinite(guided).equal(plausible(scores, min_p))
    assert bool((share[torch.isfinite(guided)] >= min_p * (1 - 1e-5)).all())
    assert bool((share[torch.isinf(guided)] <= min_p * (1 + 1e-5)).all())
    inside = torch.isfinite(guided)
    assert torch.equal(guided[inside], (scores + weight * rewards)[inside])


def test_rewards_are_computed_for_the_plausible_tokens_alone_where_these_are_few() -> None:
    sharp = torch.zeros(2, 300)
    sharp[0, [7, 290, 3]], sharp[1, 11] = torch.tensor([20.0, 19.5, 19.0]), 20.0
    _, rewards, weight = numbers(2, 300, 0)
    asked: list[Tensor | None] = []

    def ask(tokens: Tensor | None) -> Tensor:
        asked.append(tokens)
        return of(rewards, tokens)

    for scores in (sharp, torch.zeros(2, 300), sharp.masked_fill(torch.tensor([[False], [True]]), torch.nan)):
        guided = guide(scores, ask, weight, min_p=0.15)
        expected = (scores + weight * rewards).masked_fill(~plausible(scores, 0.15), -torch.inf)
        assert torch.equal(guided, expected)
    few, flat, broken = asked
    assert few is not None
    assert few.tolist() == [[3, 7, 290], [11, 11, 11]]
    assert flat is None  # many are plausible
    assert broken is None  # none is


def test_guidance_leaves_what_a_grammar_ruled_out() -> None:
    scores = torch.tensor([[-torch.inf, 1.0, -torch.inf, 0.5]])
    rewards = torch.tensor([[100.0, 0.0, 100.0, 3.0]])
    for top_k, min_p in ((None, 0.0), (1, 0.0), (3, 0.0), (None, 0.1)):
        guided = guide(scores, lambda tokens: of(rewards, tokens), 1.0, top_k, min_p)
        assert torch.isinf(guided[0, [0, 2]]).all()
        assert not guided.isnan().any()


@given(shapes, st.floats(0.05, 1.0))
def test_a_nucleus_is_the_fewest_tokens_with_the_mass(shape: tuple[int, int, int], top_p: float) -> None:
    scores, difference, alpha = numbers(*shape)
    inside = nucleus(scores, top_p)
    probability = scores.double().softmax(dim=-1)
    if top_p < 1:
        assert bool(((probability * inside).sum(dim=-1) >= top_p - 1e-5).all())
        least = probability.masked_fill(~inside, 2).amin(dim=-1)
        assert bool(((probability * inside).sum(dim=-1) - least < top_p + 1e-5).all())
    moved = contrast(scores, difference, alpha, top_p)
    assert torch.equal(moved, (scores + alpha * difference).masked_fill(~inside, -torch.inf))


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=20), st.floats(-1, 1))
def test_low_rewards_in_a_row_are_counted(rewards: list[float], threshold: float) -> None:
    single, batch = 0, torch.zeros(2, dtype=torch.long)
    for reward in rewards:
        single = count_under(single, reward, threshold)
        batch = count_under(batch, torch.tensor([reward, threshold], dtype=torch.float64), threshold)
    low = [reward < threshold for reward in reversed(rewards)]
    assert single == next((index for index, each in enumerate(low) if not each), len(low))
    assert batch.tolist() == [single, 0]
