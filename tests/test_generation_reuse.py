"""Interventions are used again: by several calls, threads and turns, after errors, and in other modes of torch."""

from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any

import pytest
import torch
from conftest import Listener, add_tiny_adapter, refused, tiny_base, tiny_otter, tokens
from generation_table import (
    END,
    GREEDY,
    GUARDING,
    NEW,
    THRESHOLD,
    UNEVEN_ROWS,
    Setting,
    guarding,
    otter,
    prompts,
    rewarding,
    same,
    tokenizer,
)
from interventions import INTERVENTIONS, call_of
from torch import Tensor, nn
from transformers import DynamicCache, LogitsProcessor, StoppingCriteria

from otterlm.decoding import (
    BestOfN,
    CandidateSearch,
    GuardRollback,
    GuardStop,
    ReplaceStopped,
    RewardGuidance,
    RewardStop,
    SpeculativeDecoding,
    stream_tokens,
)
from otterlm.model import OtterModel
from otterlm.signals.guard.config import GuardConfig

OURS = sorted(set(INTERVENTIONS) - {"DExperts", "ARGS", "cards", "medusa"})


def seeded(name: str, setting: Setting, **changed: Any) -> Tensor:
    """Returns the sequences of an intervention."""
    rewarding()  # what is made once takes random numbers once
    call = call_of(name, setting)
    call.settings.update(changed)
    torch.manual_seed(0)
    results = INTERVENTIONS[name][0](call)
    return results if isinstance(results, Tensor) else results.sequences


def model_of(name: str) -> OtterModel:
    return guarding() if name in GUARDING else otter()


def test_a_stop_may_serve_a_call_without_padding_after_one_with() -> None:
    for stop in (RewardStop(otter(), THRESHOLD), GuardStop(guarding(), 0.9)):
        model = stop.model
        model.generate(**prompts(2), **GREEDY, stopping_criteria=[stop])
        alone = GREEDY | {"pad_token_id": None}
        results = model.generate(**prompts(1), **alone, stopping_criteria=[stop])
        fresh = type(stop)(model, THRESHOLD if isinstance(stop, RewardStop) else 0.9)
        assert torch.equal(results, model.generate(**prompts(1), **alone, stopping_criteria=[fresh]))


