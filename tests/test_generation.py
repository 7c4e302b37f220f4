"""A call of `generate` with interventions shows, remembers and reads the right signals."""

from queue import Empty
from threading import Thread
from typing import Any

import pytest
import torch
from conftest import Listener, refused, since, tiny_base, tiny_otter, tokens
from generation_table import (
    CROPS_CACHE,
    GREEDY,
    GUARDING,
    NEW,
    THRESHOLD,
    Setting,
    guarding,
    otter,
    prompt,
    same,
    texts,
    tokenizer,
)
from interventions import INTERVENTIONS, call_of, contrasted
from references import Steered, Stopped
from references import search as search_written_out
from torch import Tensor
from transformers import Cache, DynamicCache, QuantizedCache, StaticCache, TextIteratorStreamer

from otterlm.decoding import (
    BestOfN,
    CandidateSearch,
    ContrastGuidance,
    RejectionSampling,
    ReplaceStopped,
    RewardGuidance,
    RewardStop,
    SpeculativeDecoding,
)


@pytest.mark.parametrize("name", [name for name in INTERVENTIONS if name != "stream"])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_streamer_is_shown_what_is_returned(name: str, rows: int) -> None:
    heard = Listener()
    run, _ = INTERVENTIONS[name]
    call = call_of(name, Setting(same(streamer=heard), rows=rows))
    if rows == 2 and name in CROPS_CACHE - {"search"}:
        refused(lambda: run(call), "streamer")
        return
    results = run(call)
    assert heard.tokens == [*call.settings["input_ids"].flatten().tolist(), *results[:, 7:].T.flatten().tolist(), -1]


@pytest.mark.parametrize("loop", [BestOfN(2), ReplaceStopped(torch.inf, [50, 51]), BestOfN(2, weight=0.0)])
def test_a_stream_of_text_ends(loop: Any) -> None:
    """Also where generation is refused: the thread that reads it must not wait for ever."""
    for settings in ({"do_sample": True}, {"num_beams": 2}):
        streamer = TextIteratorStreamer(tokenizer(), timeout=5, skip_prompt=True)
        arguments = GREEDY | settings | {"streamer": streamer, "custom_generate": loop}
        errors: list[BaseException] = []

        def run(arguments: dict[str, Any] = arguments, errors: list[BaseException] = errors) -> None:
            try:
                otter().generate(**prompt(), **arguments)
            except BaseException as error:
                errors.append(error)

        thread = Thread(target=run)
        thread.start()
        try:
            list(streamer)
        except Empty:
            pytest.fail("the streamer was never ended")
        thread.join()
        assert bool(errors) == ("num_beams" in settings)


@pytest.mark.parametrize("name", sorted(set(INTERVENTIONS) - {"DExperts", "ARGS"}))
@pytest.mark.parametrize("first", [0, 4])
def test_the_next_turn_is_as_from_an_empty_cache(name: str, first: int) -> None:
    """With the cache that this turn was given, empty or with the turn before in it."""
    model = guarding() if name in GUARDING else otter()
    cache = DynamicCache(config=model.config)
    call = call_of(name, Setting(same(past_key_values=cache), rows=1))
    if first:
        with torch.no_grad():
            model(call.settings["input_ids"][:, :first], past_key_values=cache)
    turn = INTERVENTIONS[name][0](call)
    following = torch.cat((turn, tokens(1, 3, seed=5)), dim=-1)
    second = model.generate(following, past_key_values=cache, **GREEDY)
    assert torch.equal(second, model.generate(following, **GREEDY))


@pytest.mark.parametrize("kind", ["dynamic", "static", pytest.param("quantized", marks=since("5.21"))])
def test_a_replaced_response_is_forgotten_by_every_cache(kind: str) -> None:
    """Beyond the window, too, where a cache cannot be cropped."""
    model = tiny_otter(tiny_base("mistral", sliding_window=None if kind == "quantized" else 5))

    def empty() -> Cache:
        return {
            "dynamic": lambda: DynamicCache(config=model.config),
            "static": lambda: StaticCache(config=model.config, max_cache_len=32),
            "quantized": lambda: QuantizedCache("fp8", model.config),
        }[kind]()

    cache, loop = empty(), ReplaceStopped(torch.inf, [50], patience=3)
    turn = model.generate(**prompt(), **GREEDY, past_key_values=cache, custom_generate=loop)
    assert turn[0, 6:].tolist() == [50]
    following = torch.cat((turn, tokens(1, 3, seed=5)), dim=-1)
    second = model.generate(following, past_key_values=cache, **GREEDY)
    assert torch.equal(second, model.generate(following, past_key_values=empty(), **GREEDY))


