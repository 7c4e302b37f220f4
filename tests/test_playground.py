"""The playground's session: its original is the base's own, nothing mixes, and bad input is a line of one field."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from conftest import add_tiny_adapter, refused, tiny_base, tiny_otter
from word_tokenizer import TEMPLATE, WORDS, tokenizer

from otterlm.decoding import (
    BestOfN,
    CandidateSearch,
    ContrastGuidance,
    RejectionSampling,
    RewardGuidance,
    SpeculativeDecoding,
)
from otterlm.decoding.loop import Loop
from otterlm.decoding.stream_loop import shown_tokens
from otterlm.errors import OtterError
from otterlm.interventions import InterventionSettings
from otterlm.model import OtterModel
from otterlm.playground.comparison import Comparison, Outcome, Prompt, Settings
from otterlm.playground.controls import controls
from otterlm.playground.problems import FieldError
from otterlm.playground.session import Session
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.signals.draft.config import DraftConfig
from otterlm.signals.guard.config import GuardConfig
from otterlm.signals.reward.config import RewardConfig
from otterlm.training.data.tokens import prompt_tokens

PROMPT = (("user", "a b c"),)
REWARD = Settings("reward", "reward", values={"weight": 5.0, "top_k": 6}, max_new_tokens=8)
CONTRAST = Settings("calm", "calm", values={"alpha": 3.0}, max_new_tokens=8)
SEARCH = Settings("reward", "reward", "search", {"weight": 5.0, "top_k": 6}, max_new_tokens=8)
SAMPLED_SEARCH = replace(SEARCH, values={**SEARCH.values, "temperature": 0.7}, seed=3)
BEST = Settings("reward", "reward", "best-of-n", {"top_k": 4}, max_new_tokens=8, seed=3)
REJECTION = Settings("reward", "reward", "rejection", {"threshold": 2.0}, max_new_tokens=8, seed=3)
DRAFTS = Settings("reward", "quick", "drafts", {"drafts": 2}, max_new_tokens=8)


@pytest.fixture(scope="module")
def model() -> OtterModel:
    """Makes a reward, a contrast and a draft on a base."""
    otter = tiny_otter(tiny_base(vocab_size=len(WORDS)), signal=RewardConfig(vocabulary_rank=4))
    add_tiny_adapter(otter, "calm", 2, signal=ContrastConfig(rank=4))
    add_tiny_adapter(otter, "quick", 3, signal=DraftConfig(heads=2, width=16, rank=4, vocabulary_size=10))
    return otter.eval()


@pytest.fixture(scope="module")
def session(model) -> Session:
    return Session(model, tokenizer(TEMPLATE))


def ids_of(outcome: Outcome) -> list[int]:
    return [token.token for token in outcome.tokens]


def last(session: Session, settings: Settings, prompt: Prompt = PROMPT) -> Comparison:
    return list(session.compare(prompt, settings))[-1]


def generated(model: Any, settings: Settings, **steering: Any) -> list[int]:
    ids = torch.tensor([prompt_tokens(PROMPT, tokenizer(TEMPLATE))])
    length = {"max_new_tokens": settings.max_new_tokens, "pad_token_id": 0}
    return model.generate(ids, **length, **({"do_sample": False} | steering))[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("settings", [REWARD, CONTRAST])
def test_the_original_is_the_bases_and_the_guided_what_generate_gives(session, model, settings) -> None:
    guidance = (
        RewardGuidance(model, 5.0, 6, "reward")
        if settings is REWARD
        else ContrastGuidance(model, 3.0, adapter_name="calm")
    )
    result = last(session, settings)
    assert ids_of(result.original) == generated(model.base_model, settings)
    assert ids_of(result.guided[0]) == generated(model, settings, logits_processor=[guidance])
    assert ids_of(result.guided[0]) != ids_of(result.original)
    assert result.exact
    assert result.guided[0].stopped is None
    assert result.guided[0].slowdown is not None


SAMPLING: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0}
LOOPS: list[tuple[Settings, Callable[[], Loop], dict[str, Any]]] = [
    (SEARCH, lambda: CandidateSearch(5.0, 6, adapter_name="reward"), {}),
    (SAMPLED_SEARCH, lambda: CandidateSearch(5.0, 6, "stochastic", 0.7, "reward"), SAMPLING),
    (BEST, lambda: BestOfN(4, adapter_name="reward"), SAMPLING),
    (REJECTION, lambda: RejectionSampling(2.0, adapter_name="reward"), SAMPLING),
    (DRAFTS, lambda: SpeculativeDecoding(2, adapter_name="quick"), {}),
]
NAMES = ["search", "a search that samples", "best-of-n", "rejection", "drafts"]


@pytest.mark.parametrize(("settings", "loop", "sampling"), LOOPS, ids=NAMES)
def test_a_loop_guides_as_generate_does(session, model, settings, loop, sampling) -> None:
    result = last(session, settings)
    torch.manual_seed(settings.seed)
    with model.use_adapters(list(dict.fromkeys((settings.shown, settings.steering)))):
        expected = generated(model, settings, custom_generate=loop(), **sampling)
    assert ids_of(result.guided[0]) == expected
    torch.manual_seed(settings.seed)
    temperature = {"temperature": settings.values["temperature"]} if settings is SAMPLED_SEARCH else {}
    assert ids_of(result.original) == generated(model.base_model, settings, **(sampling | temperature))
    assert (ids_of(result.guided[0]) == ids_of(result.original)) == (settings is DRAFTS)
    assert result.exact
    assert result.guided[0].slowdown is not None


def test_the_seed_decides_what_is_drawn(session) -> None:
    first, again, other = (last(session, replace(BEST, seed=seed)) for seed in (3, 3, 4))
    assert (ids_of(again.original), ids_of(again.guided[0])) == (ids_of(first.original), ids_of(first.guided[0]))
    assert ids_of(other.original) != ids_of(first.original)
    refused(lambda: last(session, replace(BEST, seed=2**32)), "seed must be a whole number from 0 to 4294967295")


@torch.no_grad()
@pytest.mark.parametrize("settings", [replace(SEARCH, shown="calm"), SEARCH, DRAFTS, BEST])
def test_a_loops_tokens_have_their_signals(session, model, settings) -> None:
    tokens = last(session, settings).guided[0].tokens
    prompt = prompt_tokens(PROMPT, tokenizer(TEMPLATE))
    signals = model(torch.tensor([prompt + [token.token for token in tokens]]), use_cache=False).signals
    assert len(tokens) > 2
    for index, token in enumerate(tokens, start=len(prompt)):
        assert token.text.strip() == WORDS[token.token] or token.token < 4
        assert set(token.signals) == {settings.shown, settings.steering} - {"quick"}
        if "reward" in token.signals:
            assert token.signals["reward"] == pytest.approx(float(signals["reward"].prefix[0, index]), abs=1e-4)
        if "calm" in token.signals:
            difference = signals["calm"].difference(index - 1)[0, token.token]
            assert token.signals["calm"] == pytest.approx(float(difference), abs=1e-4)


def test_a_search_streams_and_takes_turns(session) -> None:
    seen = [(len(step.original.tokens), len(step.guided[0].tokens)) for step in session.compare(PROMPT, SEARCH)]
    assert seen[:4] == [(1, 0), (1, 1), (1, 1), (2, 1)]
    slow = [step.guided[0].slowdown for step in session.compare(PROMPT, SEARCH)]
    assert set(slow[:-1]) == {None}  # several tokens may come at once: only the whole says what one takes
    assert slow[-1] is not None


def test_a_comparison_that_is_left_ends_its_loop(session) -> None:
    before = threading.active_count()
    running = session.compare(PROMPT, SEARCH)
    for _ in range(4):
        next(running)
    assert threading.active_count() == before + 1
    running.close()
    until = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_what_a_loop_raises_reaches_the_reader(model) -> None:
    def fail(streamer: Any) -> None:
        streamer.put(torch.tensor([[1, 2]]))
        streamer.put(torch.tensor([7]))
        raise OtterError("no more")

    shown = shown_tokens(fail)
    assert next(shown) == 7
    refused(lambda: next(shown), "no more")


@pytest.mark.parametrize(
    "settings",
    [
        Settings("reward", "calm", values={"alpha": 0.0}, max_new_tokens=8),
        replace(SEARCH, values={"weight": 0.0}),
        replace(SAMPLED_SEARCH, values={"weight": 0.0, "temperature": 0.7}),
        replace(BEST, values={"weight": 0.0}),
        replace(REJECTION, values={}),
    ],
)
def test_weight_zero_gives_the_original(session, settings) -> None:
    result = last(session, settings)
    assert ids_of(result.guided[0]) == ids_of(result.original)


@torch.no_grad()
def test_tokens_come_one_by_one_with_their_signals(session, model) -> None:
    seen = list(session.compare(PROMPT, Settings("reward", "calm", values={"alpha": 3.0}, max_new_tokens=6)))
    lengths = [len(step.original.tokens) + len(step.guided[0].tokens) for step in seen]
    assert lengths[:3] == [1, 2, 2]  # the original's, the guided's, and the base's that times them
    tokens = seen[-1].guided[0].tokens
    prompt = prompt_tokens(PROMPT, tokenizer(TEMPLATE))
    signals = model(torch.tensor([prompt + [token.token for token in tokens]]), use_cache=False).signals
    for index, token in enumerate(tokens, start=len(prompt)):
        assert set(token.signals) == {"reward", "calm"}
        assert token.signals["reward"] == pytest.approx(float(signals["reward"].prefix[0, index]), abs=1e-4)
        difference = signals["calm"].difference(index - 1)[0, token.token]
        assert token.signals["calm"] == pytest.approx(float(difference), abs=1e-4)


@pytest.mark.parametrize("settings", [(REWARD, CONTRAST), (SEARCH, BEST), (REJECTION, SAMPLED_SEARCH)])
def test_comparisons_do_not_mix(session, settings) -> None:
    """Two people at once, whose steps are made by whatever thread is free."""
    prompts: tuple[Prompt, ...] = (PROMPT, "d e")
    expected = [last(session, *pair) for pair in zip(settings, prompts, strict=True)]
    running = [session.compare(prompt, chosen) for prompt, chosen in zip(prompts, settings, strict=True)]
    results: list[Any] = [None, None]

    def step(index: int) -> None:
        results[index] = next(running[index], results[index])

    for _ in range(3 * 8 + 1):
        threads = [threading.Thread(target=step, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [(ids_of(r.original), ids_of(r.guided[0])) for r in results] == [
        (ids_of(r.original), ids_of(r.guided[0])) for r in expected
    ]


def test_the_threshold_stops_the_guided_response_alone(session) -> None:
    for settings in (REWARD, SEARCH, DRAFTS):
        result = last(session, replace(settings, values={"threshold": math.inf, "patience": 2}))
        assert result.guided[0].stopped == "threshold"
        assert len(result.guided[0].tokens) == 3  # its end comes one token late
        assert len(result.original.tokens) == 8
    assert last(session, replace(SEARCH, values={"threshold": -math.inf})).guided[0].stopped is None


@pytest.fixture(scope="module")
def guarded() -> Session:
    """A guard on a base."""
    otter = tiny_otter(tiny_base(vocab_size=len(WORDS)), signal=GuardConfig(("rude",), vocabulary_rank=4))
    return Session(otter, tokenizer(TEMPLATE))


def test_a_guard_stops(guarded) -> None:
    settings = Settings("reward", "reward", values={"weight": 2.0, "alarm": 1.0}, max_new_tokens=8)
    result = last(guarded, settings)
    assert result.guided[0].stopped is None
    for token in result.original.tokens:
        assert token.labels["reward"]["rude"] == pytest.approx(1 - token.signals["reward"])
        # What is said of next tokens is in the same unit: a probability.
        assert all(each.signal is not None and 0 <= each.signal <= 1 for each in token.alternatives)
    ended = last(guarded, replace(settings, values={"alarm": 0.0}))
    assert ended.guided[0].stopped == "rude"
    assert len(ended.guided[0].tokens) < len(result.guided[0].tokens)
    watched = last(guarded, Settings("reward", None, values={"alarm": 0.0}, max_new_tokens=8))
    assert watched.guided[0].stopped == "rude"


def test_a_guard_takes_back(guarded) -> None:
    settings = Settings("reward", "reward", "rollback", {"alarm": 0.6, "back": 1}, max_new_tokens=8)
    result = last(guarded, settings)
    (guided,) = result.guided
    assert all(token.labels["reward"]["rude"] < 0.6 for token in guided.tokens)
    assert any(token.labels["reward"]["rude"] >= 0.6 for token in result.original.tokens)
    assert guided.passages
    assert all(passage.text.strip() and passage.label == "rude" for passage in guided.passages)
    # Up to the first passage the tokens are the base's own, and the passage is what the base went on with.
    first = guided.passages[0]
    original = [token.text for token in result.original.tokens]
    assert "".join(original[first.index :]).strip().startswith(first.text.strip())


@pytest.mark.parametrize(
    ("prompt", "wrong", "named"),
    [
        (" \n", {}, "empty"),
        ("a " * 130, {}, "context"),
        ((), {}, "empty"),
        (PROMPT, {"values": {"weight": math.nan}}, "weight"),
        (PROMPT, {"strengths": (1.0, math.nan)}, "weight"),
        (PROMPT, {"strengths": (1, 2, 3, 4, 5)}, "at most 4"),
        (PROMPT, {"values": {"weight": None}}, "weight"),
        (PROMPT, {"values": {"top_k": 0}}, "top_k"),
        (PROMPT, {"values": {"threshold": math.nan}}, "threshold"),
        (PROMPT, {"values": {"alpha": 2.0}}, "alpha goes with contrast, but here only guidance and stop are used"),
        (PROMPT, {"values": {"patience": 2}, "method": "rejection"}, "patience goes with stop"),
        (PROMPT, {"values": {"magic": 1}}, "magic goes with nothing"),
        (PROMPT, {"steering": None, "values": {"weight": 1.0}}, "here only stop is used"),
        (PROMPT, {"max_new_tokens": None}, "the length"),
        (PROMPT, {"method": "drafts"}, "'reward' cannot guide by drafts; there is: guidance, search"),
        (PROMPT, {"steering": "nobody"}, "nobody"),
        (PROMPT, {"shown": "nobody"}, "nobody"),
    ],
)
def test_bad_input_is_a_line(session, prompt, wrong, named) -> None:
    settings = Settings(**({"shown": "reward", "steering": "reward", "max_new_tokens": 8} | wrong))
    refused(lambda: list(session.compare(prompt, settings)), named)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"seed": -1}, "seed"),
        ({"max_new_tokens": 0}, "length"),
        ({"values": {"top_k": 0}}, "top_k"),
        ({"values": {"alpha": 2.0}}, "alpha"),
        ({"strengths": (math.inf,)}, "strengths"),
        ({"method": "drafts"}, "guide"),
        ({"shown": "quick"}, "shown"),
    ],
)
def test_the_field_of_a_bad_input_is_named(session, wrong, field) -> None:
    settings = Settings(**({"shown": "reward", "steering": "reward", "max_new_tokens": 8} | wrong))
    with pytest.raises(FieldError) as error:
        list(session.compare(PROMPT, settings))
    assert error.value.field == field


def test_several_strengths_stand_side_by_side(session) -> None:
    result = last(session, replace(REWARD, values={"top_k": 6}, strengths=(0.0, 5.0, 5.0)))
    assert len(result.guided) == 2
    assert ids_of(result.guided[0]) == ids_of(result.original)
    assert ids_of(result.guided[1]) == ids_of(last(session, REWARD).guided[0])


def test_a_dialogue_and_a_text(session, model) -> None:
    turns = (("system", "a"), ("user", "b"), ("assistant", "c"), ("user", "d"))
    for prompt, ids in (
        (turns, prompt_tokens(turns, tokenizer(TEMPLATE))),
        ("a b c", tokenizer(TEMPLATE).encode("a b c")),
    ):
        result = last(session, Settings("reward", None, max_new_tokens=4), prompt)
        length = {"max_new_tokens": 4, "pad_token_id": 0, "do_sample": False}
        expected = model.base_model.generate(torch.tensor([ids]), **length)[0, len(ids) :].tolist()
        assert ids_of(result.original) == expected


@torch.no_grad()
@pytest.mark.parametrize("settings", [REWARD, CONTRAST, SEARCH])
def test_alternatives(session, model, settings) -> None:
    """They have the base's probabilities, what guidance made of them, and the signal of each."""
    result = last(session, settings)
    tokens = result.guided[0].tokens
    prompt = prompt_tokens(PROMPT, tokenizer(TEMPLATE))
    output = model(torch.tensor([prompt + [token.token for token in tokens]]), use_cache=False)
    for index, token in enumerate(tokens, start=len(prompt) - 1):
        base = output.logits[0, index].float().softmax(dim=-1)
        assert token.token in [each.token for each in token.alternatives]
        assert [each.probability for each in token.alternatives] == sorted(
            (each.probability for each in token.alternatives), reverse=True
        )
        assert token.alternatives[0].token == int(base.argmax())
        for each in token.alternatives:
            assert each.probability == pytest.approx(float(base[each.token]), abs=1e-5)
            assert each.text == tokenizer(TEMPLATE).decode([each.token])
        signal = output.signals[settings.steering]
        ids = torch.tensor([[each.token for each in token.alternatives]])
        values = signal.difference(index)[:, ids[0]] if settings is CONTRAST else signal.vocabulary(ids, index)
        assert [each.signal for each in token.alternatives] == pytest.approx(values[0].tolist(), abs=1e-4)
        if settings is SEARCH:
            assert all(each.guided is None for each in token.alternatives)
        else:
            shares = {each.token: each.guided for each in token.alternatives}
            assert max(shares, key=lambda token: shares[token] or 0.0) == token.token
    assert all(each.guided is None for token in result.original.tokens for each in token.alternatives)


