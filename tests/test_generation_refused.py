"""Generation refuses interventions that cannot do their work, and runs on bases and threads of other kinds."""

from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any

import pytest
import torch
from conftest import add_tiny_adapter, refused, tiny_base, tiny_otter, tokens, with_lora
from generation_table import (
    CROPS_CACHE,
    GREEDY,
    LOOPS,
    NEW,
    Setting,
    otter,
    prompt,
    same,
    texts,
    tokenizer,
)
from interventions import INTERVENTIONS, call_of, rewarded
from references import Steered
from torch import Tensor
from transformers import DynamicCache

from otterlm.decoding import (
    BestOfN,
    CandidateSearch,
    ContrastGuidance,
    ReplaceStopped,
    RewardGuidance,
    RewardStop,
    SpeculativeDecoding,
    stream_tokens,
)
from otterlm.decoding.choice import generate_arguments
from otterlm.interventions import InterventionSettings
from otterlm.model import OtterModel


def test_settings_of_the_base_count_as_those_of_the_call() -> None:
    model = OtterModel(tiny_base(num_hidden_layers=2))
    add_tiny_adapter(model, "reward")
    config = model.base_model.generation_config
    config.num_beams = 3
    refused(lambda: model.generate(**prompt(), **GREEDY, custom_generate=CandidateSearch(1.0)), "num_beams")
    config.num_beams = 1
    plain = model.generate(**prompt(), **GREEDY)
    config.stop_strings = [tokenizer().decode(plain[0, 7:8])]
    for settings in ({"logits_processor": [RewardGuidance(model, 0.0)]}, {"custom_generate": CandidateSearch(0.0)}):
        assert model.generate(**prompt(), **GREEDY, tokenizer=tokenizer(), **settings).shape[1] == 8
    assert len(list(stream_tokens(model, tokenizer(), **prompt(), **GREEDY))) == 2


def test_adapters_and_models_must_be_those_that_generate() -> None:
    other = tiny_otter(tiny_base(num_hidden_layers=2))
    guidance, stop = RewardGuidance(otter(), 1.0), RewardStop(otter(), 0.0)
    refused(lambda: other.generate(**prompt(), **GREEDY, logits_processor=[guidance]), "another OtterModel")
    refused(lambda: other.generate(**prompt(), **GREEDY, stopping_criteria=[stop]), "another OtterModel")
    # The base's own `generate`, after the model read something: its signals are of another text.
    with torch.no_grad():
        otter()(tokens(1, 6, seed=8))
    for name, part in (("logits_processor", guidance), ("stopping_criteria", stop)):
        refused(partial(otter().base_model.generate, **prompt(), **GREEDY, **{name: [part]}), "OtterModel")
    loop = CandidateSearch(1.0)
    refused(lambda: otter().base_model.generate(**prompt(), **GREEDY, custom_generate=loop), "OtterModel")
    off: list[Callable[[], Any]] = [
        lambda: otter().generate(**prompt(), **GREEDY, logits_processor=[guidance]),
        lambda: otter().generate(**prompt(), **GREEDY, stopping_criteria=[stop]),
        lambda: otter().generate(**prompt(), **GREEDY, custom_generate=loop),
        lambda: otter().generate(**prompt(), **GREEDY, custom_generate=ReplaceStopped(0.0, [5])),
        lambda: otter().generate(**prompt(), **GREEDY, custom_generate=SpeculativeDecoding()),
    ]
    for call in off:
        with otter().disable_adapter():
            refused(call, "which is off")
        with otter().use_adapters(["contrast"]):
            refused(call, "which is off")
    with otter().disable_adapter():
        results = otter().generate(**prompt(), **GREEDY, custom_generate=CandidateSearch(0.0))
    assert torch.equal(results, otter().base_model.generate(**prompt(), **GREEDY))
    two = tiny_otter(tiny_base(num_hidden_layers=2))
    add_tiny_adapter(two, "second")
    refused(lambda: two.generate(**prompt(), **GREEDY, custom_generate=loop), "reward, second")
    named = two.generate(**prompt(), **GREEDY, custom_generate=CandidateSearch(1.0, adapter_name="second"))
    assert named.shape == (1, 6 + NEW)