def test_processors_and_criteria_in_a_search_read_its_text() -> None:
    """Not that of the candidates which the last pass read."""
    inputs = prompt(2)
    search = CandidateSearch(2.0, 4, min_p=0.0)
    results = otter().generate(
        **inputs, **GREEDY, custom_generate=search, logits_processor=[ContrastGuidance(otter(), 3.0)]
    )
    expected = otter().base_model.generate(
        **inputs,
        **GREEDY,
        custom_generate=search_written_out(texts(inputs), 2.0, 4),
        logits_processor=[Steered(texts(inputs), contrasted)],
    )
    assert torch.equal(results, expected)
    plain = otter().generate(**inputs, **GREEDY, custom_generate=search)
    assert not torch.equal(results, plain)
    threshold = float(texts(inputs).rewards(plain)[:, :2].detach().min()) + 1e-3
    stop, written_out = RewardStop(otter(), threshold), Stopped(texts(inputs), threshold, (), padded=True)
    results = otter().generate(**inputs, **GREEDY, custom_generate=search, stopping_criteria=[stop])
    expected = otter().base_model.generate(
        **inputs,
        **GREEDY,
        custom_generate=search_written_out(texts(inputs), 2.0, 4),
        stopping_criteria=[written_out],
    )
    assert torch.equal(results, expected)
    assert stop.stopped is not None
    assert stop.stopped.any()


def test_best_of_n_judges_a_response_at_the_end_that_a_criterion_set() -> None:
    inputs = prompt(2)
    stop = RewardStop(otter(), 0.3)
    torch.manual_seed(0)
    output = otter().generate(
        **inputs,
        **(GREEDY | {"do_sample": True, "return_dict_in_generate": True}),
        custom_generate=BestOfN(4),
        stopping_criteria=[stop],
    )
    assert stop.stopped is not None
    assert stop.stopped.shape == (2,)
    for row, new in enumerate(output.sequences[:, 6:]):
        length = int((new != 0).sum())
        assert output.rewards[row, :length].isfinite().all()
        assert output.rewards[row, length:].isnan().all()


def listened(**settings: Any) -> list[tuple[Tensor, Tensor]]:
    """Returns what a processor of a user reads: texts and their rewards."""
    seen = []

    def listen(input_ids: Tensor, scores: Tensor) -> Tensor:
        if "reward" in otter().signals:
            seen.append((input_ids.clone(), otter().signal("reward").prefix[:, -1].clone()))
        return scores

    otter().generate(**prompt(), **(GREEDY | settings), logits_processor=[listen])
    return seen


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance_scale": 1.5},
        {"assistant_model": tiny_base(seed=5)},
        {"prompt_lookup_num_tokens": 2},
        {"custom_generate": CandidateSearch(2.0, 4)},
        {"custom_generate": SpeculativeDecoding()},
        {"num_beams": 2},
    ],
    ids=["plain", "guidance_scale", "assistant", "prompt lookup", "search", "drafts", "beams"],
)
def test_a_processor_of_the_user_reads_the_signal_of_its_text(settings: dict[str, Any]) -> None:
    seen = listened(**settings)
    assert len(seen) >= NEW
    for ids, reward in seen:
        with torch.no_grad():
            expected = otter()(ids).signals["reward"].prefix[:, -1]
        torch.testing.assert_close(reward, expected, atol=1e-4, rtol=1e-4)


def test_the_signals_of_the_latest_pass_stay() -> None:
    for settings in ({}, {"prompt_lookup_num_tokens": 2}, {"custom_generate": CandidateSearch(2.0, 4)}):
        otter().generate(**prompt(), **GREEDY, **settings, logits_processor=[RewardGuidance(otter(), 2.0)])
        assert set(otter().signals) == {"reward", "contrast", "draft"}


