"""The drafts of a step are those that pay: never more than passes are worth, and none where none is."""

import json
from typing import Any

import pytest
import torch
from conftest import add_tiny_adapter, close, randomize, tiny_base, tiny_config, tokens
from families import family_base
from transformers import DynamicCache

from otterlm.decoding import DraftTree, SpeculativeDecoding, pass_costs, speculative
from otterlm.decoding.deferred_stream import DeferredStream
from otterlm.decoding.draft_policy import LONGEST, TRIAL, DraftsThatPay
from otterlm.decoding.experience import SHORTEST, Experience
from otterlm.decoding.pass_costs import MOST, PassCosts
from otterlm.model import OtterModel
from otterlm.signals.draft.config import DraftConfig

DRAFT = DraftConfig(heads=3, width=24, rank=8, vocabulary_size=60)
FREE = PassCosts(1.0, (1.0,) * MOST, 0.0)
"""Passes of several tokens cost no more than one."""
DEAR = PassCosts(1.0, tuple(float(n) for n in range(1, MOST + 1)), 0.2)
"""Each token of a pass costs as much as a pass."""
SETTINGS = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def drafting(base: Any = None, **config: Any) -> OtterModel:
    torch.manual_seed(0)
    otter = OtterModel(base or tiny_base(), tiny_config(signal=DRAFT, **config))
    randomize(otter.adapter().head, 3)
    return otter.eval()


class Sure:
    """Guesses token 7 first, with the same chance at every level."""

    heads = 3
    vocabulary = torch.arange(60)

    def __init__(self, chance: float) -> None:
        self.state = torch.zeros(1, 1, 4)
        self.levels = 0
        others = (1 - chance) / 59
        self._scores = torch.full((60,), others).log()
        self._scores[7] = torch.tensor(chance).log()

    def code(self, head, state, token, previous):
        return state

    def scores(self, head, code):
        self.levels = max(self.levels, head + 1)
        return self._scores.expand(*code.shape[:-1], -1)


def step(policy: DraftsThatPay, chance: float) -> tuple[DraftTree, int]:
    """Returns the tree of a step, and how many levels were computed."""
    drafter = Sure(chance)
    drafts, tree = policy.propose(drafter, torch.zeros(1, 4), torch.tensor([3]), torch.tensor([True]))
    assert all(token == 7 for token, rank in zip(drafts[0, 1:].tolist(), tree.ranks[1:], strict=True) if rank == 0)
    return tree, drafter.levels


def pays(prices: PassCosts, accuracy: Any = ()) -> DraftsThatPay:
    return DraftsThatPay(accuracy, 3, 60, prices, Experience())


def taken(prices: PassCosts, step: tuple[DraftTree, int], slower: float = 1.0) -> float:
    """Returns the seconds that a step takes as it was measured, or slower."""
    tree, levels = step
    return slower * (prices.passes[len(tree) - 1] + levels * prices.head)


def latest_drafts(policy: DraftsThatPay, prices: PassCosts, steps: int, slower: float) -> int:
    """Returns how many of the latest steps that were not rests had drafts, where all passes take longer alike."""
    drafted = 0
    for _ in range(steps):
        if policy.rests:
            policy.learn([0], slower * prices.plain)
            continue
        made = step(policy, 0.6)
        drafted = drafted + 1 if len(made[0]) > 1 else 0
        policy.learn([1], taken(prices, made, slower))
    return drafted


def costs(*passes: float, head: float = 0.01) -> PassCosts:
    return PassCosts(1.0, (*passes, *(passes[-1] + 1.0 * n for n in range(1, MOST + 1 - len(passes)))), head)


@pytest.mark.parametrize(
    ("prices", "chance", "drafts"),
    [
        (costs(1.0, 1.1, 1.2, 1.3), 0.9, 3),
        (costs(1.0, 1.5, 1.6, 1.7), 0.9, 3),  # the first draft alone would pay least
        (costs(1.0, 1.5, 1.6, 1.7), 0.3, 0),
        (costs(1.0, 1.1, 2.5, 2.6), 0.5, 1),
        (costs(1.0, 2.0, 3.0, 4.0), 0.9, 0),
    ],
)
def test_as_many_drafts_are_verified_as_pay(prices, chance, drafts) -> None:
    tree, _ = step(pays(prices), chance)
    assert tree == DraftTree.chain(drafts)
    # No other number has more expected tokens a second.
    levels = 3 if drafts else 1
    rates = [sum(chance**n for n in range(size + 1)) / prices.passes[size] for size in range(levels + 1)]
    assert drafts == max(range(len(rates)), key=rates.__getitem__)