def test_every_method_is_known(session) -> None:
    assert list(session.signals) == ["reward", "calm", "quick"]
    assert {name: [use.name for use in uses] for name, uses in session.methods.items()} == {
        "reward": ["guidance", "search", "best-of-n", "rejection"],
        "calm": ["contrast"],
        "quick": ["drafts"],
    }
    assert session.coloured == ["reward", "calm"]
    alone = tiny_otter(tiny_base(), signal=DraftConfig(heads=2, width=16, rank=4, vocabulary_size=10))
    refused(lambda: Session(alone, tokenizer()), "nothing to colour with")


@pytest.mark.parametrize(
    ("shown", "steering", "method", "names"),
    [
        ("reward", "reward", "guidance", "weight top_k min_p threshold patience"),
        ("calm", "reward", "guidance", "weight top_k min_p"),
        ("reward", "reward", "search", "weight top_k min_p temperature threshold patience"),
        ("reward", "reward", "rejection", "threshold"),
        ("reward", "calm", "contrast", "alpha top_p threshold patience"),
        ("calm", "quick", "drafts", "drafts confidence"),
        ("reward", None, None, "threshold patience"),
    ],
)
def test_the_settings_are_those_of_the_method(session, shown, steering, method, names) -> None:
    assert session.takes(shown, steering, method) == names.split()