def test_drafts_and_guidance_sample_from_the_guided_distribution() -> None:
    """The base as assistant proposes its own distribution, the guided one is what comes out."""
    ids = tokens(1, 5, seed=9)
    guidance = RewardGuidance(otter(), 4.0, min_p=0.0)
    with torch.no_grad():
        output = otter()(ids)
    likely = output.logits[0, -1] + 4.0 * output.signals["reward"].vocabulary()[0]
    best, chosen = likely.topk(3)
    torch.manual_seed(0)
    counts = torch.zeros(3)
    settings = GREEDY | {"max_new_tokens": 3, "do_sample": True, "top_k": 3}
    for _ in range(150):
        samples = otter().generate(
            ids,
            attention_mask=torch.ones_like(ids),
            assistant_model=otter().base_model,
            logits_processor=[guidance],
            **settings,
        )
        counts += samples[0, 5] == chosen
    assert counts.sum() == 150
    torch.testing.assert_close(counts / 150, best.softmax(dim=-1), atol=0.13, rtol=0)


def test_processors_and_criteria_serve_many_calls() -> None:
    """Of several batch sizes, and one list of them again and again."""
    stop = RewardStop(otter(), THRESHOLD)
    lists: dict[str, Any] = {"logits_processor": [RewardGuidance(otter(), 2.0)], "stopping_criteria": [stop]}
    for rows in (3, 1, 2):
        results = otter().generate(**prompt(rows), **GREEDY, **lists)
        stopped = stop.stopped
        fresh = RewardStop(otter(), THRESHOLD)
        again = otter().generate(
            **prompt(rows), **GREEDY, logits_processor=[RewardGuidance(otter(), 2.0)], stopping_criteria=[fresh]
        )
        assert torch.equal(results, again)
        assert stopped is not None
        assert fresh.stopped is not None
        assert torch.equal(stopped, fresh.stopped)
    assert len(lists["logits_processor"]) == len(lists["stopping_criteria"]) == 1


def test_a_stop_pads_what_it_has_ended() -> None:
    """Without an end of sequence, too: Transformers alone would go on writing behind it."""
    plain = otter().generate(**prompt(2), **GREEDY)
    rewards = texts(prompt(2)).rewards(plain)
    threshold = float(rewards[:, :3].min()) + 1e-3
    stop = RewardStop(otter(), threshold)
    results = otter().generate(**prompt(2), **GREEDY, stopping_criteria=[stop])
    assert stop.stopped is not None
    assert stop.stopped.tolist() != [True, True]
    row = int(stop.stopped.int().argmax())
    end = int((rewards[row] < threshold).nonzero()[0, 0]) + 2
    assert torch.equal(results[row, 6 : 6 + end], plain[row, 6 : 6 + end])
    assert (results[row, 6 + end :] == 0).all()
    assert torch.equal(results[1 - row], plain[1 - row])


def test_a_stop_judges_no_padding_after_the_ends_of_the_call() -> None:
    """`eos_token_id` of the call, of a config object, and stop strings."""
    plain = otter().generate(**prompt(2), **GREEDY)
    end = int(plain[0, 7])
    config = otter().base_model._prepare_generation_config(None, eos_token_id=end, pad_token_id=0)[0]
    word = tokenizer().decode([end])
    for settings in (
        {"eos_token_id": end},
        {"eos_token_id": None, "stop_strings": [word], "tokenizer": tokenizer()},
        {"generation_config": config, "eos_token_id": end},
    ):
        stop = RewardStop(otter(), torch.inf, patience=4)
        otter().generate(**prompt(2), **(GREEDY | settings), stopping_criteria=[stop])
        assert stop.stopped is not None
        assert not stop.stopped[0], settings
        loop = ReplaceStopped(torch.inf, [50], patience=4)
        results = otter().generate(**prompt(2), **(GREEDY | settings), custom_generate=loop)
        assert torch.equal(results[0, :8], plain[0, :8])


@pytest.mark.parametrize("sample", [False, True])
def test_weight_zero_returns_the_same_kind_of_output(sample: bool) -> None:
    settings = GREEDY | {"return_dict_in_generate": True, "do_sample": sample, "top_k": 0}
    for off, on in (
        (CandidateSearch(0.0), CandidateSearch(1.0)),
        (BestOfN(3, weight=0.0), BestOfN(3 if sample else 1)),
        (ReplaceStopped(-torch.inf, [5]), ReplaceStopped(0.0, [5])),
        (RejectionSampling(-torch.inf), RejectionSampling(0.0)),
    ):
        torch.manual_seed(0)
        results = otter().generate(**prompt(2), **settings, custom_generate=off)
        torch.manual_seed(0)
        expected = otter().base_model.generate(**prompt(2), **settings)
        assert torch.equal(results.sequences, expected.sequences)
        if sample or not isinstance(on, RejectionSampling):
            other = otter().generate(**prompt(2), **settings, custom_generate=on)
            assert type(results) is type(other)