def test_a_hopeless_head_ends_the_growth() -> None:
    policy = pays(costs(1.0, 1.3, 1.6, 1.9), ((0.3,), (0.3,), (0.3,)))
    tree, levels = step(policy, 0.1)
    assert len(tree) == 1
    assert levels == 1


def test_the_likeliest_nodes_are_chosen_and_never_more_than_were_measured() -> None:
    policy = pays(FREE, ((0.3, 0.2, 0.1),) * 3)
    assert len(step(policy, 0.2)[0]) == MOST
    assert len(step(policy, 0.9)[0].depths) == MOST


def test_heads_that_promise_too_much_are_believed_less() -> None:
    prices = costs(1.0, 1.5, 1.6, 1.7)
    policy = pays(prices)
    first = step(policy, 0.6)
    assert len(first[0]) > 1
    for _ in range(5):
        policy.learn([0], taken(prices, first))
    assert policy.scale < 0.5
    assert len(step(policy, 0.6)[0]) == 1


def test_where_drafts_do_not_pay_the_base_runs_alone_for_longer_and_longer() -> None:
    policy = pays(DEAR)
    rests = []
    for _ in range(3):
        for _ in range(TRIAL):
            assert not policy.rests
            policy.learn([0], taken(DEAR, step(policy, 0.9)))
        length = 0
        while policy.rests:
            length += 1
            policy.learn([0], DEAR.plain)
        rests.append(length)
    assert rests == [SHORTEST, 2 * SHORTEST, 4 * SHORTEST]
    assert policy._experience.rest == LONGEST  # of the next call, too
    paying = pays(FREE)
    for _ in range(5 * TRIAL):
        paying.learn([3], taken(FREE, step(paying, 0.9)))
        assert not paying.rests


def test_passes_that_take_longer_than_they_were_measured_to_end_the_drafts() -> None:
    prices = costs(1.0, 1.2, 1.3, 1.4)
    policy = pays(prices)
    drafts = []
    for _ in range(60):
        if policy.rests:
            policy.learn([0], prices.plain)
            drafts.append(0)
            continue
        made = step(policy, 0.6)
        drafts.append(len(made[0]) - 1)
        policy.learn([1], taken(prices, made, slower=4.0 if drafts[-1] else 1.0))
    assert drafts[0] == 3
    assert sum(map(bool, drafts[10:])) < 10  # they are tried again now and then
    # Where all passes take longer alike, drafts pay as before.
    assert latest_drafts(pays(prices), prices, 200, slower=4.0) > 20


def test_drafts_are_tried_again_when_the_machine_is_free() -> None:
    """Passes of one token became twice as fast while no others were made; the others did, too."""
    prices = costs(1.0, 1.2, 1.3, 1.4)
    known = Experience(one=1.0, several=3.0)
    assert latest_drafts(DraftsThatPay((), 3, 60, prices, known), prices, 300, slower=0.5) > 20
    assert abs(known.several - known.one) < 0.1


def test_the_price_of_a_plain_pass_is_looked_at_again() -> None:
    policy, rests = pays(FREE), 0
    for _ in range(3 * LONGEST):
        rests += policy.rests
        policy.learn([3], FREE.plain if policy.rests else taken(FREE, step(policy, 0.9)))
    assert rests == 2