def test_the_settings_of_a_guard(guarded) -> None:
    for method, names in (
        ("rollback", "weight back alarm hits window"),
        ("guidance", "weight top_k min_p alarm hits window"),
        ("rejection", "threshold"),
    ):
        assert guarded.takes("reward", "reward", method) == names.split()


def test_fields_are_made_from_the_registry() -> None:
    defaults = InterventionSettings()
    made = {each.name: each for each in controls()}
    assert list(made) == [field.name for field in fields(InterventionSettings)]
    assert (made["weight"].default, made["weight"].low) == (defaults.weight, -10.0)
    assert made["top_k"].label == "Top k"
    assert made["threshold"].default is made["temperature"].default is made["alarm"].default is None


def test_an_adapter_is_loaded_later(model, tmp_path) -> None:
    otter = tiny_otter(tiny_base(vocab_size=len(WORDS)), signal=RewardConfig(vocabulary_rank=4)).eval()
    model.save_pretrained(tmp_path, "calm")
    session = Session(otter, tokenizer(TEMPLATE))
    running = session.compare(PROMPT, REWARD)
    next(running)
    session.load("calm", tmp_path)
    assert session.coloured == ["reward", "calm"]
    *_, result = running
    assert set(result.original.tokens[-1].signals) == {"reward"}
    assert last(session, CONTRAST).exact
    refused(lambda: session.load("calm", tmp_path), "calm")


def test_bytes(session, model) -> None:
    base, inserted = session.bytes_of(["reward"])
    assert base == 4 * sum(p.numel() for p in model.base_model.parameters())
    assert inserted == 4 * (sum(p.numel() for p in model.adapter("reward").parameters()) + 4 * len(WORDS))
