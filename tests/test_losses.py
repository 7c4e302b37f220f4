"""Guards the reward losses against numbers worked out by hand."""

import math

import pytest
import torch
from conftest import close

from otterlm.signals.reward.losses import bradley_terry, branch_rewards, final_rewards, preference_accuracy, regression
from otterlm.training.data.packing import CHOSEN, REJECTED, Example, collate
from otterlm.training.probe import fit_probe

BATCH = collate([Example(0, (4,), ((5, 6), (7, 8, 9))), Example(1, (4, 4), ((5,), (6,)))])
REWARDS = torch.tensor([[9.0, 1.0, 2.0, 0.5, 3.0, 1.0], [9.0, 9.0, -1.0, 1.0, 7.0, 7.0]])


def cost(margin):
    return math.log1p(math.exp(-margin))


def test_branches_are_left_aligned_and_go_on_with_their_last_reward() -> None:
    chosen, lengths = branch_rewards(REWARDS, BATCH.segments, CHOSEN)
    assert chosen.tolist() == [[1.0, 2.0], [-1.0, -1.0]]
    assert lengths.tolist() == [2, 1]
    rejected, lengths = branch_rewards(REWARDS, BATCH.segments, REJECTED)
    assert rejected.tolist() == [[0.5, 3.0, 1.0], [1.0, 1.0, 1.0]]
    assert lengths.tolist() == [3, 1]


def test_final_rewards() -> None:
    assert final_rewards(REWARDS, BATCH.segments, CHOSEN).tolist() == [2.0, -1.0]
    assert final_rewards(REWARDS, BATCH.segments, REJECTED).tolist() == [1.0, 1.0]


def test_bradley_terry_on_whole_responses() -> None:
    close(bradley_terry(REWARDS, BATCH, prefixes=False), torch.tensor((cost(1) + cost(-2)) / 2))


def test_bradley_terry_on_prefixes() -> None:
    first = (cost(0.5) + cost(-1) + cost(1)) / 3
    expected = ((first + cost(1)) / 2 + (cost(-2) + cost(-2)) / 2) / 2
    close(bradley_terry(REWARDS, BATCH, prefixes=True), torch.tensor(expected))


def test_accuracy_counts_a_tie_half() -> None:
    assert preference_accuracy(REWARDS, BATCH) == 0.5
    assert preference_accuracy(torch.zeros(2, 6), BATCH) == 0.5
    assert preference_accuracy(torch.tensor([[0.0, 0, 1, 0, 0, 0], [0, 0, 5, 5, 0, 0]]), BATCH) == 0.75


@pytest.mark.parametrize(("prefixes", "expected"), [(False, (4 + 1) / 2), (True, ((1 + 9 + 4) / 3 + 1) / 2)])
def test_regression(prefixes, expected) -> None:
    batch = collate([Example(0, (4,), ((5, 6, 7),), scores=(2.0,)), Example(1, (), ((5,),), scores=(-1.0,))])
    rewards = torch.tensor([[9.0, 1.0, 5.0, 4.0], [0.0, 8.0, 8.0, 8.0]])
    close(regression(rewards, batch, prefixes), torch.tensor(expected))


@pytest.mark.parametrize("prefixes", [False, True])
@pytest.mark.parametrize("trace", [1.0, 0.5])
def test_responses_packed_behind_one_prompt_are_texts_of_their_own(prefixes, trace) -> None:
    packed = [Example(0, (4,), ((5, 6), (7, 8, 9)), scores=(2.0, -1.0)), Example(1, (4, 4), ((5,),), scores=(1.0,))]
    apart = [
        Example(n, example.prefix, (branch,), scores=(score,))
        for n, (example, branch, score) in enumerate(
            (example, *text) for example in packed for text in zip(example.branches, example.scores, strict=True)
        )
    ]
    rewards = torch.tensor([[0.0, 1, 2, 3, 4, 5], [0.0, 6, 7, 8, 8, 8]])
    alone = torch.tensor([[0.0, 1, 2, 9], [0.0, 3, 4, 5], [0.0, 6, 7, 9]])
    assert not collate(packed).pairs
    close(regression(rewards, collate(packed), prefixes, trace), regression(alone, collate(apart), prefixes, trace))


@pytest.mark.parametrize("prefixes", [False, True])
def test_padding_and_prompt_get_no_gradient(prefixes) -> None:
    rewards = REWARDS.clone().requires_grad_()
    bradley_terry(rewards, BATCH, prefixes).backward()
    judged = BATCH.segments > 0 if prefixes else torch.tensor([[0, 0, 1, 0, 0, 1], [0, 0, 1, 1, 0, 0]]).bool()
    assert rewards.grad is not None
    assert torch.equal(rewards.grad.ne(0), judged)


def test_extreme_rewards_stay_finite() -> None:
    assert bradley_terry(REWARDS * 1e4, BATCH, prefixes=True).isfinite()


def test_probe_finds_a_planted_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(6, generator=generator)
    states = torch.randn(2, 400, 6, generator=generator) * torch.tensor([1.0, 5, 1, 0.2, 1, 1])
    better = (states @ direction).argmax(dim=0)
    rows = torch.arange(400)
    weight = fit_probe(states[better, rows], states[1 - better, rows])
    assert torch.cosine_similarity(weight, direction, dim=0) > 0.97
    assert torch.equal(weight, fit_probe(states[better, rows], states[1 - better, rows]))


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_probe_on_few_pairs_is_finite(pairs) -> None:
    generator = torch.Generator().manual_seed(0)
    assert fit_probe(*torch.randn(2, pairs, 6, generator=generator)).isfinite().all()