@pytest.mark.parametrize("prices", [FREE, DEAR], ids=["free", "dear"])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_output_is_the_bases_and_costly_drafts_end_in_plain_passes(prices, rows, monkeypatch) -> None:
    otter, ids = drafting(), tokens(3, 5, seed=9)[:rows]
    monkeypatch.setattr(speculative, "pass_costs", lambda *_: prices)
    sizes: list[int] = []
    moved: list[int] = []
    otter.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    stream = otter.adapter().stream
    stream.final_norm.register_forward_pre_hook(lambda _, inputs: moved.append(inputs[0].shape[1]))
    output = otter.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=40,
        custom_generate=SpeculativeDecoding(),
        return_dict_in_generate=True,
        **SETTINGS,
    )
    plain = otter.base_model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, **SETTINGS)
    assert torch.equal(output.sequences, plain)
    if prices is FREE:
        assert max(sizes[1:]) > 2
        return
    # Steps take other times than these costs say, but those of this tiny base are never worth five passes each.
    # Four steps of a trial, eight of the base, four, sixteen: the stream is behind, and reads eight tokens at once.
    assert SHORTEST in moved
    assert len(moved) < len(sizes[: len(sizes) // 2])


def test_a_reward_beside_the_drafts_is_read_in_every_pass(monkeypatch) -> None:
    from otterlm.decoding import RewardGuidance

    otter, ids = drafting(), tokens(1, 5, seed=9)
    add_tiny_adapter(otter, "reward", seed=4, layers=(1, 3))
    otter.eval()
    monkeypatch.setattr(speculative, "pass_costs", lambda *_: DEAR)
    settings: dict[str, Any] = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 30, **SETTINGS}
    settings["logits_processor"] = [RewardGuidance(otter, 3.0, top_k=6)]
    guided = otter.generate(ids, **settings)
    assert torch.equal(otter.generate(ids, custom_generate=SpeculativeDecoding(), **settings), guided)


FAMILIES = ("llama", "gpt2", "gpt-neox", "falcon grouped", "olmo2", "cohere", "granite-moe")


@pytest.mark.parametrize("taps", ["inside", "edge"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_stream_that_waits_ends_in_the_same_state(family, taps) -> None:
    shape = {"taps": "edge", "head_dim": 8} if taps == "edge" else {}
    otter = drafting(family_base(family), **shape)
    ids, more = tokens(2, 6), tokens(2, 4, seed=5)
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[1, :2] = 0  # padding
    positions = (mask.cumsum(dim=-1) - 1).clamp_min(0)
    caches = [DynamicCache(), DynamicCache()]
    waiting = DeferredStream(otter, "draft")
    for cache in caches:
        otter(ids, attention_mask=mask[:, :6], position_ids=positions[:, :6], past_key_values=cache)
    for n in range(4):
        this = {"input_ids": more[:, n : n + 1], "attention_mask": mask[:, : 7 + n]}
        this["position_ids"] = positions[:, 6 + n : 7 + n]
        output = otter(**this, past_key_values=caches[0])
        assert torch.equal(waiting.run(**this, past_key_values=caches[1]).logits, output.logits)
    assert len(waiting) == 4
    state = waiting.catch_up(mask)
    assert len(waiting) == 0
    close(state, output.signals["draft"].state[:, -1], 1e-4)
    for one, other in zip(caches[0].layers, caches[1].layers, strict=True):
        assert one.is_initialized == other.is_initialized
        if one.is_initialized:
            close(one.keys[0], other.keys[0], 1e-4)
    following = {"input_ids": more[:, :1], "attention_mask": torch.cat((mask, mask[:, :1] * 0 + 1), dim=-1)}
    after = [otter(**following, past_key_values=cache).signals["draft"].state for cache in caches]
    close(after[0], after[1], 1e-4)


def test_costs_are_measured_once_and_a_damaged_file_is_replaced(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pass_costs, "cache_folder", lambda: tmp_path)
    otter = drafting()
    first = pass_costs.pass_costs(otter, "draft", 1)
    assert len(first.passes) == MOST
    assert min(first.plain, first.head, *first.passes) > 0
    (path,) = (tmp_path / "pass-costs").glob("*.json")
    assert json.loads(path.read_text())["costs"]["plain"] == first.plain
    measured: list[int] = []
    measure = pass_costs.measure

    def counted(*args: Any) -> PassCosts:
        measured.append(1)
        return measure(*args)

    monkeypatch.setattr(pass_costs, "measure", counted)
    assert pass_costs.pass_costs(otter, "draft", 1) == first
    assert pass_costs.pass_costs(drafting(), "draft", 1) == first  # of the file
    assert not measured
    pass_costs.pass_costs(drafting(tiny_base(seed=4)), "draft", 1)  # another base
    pass_costs.pass_costs(drafting(), "draft", 2)  # a batch
    assert len(measured) == 2
    path.write_text("{")
    again = pass_costs.pass_costs(drafting(), "draft", 1)
    assert len(measured) == 3
    assert json.loads(path.read_text())["costs"]["plain"] == again.plain


def test_a_cache_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch) -> None:
    (tmp_path / "pass-costs").write_text("a file")
    monkeypatch.setattr(pass_costs, "cache_folder", lambda: tmp_path)
    assert pass_costs.pass_costs(drafting(), "draft", 1).plain > 0