def test_a_processor_may_be_called_by_hand() -> None:
    """In a loop of the user's own, on the scores of the model's latest pass."""
    ids = prompt()["input_ids"]
    guidance = RewardGuidance(otter(), 2.0)
    cache = DynamicCache(config=otter().config)
    new = ids
    for _ in range(NEW):
        with torch.no_grad():
            output = otter()(new, past_key_values=cache)
        new = guidance(ids, output.logits[:, -1]).argmax(dim=-1, keepdim=True)
        ids = torch.cat((ids, new), dim=-1)
    assert torch.equal(ids, otter().generate(**prompt(), **GREEDY, logits_processor=[guidance]))
    refused(lambda: guidance(ids, output.logits[:, -1]), "another text")
    refused(lambda: guidance(ids[:, 1:-1], output.logits[:, -1]), "another text")  # it ends as the text did
    refused(lambda: RewardStop(otter(), 0.0)(ids, None), "generate")


def test_loops_that_run_on_their_own_refuse_what_others_wait_for() -> None:
    for name in sorted(LOOPS & (CROPS_CACHE | {"stream"})):
        call = call_of(name, Setting(same(synced_gpus=True), rows=1))
        refused(partial(INTERVENTIONS[name][0], call), "synced_gpus")
    refused(
        lambda: otter().generate(
            **prompt(), **GREEDY, custom_generate="x/y", logits_processor=[RewardGuidance(otter(), 1.0)]
        ),
        "custom_generate='x/y'",
    )
    for name in sorted(CROPS_CACHE | {"stream"}):
        call = call_of(name, Setting(same(token_type_ids=torch.zeros(1, 7, dtype=torch.long)), rows=1))
        refused(partial(INTERVENTIONS[name][0], call), "not used by the model: ['token_type_ids']")
    refused(
        lambda: list(stream_tokens(otter(), tokenizer(), **prompt(), **GREEDY, custom_generate=BestOfN(2))),
        "custom_generate",
    )


@pytest.mark.parametrize("method", ["guidance", "search", "stop", "stream", "lookup"])
def test_a_base_of_peft_is_steered(method: str) -> None:
    model = OtterModel(with_lora())
    add_tiny_adapter(model, "reward")
    ids = prompt()["input_ids"]
    every: dict[str, dict[str, Any]] = {
        "guidance": {"logits_processor": [RewardGuidance(model, 2.0, min_p=0.0)]},
        "lookup": {"logits_processor": [RewardGuidance(model, 2.0, min_p=0.0)], "prompt_lookup_num_tokens": 3},
        "search": {"custom_generate": CandidateSearch(2.0, 4, min_p=0.0)},
        "stop": {"custom_generate": ReplaceStopped(torch.inf, [50])},
        "stream": {},
    }
    settings = every[method]
    if method == "stream":
        results = [step.token for step in stream_tokens(model, tokenizer(), ids, **GREEDY)]
        assert results == model.generate(input_ids=ids, **GREEDY)[0, 6:].tolist()
        return
    results = model.generate(input_ids=ids, **GREEDY, **settings)
    if method == "stop":
        assert results[0, 6:].tolist() == [50]
        return
    for end in range(6, 6 + NEW):
        with torch.no_grad():
            output = model(results[:, :end])
            scores = output.logits[0, -1] + 2.0 * output.signals["reward"].vocabulary()[0]
            if method == "search":
                best, likely = output.logits[0, -1].topk(4)
                texts = torch.cat((results[:, :end].expand(4, -1), likely[:, None]), dim=-1)
                scores[likely] = best + 2.0 * model(texts).signals["reward"].prefix[:, -1] + 1e3
        assert results[0, end] == scores.argmax()