class RowEnds(StoppingCriteria):
    """Ends each response at other tokens, by the index of its prompt."""

    ends = (range(3, 30), range(30, 60))

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        count = len(input_ids)
        return torch.tensor([int(ids[-1]) in self.ends[row * 2 // count] for row, ids in enumerate(input_ids)])


@pytest.mark.parametrize("name", sorted(UNEVEN_ROWS | {"search", "guidance"}))
def test_a_criterion_may_decide_by_the_row(name: str) -> None:
    """An end token makes Transformers pad what has ended."""
    setting = Setting(lambda _: {"stopping_criteria": [RowEnds()], "eos_token_id": END}, ends=(END,))
    results, call = seeded(name, setting), call_of(name, setting)
    torch.manual_seed(0)
    assert torch.equal(results, INTERVENTIONS[name][1](call))


@pytest.mark.parametrize("name", sorted(UNEVEN_ROWS | {"search", "guidance"}))
def test_allowed_tokens_are_those_of_the_row(name: str) -> None:
    """What allows them may know nothing to follow the text of another row, and Transformers refuses an empty list."""
    starts = prompts(2)["input_ids"].tolist()

    def any_text(row: int, ids: Tensor) -> list[int]:
        return list(range(10 + 30 * row, 40 + 30 * row))

    def text_of_the_row(row: int, ids: Tensor) -> list[int]:
        return any_text(row, ids) if ids[:7].tolist() == starts[row] else []

    first, second = (seeded(name, Setting(same(prefix_allowed_tokens_fn=fn))) for fn in (any_text, text_of_the_row))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", [name for name in OURS if name != "stream"])
def test_a_prompt_may_have_another_name_or_none(name: str) -> None:
    ids = prompts(1)["input_ids"]
    one, begin = Setting(same(attention_mask=None), rows=1), torch.tensor([[1]])
    assert torch.equal(seeded(name, one, inputs=ids, input_ids=None), seeded(name, one))
    assert torch.equal(seeded(name, one, input_ids=None), seeded(name, one, input_ids=begin))


class Failing(LogitsProcessor):
    """Fails at its third token."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise KeyError("of the user")
        return scores


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + ("forward" in vars(module))
        for module in model.modules()
    )


LOOPING: dict[str, Callable[[], dict[str, Any]]] = {
    "guidance": lambda: {"logits_processor": [RewardGuidance(otter(), 2.0)]},
    "search": lambda: {"custom_generate": CandidateSearch(2.0, 4)},
    "drafts": lambda: {"custom_generate": SpeculativeDecoding(3)},
    "best-of-n": lambda: {"custom_generate": BestOfN(2), "do_sample": True},
    "stop": lambda: {"stopping_criteria": [RewardStop(otter(), THRESHOLD)]},
    "replace": lambda: {"custom_generate": ReplaceStopped(THRESHOLD, [50])},
    "prompt lookup": lambda: {"logits_processor": [RewardGuidance(otter(), 2.0)], "prompt_lookup_num_tokens": 3},
}


@pytest.mark.parametrize("name", LOOPING)
def test_an_error_in_the_middle_leaves_nothing_behind(name: str) -> None:
    settings = GREEDY | LOOPING[name]()
    torch.manual_seed(0)
    expected = otter().generate(**prompts(1), **settings)
    hooks = hooks_of(otter())
    heard = Listener()
    failing = [*settings.get("logits_processor", []), Failing()]
    with pytest.raises(KeyError):
        otter().generate(**prompts(1), **(settings | {"logits_processor": failing, "streamer": heard}))
    assert heard.tokens[-1] == -1
    assert otter().generation is None
    assert hooks_of(otter()) == hooks
    torch.manual_seed(0)
    assert torch.equal(otter().generate(**prompts(1), **settings), expected)


def test_a_stream_that_is_left_leaves_nothing_behind() -> None:
    expected = [step.token for step in stream_tokens(otter(), tokenizer(), **prompts(1), **GREEDY)]
    hooks = hooks_of(otter())
    for _ in range(2):
        for count, step in enumerate(stream_tokens(otter(), tokenizer(), **prompts(1), **GREEDY)):
            assert step.token == expected[count]
            if count == 2:
                break
        assert otter().generation is None
        assert hooks_of(otter()) == hooks
    assert torch.equal(otter().generate(**prompts(1), **GREEDY), otter().base_model.generate(**prompts(1), **GREEDY))
    failing = stream_tokens(otter(), tokenizer(), **prompts(1), **GREEDY, logits_processor=[Failing()])
    with pytest.raises(KeyError):
        list(failing)
    assert otter().generation is None


@pytest.mark.parametrize("count", [1, 3, NEW])
@pytest.mark.parametrize("window", [None, 8, 64])
def test_a_text_goes_on_after_a_stream(count: int, window: int | None) -> None:
    """With its cache, as after `generate`: whether all tokens were read or some."""
    model = otter() if window is None else tiny_otter(tiny_base("mistral", sliding_window=window))
    for more in (0, 2):
        if window == 8 and not more:
            continue  # its cache gives no token back
        ids, cache = prompts(1)["input_ids"], DynamicCache(config=model.config)
        steps: Any = stream_tokens(model, tokenizer(), ids, **GREEDY, past_key_values=cache)
        new = [next(steps).token for _ in range(count)]
        steps.close()
        text = torch.cat((ids, torch.tensor([new]), tokens(1, more, seed=5)), dim=-1)
        assert torch.equal(model.generate(text, **GREEDY, past_key_values=cache), model.generate(text, **GREEDY))


def test_a_stream_takes_what_generate_takes() -> None:
    ids = prompts(1)["input_ids"]
    expected = [step.token for step in stream_tokens(otter(), tokenizer(), ids, **GREEDY)]
    assert [step.token for step in stream_tokens(otter(), tokenizer(), inputs=ids, **GREEDY)] == expected
    listed: Any = ids.tolist()
    refused(lambda: list(stream_tokens(otter(), tokenizer(), listed, **GREEDY)), "got list")
    refused(lambda: list(stream_tokens(otter(), tokenizer(), **GREEDY)), "got NoneType")


def test_turns_with_other_interventions_share_a_cache() -> None:
    ids, cache = prompts(1)["input_ids"], DynamicCache(config=otter().config)
    for turn, name in enumerate(name for name in LOOPING if name != "prompt lookup"):  # refused with a filled cache
        settings = GREEDY | LOOPING[name]()
        results = []
        for past in (cache, DynamicCache(config=otter().config)):
            torch.manual_seed(turn)
            results.append(otter().generate(ids, **settings, past_key_values=past))
        assert torch.equal(*results)
        ids = torch.cat((results[0], tokens(1, 2, seed=turn)), dim=-1)


@pytest.mark.parametrize("name", OURS)
def test_modes_of_torch_change_nothing(name: str) -> None:
    """Nor does it matter whether the adapters are trained."""
    model, results = model_of(name), partial(seeded, name, Setting(same(), rows=1))
    expected = results()
    with torch.inference_mode():
        assert torch.equal(results(), expected)
    assert torch.equal(results(), expected)
    with torch.enable_grad():
        assert torch.equal(results(), expected)
    model.train()
    try:
        assert torch.equal(results(), expected)
    finally:
        model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert results().shape[0] == 1


def test_one_object_serves_threads() -> None:
    """Calls of other sizes at the same time."""
    stop, guidance, search = RewardStop(otter(), THRESHOLD), RewardGuidance(otter(), 2.0), CandidateSearch(2.0, 4)
    settings: list[dict[str, Any]] = [
        {**prompts(rows), **GREEDY, "stopping_criteria": [stop], **more}
        for rows in (1, 2)
        for more in ({"logits_processor": [guidance]}, {"custom_generate": search})
    ]
    settings.append(prompts(1) | GREEDY | {"stopping_criteria": [stop], "pad_token_id": None})
    expected = [otter().generate(**each) for each in settings]
    results: dict[int, Any] = {}

    def run(number: int) -> None:
        results[number] = otter().generate(**settings[number])

    threads = [Thread(target=run, args=(number,)) for number in range(len(settings))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[number], tensor) for number, tensor in enumerate(expected))


def test_inputs_that_a_judge_would_not_read_are_refused() -> None:
    """Best-of-n scores in passes of its own."""
    model = tiny_otter(tiny_base("gpt2", n_inner=48))
    kinds = torch.tensor([[4, 5, 4, 5, 4, 5, 4]])
    arguments = prompts(1) | GREEDY | {"do_sample": True, "token_type_ids": kinds}
    refused(partial(model.generate, **arguments, custom_generate=BestOfN(2)), "token_type_ids")


def test_a_rollback_steers_in_full_precision() -> None:
    """In half precision a large weight would rule out all tokens, and the first would be taken in silence."""
    model = OtterModel(tiny_base(num_hidden_layers=2, dtype=torch.float16))
    add_tiny_adapter(model, "guard", seed=4, signal=GuardConfig(("rude", "threat"), vocabulary_rank=4))
    loop = GuardRollback(1e6, back=0, attempts=12, alarm={"threat": 0.5})  # the weight doubles with every alarm
    output = model.eval().generate(**prompts(1), **GREEDY, return_dict_in_generate=True, custom_generate=loop)
    (length, _), *again = output.taken_back[0]
    text = torch.cat((prompts(1)["input_ids"], output.sequences[:, 7 : 7 + length]), dim=-1)
    with torch.no_grad():
        best = int(model(text).signals["guard"].vocabulary(label="threat")[0].argmax())
    assert again == [(length, [best])] * 12
