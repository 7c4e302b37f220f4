"""The vLLM plugin on small models: parity with the engine's own model and with the Transformers path."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES
from engines import (
    VOCABULARY,
    Answer,
    answers,
    assert_rewards,
    engine,
    greedy,
    make_folder,
    prompts,
    said,
    tokens_of,
)
from vllm.exceptions import VLLMValidationError

from otterlm.decoding import ContrastGuidance, RewardGuidance
from otterlm.engines.exported import load_exported
from otterlm.engines.vllm import client
from otterlm.engines.vllm.drafts import last_rows
from otterlm.engines.vllm.settings import Settings
from otterlm.engines.vllm.steering import Request, Steering

PROMPTS = prompts(8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def plain(folder):
    """What the engine says without us, in mixed batches with chunked prefill and prefix caching, and how likely."""
    return answers(folder.parent / "base", (prompts(200), greedy(logprobs=5)), max_num_batched_tokens=64)[0]


@pytest.fixture(scope="module")
def llm(folder):
    return engine(folder, max_num_batched_tokens=64)


@pytest.fixture(scope="module")
def transformers_path(folder):
    return load_exported(folder)


def expected(model: Any, processors: list[Any]) -> list[list[int]]:
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt["prompt_token_ids"]])
        output = model.generate(
            ids, max_new_tokens=12, do_sample=False, eos_token_id=None, logits_processor=processors, pad_token_id=0
        )
        found.append(output[0, ids.shape[1] :].tolist())
    return found


def test_the_base_speaks_as_without_us(folder, plain, llm):
    steered = [greedy(**client.request(folder, weight=w, signal=s)) for s, w in (("reward", 2.0), ("contrast", 1.5))]
    settings = [greedy(logprobs=5) if index % 4 else steered[index // 4 % 2] for index in range(200)]
    outputs = llm.generate(prompts(200), settings, use_tqdm=False)
    kept = [index for index in range(200) if index % 4]
    ours = [Answer.of(output, {}) for output in outputs]
    assert [ours[index] for index in kept] == [plain[index] for index in kept]
    assert said(outputs) != tokens_of(plain)


def test_weight_zero_is_the_base(folder, plain, llm):
    outputs = llm.generate(PROMPTS, greedy(**client.request(folder, weight=0.0)), use_tqdm=False)
    assert said(outputs) == tokens_of(plain)[:8]


@pytest.mark.parametrize("signal", ["reward", "guard"])
def test_rewards_are_those_of_transformers(folder, plain, llm, transformers_path, signal):
    outputs = llm.generate(PROMPTS, greedy(**client.request(folder, rewards=1)), use_tqdm=False)
    assert said(outputs) == tokens_of(plain)[:8]
    channels = llm.model_config.hf_config.otter_channels
    assert_rewards(transformers_path, [Answer.of(output, channels) for output in outputs], signal)


@pytest.mark.parametrize(
    ("settings", "processor"),
    [
        ({"weight": 3.0, "signal": "reward"}, lambda model: RewardGuidance(model, 3.0, adapter_name="reward")),
        ({"weight": 3.0, "signal": "guard", "top_k": 5}, lambda model: RewardGuidance(model, 3.0, 5, "guard")),
        ({"weight": 2.0, "signal": "contrast"}, lambda model: ContrastGuidance(model, 2.0)),
        ({"weight": 2.0, "signal": "contrast", "top_p": 0.5}, lambda model: ContrastGuidance(model, 2.0, 0.5)),
    ],
)
def test_steering_is_that_of_transformers(folder, plain, llm, transformers_path, settings, processor):
    outputs = llm.generate(PROMPTS, greedy(**client.request(folder, **settings)), use_tqdm=False)
    assert said(outputs) == expected(transformers_path, [processor(transformers_path)])
    assert said(outputs) != tokens_of(plain)[:8]


def test_requests_with_different_settings_share_a_batch(folder, llm):
    asked: list[dict[str, Any]] = [
        {},
        {"weight": 3.0, "signal": "reward"},
        {"weight": 2.0, "signal": "contrast"},
        {"rewards": 1},
    ]
    alone = [
        said(llm.generate([prompt], greedy(**client.request(folder, **asked[index % 4])), use_tqdm=False))[0]
        for index, prompt in enumerate(PROMPTS)
    ]
    together = [greedy(**client.request(folder, **asked[index % 4])) for index in range(8)]
    assert said(llm.generate(PROMPTS, together, use_tqdm=False)) == alone


def test_a_guard_ends_a_response(folder, plain, llm):
    rewarded = llm.generate(PROMPTS, greedy(**client.request(folder, rewards=1)), use_tqdm=False)
    found = [client.rewards(folder, output.outputs[0])["guard"] for output in rewarded]
    ranked = sorted(x for row in found for x in row[1:])
    # Between two rewards: batches round differently.
    _, threshold = max((right - left, (left + right) / 2) for left, right in itertools.pairwise(ranked[20:50]))
    for patience in (1, 2):
        settings = client.request(folder, threshold=threshold, guard="guard", patience=patience)
        outputs = llm.generate(PROMPTS, greedy(**settings), use_tqdm=False)
        for output, row, whole in zip(outputs, found, tokens_of(plain), strict=False):
            # The reward of a token is known when the next is chosen, and the first is the prompt's.
            low = [x < threshold for x in row]
            ends = [n for n in range(patience, 12) if all(low[n - patience + 1 : n + 1])]
            own = output.outputs[0]
            assert (own.stop_reason is not None) == bool(ends)
            if ends:
                assert list(own.token_ids)[:-1] == whole[: ends[0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": math.nan}, "finite"),
        ({"weight": "a lot"}, "finite"),
        ({"weight": 1.0, "signal": "nobody"}, "there are: contrast, guard, reward"),
        ({"weight": 1.0}, "name an adapter"),
        ({"weight": 1.0, "signal": "reward", "top_k": VOCABULARY + 1}, "whole number from 1"),
        ({"weight": 1.0, "signal": "contrast", "top_k": 4}, "reward"),
        ({"weight": 1.0, "signal": "contrast", "top_p": 0}, "otter_top_p"),
        ({"threshold": 0.0, "guard": "contrast"}, "otter_guard"),
        ({"patience": 2}, "otter_threshold"),
        ({"rewards": 2}, "otter_rewards"),
        ({"wait": 1.0}, "unknown argument otter_wait"),
        ({"rewards": 1}, "logprob_token_ids must hold"),
    ],
)
def test_bad_requests_are_refused_alone(plain, llm, settings, message):
    arguments = {f"otter_{name}": value for name, value in settings.items()}
    with pytest.raises(VLLMValidationError, match=message):
        llm.generate(PROMPTS[:1], greedy(extra_args=arguments), use_tqdm=False)
    assert said(llm.generate(PROMPTS, greedy(), use_tqdm=False)) == tokens_of(plain)[:8]


def test_drafts_leave_the_tokens(folder, plain):
    speculative = {
        "method": "custom_class",
        "model": "otterlm.engines.vllm.drafts.DraftProposer",
        "num_speculative_tokens": 3,
    }
    settings = {"max_num_batched_tokens": 64, "speculative_config": speculative}
    (drafted,) = answers(folder, (prompts(40), greedy()), **settings)
    assert tokens_of(drafted) == tokens_of(plain)[:40]


def test_rows_of_a_speculative_batch():
    # A prompt in the middle, one that verified 3 drafts and kept 1, one without drafts, one that kept all of 2.
    assert last_rows([[], [7, 8], [9], [4, 5, 6]], [30, 12, 5, 9], [16, 13, 4, 8]) == [0, 2, 5, 8]


@pytest.mark.slow
def test_compiled(folder):
    """vLLM compiles models by default; the hooks are traced with them."""
    settings = {"enforce_eager": False}
    (plain,) = answers(folder.parent / "base", (PROMPTS, greedy()), **settings)
    ours, steered = answers(
        folder,
        (PROMPTS, greedy(**client.request(folder, rewards=1))),
        (PROMPTS, greedy(**client.request(folder, weight=3.0, signal="reward"))),
        **settings,
    )
    assert tokens_of(ours) == tokens_of(plain) != tokens_of(steered)
    assert_rewards(load_exported(folder), ours)


@pytest.mark.parametrize("model_type", [kind for kind in ARCHITECTURES if kind != "llama"])
def test_other_families(tmp_path, model_type):
    folder = make_folder(tmp_path, model_type, ("reward",))
    (plain,) = answers(folder.parent / "base", (PROMPTS, greedy()))
    (ours,) = answers(folder, (PROMPTS, greedy(**client.request(folder, rewards=1))))
    assert tokens_of(ours) == tokens_of(plain)
    assert_rewards(load_exported(folder), ours)


def steering(llm: Any) -> Steering:
    runner = llm.llm_engine.model_executor.driver_worker.model_runner
    return next(each for each in runner.input_batch.logitsprocs.all if isinstance(each, Steering))


@torch.inference_mode()
def test_what_is_sampled_from_is_the_bases(llm):
    """The channels are written where log probabilities are taken, and gone after."""
    first = steering(llm)
    model = first._shared.model
    hidden = torch.randn(3, sum(model._widths), generator=torch.Generator().manual_seed(0))
    before = model.compute_logits(hidden).clone()
    first._requests = {1: Request(Settings(), ("reward", "guard"), 0, [])}
    try:
        told = model.compute_logits(hidden)
        changed = (told != before).nonzero().tolist()
        assert sorted(changed) == sorted([1, channel] for channel in first._channels.values())
        assert torch.equal(first.apply(told), before)
    finally:
        first._requests = {}


@torch.inference_mode()
def test_the_second_runners_interface(folder, llm):
    """On a CPU vLLM runs its first model runner; the other's calls are made by hand, on the same model's states."""
    first = steering(llm)
    model = first._shared.model
    config = llm.llm_engine.vllm_config
    states = SimpleNamespace(prefill_len=SimpleNamespace(np=[6, 6, 6, 6]))
    second = Steering(config, states)
    first._shared.steering = first
    asked: list[dict[str, Any]] = [
        {"weight": 3.0, "signal": "reward"},
        {},
        {"rewards": 1},
        {"threshold": 1e6, "guard": "guard"},
    ]
    wants = [second.add_request(slot, greedy(**client.request(folder, **own))) for slot, own in enumerate(asked)]
    assert wants == [True, False, True, True]
    hidden = torch.randn(4, sum(model._widths), generator=torch.Generator().manual_seed(0))
    model._second_runner = True
    try:
        raw = model.compute_logits(hidden)
        before = raw.clone()
        # Rows are in another order than slots.
        context = SimpleNamespace(expanded_idx_mapping=torch.tensor([2, 3, 1, 0]), pos=torch.tensor([9, 9, 9, 9]))
        after = second.apply(raw.clone(), context)
    finally:
        model._second_runner = False
    reward = model.signal("reward")
    channel, guard = config.model_config.hf_config.otter_channels["reward"], second._channels["guard"]
    assert torch.equal(after[2], before[2])
    assert torch.equal(after[0], before[0])
    torch.testing.assert_close(after[3], before[3] + 3.0 * reward.vocabulary()[3])
    assert after[1].argmax() == guard
    assert torch.isinf(after[1]).sum() == VOCABULARY - 1
    told = raw[0].log_softmax(dim=-1)[channel] + 64
    torch.testing.assert_close(told, reward.prefix[0, 0], atol=1e-4, rtol=1e-4)
    assert torch.equal(raw[1:], before[1:])


def test_tensor_parallel(tmp_path):
    """Two processes: each has half of the base's heads and units, and all of what is inserted."""
    folder = make_folder(tmp_path, signals=("reward",), num_attention_heads=4, num_key_value_heads=2)
    asked = [
        (PROMPTS, greedy(**client.request(folder, rewards=1))),
        (PROMPTS, greedy(**client.request(folder, weight=3.0))),
    ]
    (plain,) = answers(folder.parent / "base", (PROMPTS, greedy()), tensor_parallel_size=2)
    whole, steered = answers(folder, *asked)
    split, split_steered = answers(folder, *asked, tensor_parallel_size=2)
    assert tokens_of(split) == tokens_of(plain)
    assert tokens_of(split_steered) == tokens_of(steered) != tokens_of(plain)
    for ours, theirs in zip(split, whole, strict=True):
        assert ours.rewards["reward"] == pytest.approx(theirs.rewards["reward"], abs=1e-4)