def test_each_intervention_has_its_place() -> None:
    guidance, stop, loop = RewardGuidance(otter(), 1.0), RewardStop(otter(), 0.0), CandidateSearch(1.0)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"logits_processor": guidance}, "logits_processor in a list"),
        ({"stopping_criteria": stop}, "stopping_criteria in a list"),
        ({"logits_processor": [stop]}, "stopping_criteria"),
        ({"logits_processor": [loop]}, "custom_generate"),
        ({"stopping_criteria": [guidance]}, "logits_processor"),
        ({"custom_generate": guidance}, "logits_processor"),
        ({"custom_generate": CandidateSearch}, "CandidateSearch(...)"),
    ]
    for settings, named in wrong:
        refused(partial(otter().generate, **prompt(), **GREEDY, **settings), named)


def test_the_temperature_of_a_search_counts_once() -> None:
    """On the command line, where it is also the base's."""
    wanted = InterventionSettings(weight=2.0, top_k=4, temperature=0.5)
    sampled = GREEDY | {"do_sample": True, "top_k": 0}
    with otter().use_adapters(["reward"]):
        torch.manual_seed(0)
        arguments = generate_arguments(otter(), wanted, "search")
        results = otter().generate(**prompt(3), **(sampled | {"temperature": 0.5} | arguments))
        torch.manual_seed(0)
        search = CandidateSearch(2.0, 4, "stochastic", temperature=0.5)
        assert torch.equal(results, otter().generate(**prompt(3), **sampled, custom_generate=search))


def test_max_length_counts_against_the_window() -> None:
    model = tiny_otter(tiny_base("mistral", sliding_window=8))
    length = {"max_length": 6 + NEW, "do_sample": False, "eos_token_id": None}
    refused(
        lambda: model.generate(**prompt(), **length, custom_generate=CandidateSearch(1.0)), "the base's window is 8"
    )


def test_generations_of_threads_do_not_mix() -> None:
    calls: list[dict[str, Any]] = [
        {"logits_processor": [RewardGuidance(otter(), 2.0)]},
        {"custom_generate": CandidateSearch(2.0, 4)},
        {"logits_processor": [ContrastGuidance(otter(), 3.0)], "guidance_scale": 1.5},
        {"logits_processor": [RewardGuidance(otter(), 2.0)], "prompt_lookup_num_tokens": 2},
    ]
    expected = [otter().generate(**prompt(), **GREEDY, **call) for call in calls]
    results: dict[int, Tensor] = {}

    def run(number: int) -> None:
        results[number] = otter().generate(**prompt(), **GREEDY, **calls[number])

    threads = [Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, tensor in enumerate(expected):
        assert torch.equal(results[number], tensor)
    steps = [stream_tokens(otter(), tokenizer(), **prompt(), **GREEDY, **calls[n]) for n in (0, 2)]
    streamed = [[pair[n].token for pair in zip(*steps, strict=True)] for n in range(1)]
    assert streamed[0] == expected[0][0, 6:].tolist()


def test_a_model_that_assists_drafts_without_its_adapters() -> None:
    """Also for another model, with or without interventions."""
    drafter = tiny_otter(tiny_base(seed=5))
    guided = {"logits_processor": [Steered(texts(prompt()), rewarded)]}
    assert torch.equal(
        otter().generate(**prompt(), **GREEDY, assistant_model=drafter), otter().generate(**prompt(), **GREEDY)
    )
    results = otter().generate(
        **prompt(), **GREEDY, assistant_model=drafter, logits_processor=[RewardGuidance(otter(), 2.0)]
    )
    assert torch.equal(results, otter().base_model.generate(**prompt(), **GREEDY, **guided))


def test_a_stream_takes_the_tokenizer_as_generate_does() -> None:
    expected = [step.token for step in stream_tokens(otter(), tokenizer(), prompt()["input_ids"], **GREEDY)]
    for settings in ({"tokenizer": tokenizer()}, {"tokenizer": tokenizer(), "attention_mask": None}):
        steps = stream_tokens(otter(), **(prompt() | GREEDY | settings))
        assert [step.token for step in steps] == expected
    refused(lambda: list(stream_tokens(otter(), **prompt(), **GREEDY)), "tokenizer")
