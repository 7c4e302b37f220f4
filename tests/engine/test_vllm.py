"""The vLLM plugin agrees with the engine's model and with the Transformers path, on small models."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from engines import (
    VOCABULARY,
    Answer,
    answers,
    assert_rewards,
    between,
    engine,
    greedy,
    guarded,
    ids_of,
    make_folder,
    prompts,
    tokenizer,
    tokens_of,
)
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig
from vllm import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.outputs import AsyncModelRunnerOutput

from otterlm import client
from otterlm.decoding import ContrastGuidance, RewardGuidance
from otterlm.engines.exported import load_exported
from otterlm.engines.rewards import STOPPED
from otterlm.engines.vllm import upstream
from otterlm.engines.vllm.paged import spread_of
from otterlm.engines.vllm.steering import Steering
from otterlm.engines.vllm.upstream import served, worker
from otterlm.engines.vllm.widening import shard_and_pack
from otterlm.errors import OtterError

PROMPTS = prompts(8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    return make_folder(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def plain(folder):
    """Returns the engine's tokens without Otter, and how likely, in mixed batches with chunked prefill and caching."""
    return answers(folder.parent / "base", (prompts(200), greedy(logprobs=5)), max_num_batched_tokens=64)[0]


@pytest.fixture(scope="module")
def llm(folder):
    return engine(folder, max_num_batched_tokens=64)


@pytest.fixture(scope="module")
def transformers_path(folder):
    return load_exported(folder)


def expected(model: Any, processors: list[Any]) -> list[list[int]]:
    results = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt["prompt_token_ids"]])
        output = model.generate(
            ids, max_new_tokens=12, do_sample=False, eos_token_id=None, logits_processor=processors, pad_token_id=0
        )
        results.append(output[0, ids.shape[1] :].tolist())
    return results


def test_an_innocent_request_gets_the_bases_answer_to_the_bit(folder, plain, llm) -> None:
    """Beside requests that steer, are guarded and have rewards, in mixed batches."""
    asking = [
        greedy(**client.request(folder, weight=2.0, signal="reward")),
        greedy(**client.request(folder, weight=1.5, signal="contrast"), logprobs=1),
        greedy(**client.request(folder, rewards=1)),
        greedy(**client.request(folder, threshold=-1e9, guard="guard", rewards=1), logprobs=3),
    ]
    settings = [greedy(logprobs=5) if index % 3 else asking[index // 3 % 4] for index in range(200)]
    outputs = llm.generate(prompts(200), settings, use_tqdm=False)
    innocent = [index for index in range(200) if index % 3]
    ours = [Answer.of(output) for output in outputs]
    assert [ours[index] for index in innocent] == [plain[index] for index in innocent]
    assert ids_of(outputs) != tokens_of(plain)


def test_rewards_come_beside_log_probabilities(folder, plain, llm, transformers_path) -> None:
    outputs = llm.generate(PROMPTS, greedy(**client.request(folder, rewards=1), logprobs=5), use_tqdm=False)
    ours = [Answer.of(output) for output in outputs]
    assert_rewards(transformers_path, ours, "reward", "guard")
    for answer, alone in zip(ours, plain, strict=False):
        assert answer.tokens == alone.tokens
        for step, expected in zip(answer.logprobs, alone.logprobs, strict=True):
            assert step == pytest.approx(expected, abs=1e-4)


def test_weight_zero_is_the_base(folder, plain, llm) -> None:
    outputs = llm.generate(PROMPTS, greedy(**client.request(folder, weight=0.0)), use_tqdm=False)
    assert ids_of(outputs) == tokens_of(plain)[:8]


@pytest.mark.parametrize(
    ("settings", "processor"),
    [
        ({"weight": 3.0, "signal": "reward"}, lambda model: RewardGuidance(model, 3.0, adapter_name="reward")),
        ({"weight": 3.0, "signal": "guard", "top_k": 5}, lambda model: RewardGuidance(model, 3.0, 5, "guard")),
        ({"weight": 2.0, "signal": "contrast"}, lambda model: ContrastGuidance(model, 2.0)),
        ({"weight": 2.0, "signal": "contrast", "top_p": 0.5}, lambda model: ContrastGuidance(model, 2.0, 0.5)),
    ],
)
def test_steering_is_that_of_transformers(folder, plain, llm, transformers_path, settings, processor) -> None:
    outputs = llm.generate(PROMPTS, greedy(**client.request(folder, **settings)), use_tqdm=False)
    assert ids_of(outputs) == expected(transformers_path, [processor(transformers_path)])
    assert ids_of(outputs) != tokens_of(plain)[:8]


def test_requests_with_different_settings_share_a_batch(folder, llm) -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"weight": 3.0, "signal": "reward"},
        {"weight": 2.0, "signal": "contrast"},
        {"rewards": 1},
    ]
    alone = [
        ids_of(llm.generate([prompt], greedy(**client.request(folder, **settings[index % 4])), use_tqdm=False))[0]
        for index, prompt in enumerate(PROMPTS)
    ]
    together = [greedy(**client.request(folder, **settings[index % 4])) for index in range(8)]
    assert ids_of(llm.generate(PROMPTS, together, use_tqdm=False)) == alone


def test_a_guard_ends_a_response(folder, plain, llm) -> None:
    """Without a token that is not the response's; and not before the tokens that the request wants at least."""
    rewarded = llm.generate(PROMPTS, greedy(**client.request(folder, rewards=1)), use_tqdm=False)
    rewards = [client.rewards(output.outputs[0])["guard"] for output in rewarded]
    threshold = between(rewards)
    for patience, least in ((1, 0), (2, 0), (1, 6)):
        settings = client.request(folder, threshold=threshold, guard="guard", patience=patience, rewards=1)
        outputs = llm.generate(PROMPTS, greedy(**settings, min_tokens=least), use_tqdm=False)
        lengths = [guarded(row, threshold, patience, least) for row in rewards]
        assert min(lengths) < max(lengths) == 12
        for output, row, whole, length in zip(outputs, rewards, tokens_of(plain), lengths, strict=False):
            answer = Answer.of(output)
            assert answer.tokens == whole[:length]
            assert answer.stop_reason == (STOPPED if length < 12 else None)
            assert answer.rewards["guard"] == pytest.approx(row[:length], abs=1e-4)


def test_under_a_grammar(folder, llm) -> None:
    """A guard ends a response that a grammar has not ended, and rewards come with one."""
    grammar = {"structured_outputs": StructuredOutputsParams(choice=["yes", "no"]), "ignore_eos": False}
    outputs = llm.generate(PROMPTS, greedy(**client.request(folder, rewards=1), **grammar), use_tqdm=False)
    texts = {tokenizer().decode(tokens, skip_special_tokens=True) for tokens in ids_of(outputs)}
    assert texts <= {"yes", "no"}
    assert all(len(client.rewards(each)["reward"]) == len(each.token_ids) for each in (o.outputs[0] for o in outputs))
    ended = llm.generate(
        PROMPTS, greedy(**client.request(folder, threshold=1e6, guard="guard"), **grammar), use_tqdm=False
    )
    assert [(list(o.outputs[0].token_ids), o.outputs[0].stop_reason) for o in ended] == [
        (tokens[:1], STOPPED) for tokens in ids_of(outputs)
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": math.nan}, "finite"),
        ({"weight": "a lot"}, "finite"),
        ({"weight": 1.0, "signal": "nobody"}, "there are: contrast, guard, reward"),
        ({"weight": 1.0}, "name an adapter"),
        ({"weight": 1.0, "signal": "reward", "top_k": VOCABULARY + 1}, "whole number from 1"),
        ({"weight": 1.0, "signal": "contrast", "top_k": 4}, "top_k goes with guidance"),
        ({"rewards": 2}, "otter_rewards"),
        ({"wait": 1.0}, "unknown argument otter_wait"),
    ],
)
def test_bad_requests_are_refused_alone(plain, llm, settings, message) -> None:
    arguments = {f"otter_{name}": value for name, value in settings.items()}
    with pytest.raises(VLLMValidationError, match=message):
        llm.generate(PROMPTS[:1], greedy(extra_args=arguments), use_tqdm=False)
    assert ids_of(llm.generate(PROMPTS, greedy(), use_tqdm=False)) == tokens_of(plain)[:8]


def test_requests_are_checked_against_the_folder_that_is_served(folder, tmp_path: Path, llm) -> None:
    other = make_folder(tmp_path, signals=("contrast",))
    AutoConfig.from_pretrained(other)
    outputs = llm.generate(PROMPTS[:1], greedy(**client.request(folder, rewards=1)), use_tqdm=False)
    assert client.rewards(outputs[0].outputs[0]).keys() == {"reward", "guard"}
    with pytest.raises(VLLMValidationError, match="name an adapter in otter_signal"):
        llm.generate(PROMPTS[:1], greedy(**client.request(other, weight=1.0)), use_tqdm=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"enable_lora": True}, "LoRA"),
        ({"runner": "pooling", "convert": "embed"}, "runner='pooling'"),
        ({"pipeline_parallel_size": 2}, "use tensor_parallel_size"),
        ({"decode_context_parallel_size": 2, "tensor_parallel_size": 2}, "context parallelism"),
        ({"enable_dbo": True}, "enable_dbo"),
        ({"speculative_config": {"method": "medusa", "model": "FOLDER", "num_speculative_tokens": 2}}, "'medusa'"),
        (
            {
                "speculative_config": {
                    "method": "ngram",
                    "num_speculative_tokens": 2,
                    "rejection_sample_method": "synthetic",
                    "synthetic_acceptance_rates": [0.5, 0.5],
                }
            },
            "rejection_sample_method='synthetic'",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(folder, settings, message) -> None:
    if "speculative_config" in settings:
        settings = {"speculative_config": settings["speculative_config"] | {"model": str(folder.parent / "base")}}
    with pytest.raises(ValueError, match=f"an exported folder cannot be served with .*{message}"):
        EngineArgs(model=str(folder), **settings).create_engine_config()


def test_a_folder_of_an_earlier_version_is_served(folder, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "export", symlinks=True)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "export" / "config.json").write_text(json.dumps(config | {"otter_channels": {"reward": 319}}))
    assert load_exported(tmp_path / "export").active_adapters == load_exported(folder).active_adapters
    engine_config = EngineArgs(model=str(tmp_path / "export"), enforce_eager=True).create_engine_config()
    assert served(engine_config).numbers == ("guard", "reward")


def test_a_model_without_adapters_takes_no_settings(folder) -> None:
    config = EngineArgs(model=str(folder.parent / "base")).create_engine_config()
    with pytest.raises(OtterError, match="no adapters"):
        served(config).settings({"otter_rewards": 1})


@pytest.mark.parametrize(
    ("model_type", "mode"), [("mistral", "raw_logits"), ("qwen2", "processed_logprobs"), ("qwen3", "processed_logits")]
)
def test_other_families(tmp_path: Path, model_type, mode) -> None:
    """Whatever the engine gives for log probabilities, rewards are rewards."""
    folder = make_folder(tmp_path, model_type, ("reward",))
    (plain,) = answers(folder.parent / "base", (PROMPTS, greedy()))
    (ours,) = answers(folder, (PROMPTS, greedy(**client.request(folder, rewards=1), logprobs=1)), logprobs_mode=mode)
    assert tokens_of(ours) == tokens_of(plain)
    assert_rewards(load_exported(folder), ours)


class _Counting(TorchDispatchMode):
    """The mode counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.append(str(func))
        return func(*args, **(kwargs or {}))


class _Kernel(torch.nn.Module):
    """The kernel attends to nothing: it needs no cache."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return query


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
@torch.inference_mode()
def test_a_widened_block_takes_few_operators(llm) -> None:
    """At one token a call costs more than what it computes. Without the C++ operator these are PyTorch's."""
    model = llm.llm_engine.model_executor.driver_worker.model_runner.model
    assert model.fused
    live = model.otter["reward"]
    stream = model.replacement._make(live.config).stream
    for parameter in stream.parameters():
        parameter.fill_(0.1)
    shard_and_pack(stream, fused=False)
    layer, attached = stream.layers["1"], live.stream.layers["1"]
    assert attached.packed is not None
    assert layer.packed is None
    layer.kernel, layer.rotary, layer.heads, layer.units = _Kernel(), attached.rotary, attached.heads, attached.units
    widths = layer.attention.widths
    sizes = widths.inserted, widths.base, widths.base_heads * widths.base_head_dim, widths.base_units
    inserted, x, heads, units = (torch.randn(1, size) for size in sizes)
    least, positions = torch.tensor(0.1), torch.tensor([3])
    with _Counting() as counting:
        middle = layer.attend(inserted, x, spread_of(x, least), heads, positions)
        layer.feed(middle, x, spread_of(x, least), units)
    assert len(counting.operators) <= 31, counting.operators


def test_without_the_operator(folder, plain, monkeypatch) -> None:
    """Where no compiler is, widened blocks are PyTorch's operators."""
    monkeypatch.setenv("OTTER_KERNELS", "0")
    (ours,) = answers(folder, (PROMPTS, greedy(**client.request(folder, rewards=1))))
    assert tokens_of(ours) == tokens_of(plain[: len(PROMPTS)])
    assert_rewards(load_exported(folder), ours)


@torch.inference_mode()
def test_the_second_runners_interface(folder, llm) -> None:
    """vLLM's other model runner needs Triton; its calls are made by hand, on the same model's states."""
    model = llm.llm_engine.model_executor.driver_worker.model_runner.model
    second = Steering(llm.llm_engine.vllm_config, SimpleNamespace())
    requests: list[dict[str, Any]] = [
        {"weight": 3.0, "signal": "reward"},
        {},
        {"rewards": 1},
        {"threshold": 1e6, "guard": "guard"},
    ]
    parameters = [greedy(**client.request(folder, **settings)) for settings in requests]
    wants = [second.add_request(slot, each) for slot, each in enumerate(parameters)]
    assert wants == [True, False, False, False]
    hidden = torch.randn(6, sum(model._widths), generator=torch.Generator().manual_seed(0))
    # Rows are in another order than slots. Two requests verify a draft, one of them steers.
    order = torch.tensor([2, 3, 3, 0, 0, 1])
    batch = SimpleNamespace(
        req_ids=["2", "3", "0", "1"], cu_num_logits_np=np.array([0, 1, 3, 5, 6]), expanded_idx_mapping=order
    )
    logits = model.compute_logits(hidden).clone()
    parts: list[torch.Tensor] = []

    def sample(*_):
        """Steers the rows in two parts, as vLLM does with many, once the logits are there."""
        model.compute_logits(hidden)
        parts.extend(
            second.apply(logits[part].clone(), SimpleNamespace(expanded_idx_mapping=order[part]))
            for part in (slice(0, 4), slice(4, 6))
        )
        return "output"

    model.watcher.schedule([(str(slot), each.extra_args, 3) for slot, each in enumerate(parameters)], [], 9)
    runner = SimpleNamespace(model=model)
    assert worker.sample_second(sample, runner, hidden, batch, None) == "output"
    after = torch.cat(parts)
    reward, guard = model.signal("reward"), model.signal("guard")
    expected = logits + 3.0 * reward.vocabulary()
    chances = logits.softmax(dim=-1)
    expected = expected.masked_fill(chances < 0.15 * chances.amax(dim=-1, keepdim=True), -torch.inf)
    torch.testing.assert_close(after[3:5], expected[3:5])
    innocent = [0, 1, 2, 5]
    assert torch.equal(after[innocent], logits[innocent])

    class Pending(AsyncModelRunnerOutput):
        def get_output(self):
            return SimpleNamespace()

    numbers = worker.attach(lambda *_: Pending(), runner, None).get_output().otter
    assert numbers.keys() == {"2", "3"}
    near = lambda numbers: [pytest.approx([number], abs=1e-5) for number in numbers.tolist()]  # noqa: E731
    assert numbers["2"]["reward"] == near(reward.prefix[:1, 0])
    assert numbers["2"]["guard"] == near(guard.prefix[:1, 0])
    assert numbers["3"] == {"guard": near(guard.prefix[1:3, 0])}
    assert not hasattr(worker.attach(lambda *_: SimpleNamespace(), runner, None), "otter")
    # Of a prompt of three tokens, the first was read before. The fourth is not the prompt's.
    model.watcher.schedule([("4", client.request(folder, prompt_tokens=1)["extra_args"], 3)], ["0", "1", "2", "3"], 3)
    batch = SimpleNamespace(
        req_ids=["4"],
        expanded_idx_mapping=torch.tensor([4]),
        cu_num_logits_np=np.array([0, 1]),
        query_start_loc_np=np.array([0, 3]),
        num_computed_prefill_tokens_np=np.array([1]),
    )
    worker.sample_second(lambda *_: "output", runner, hidden, batch, None)
    start, read = worker.attach(lambda *_: Pending(), runner, None).get_output().otter_prompts["4"]
    assert start == 1
    for name, signal in model.signals(hidden[:2], ["reward", "guard"]).items():
        assert read[name] == near(signal.prefix[:, 0])
    model.watcher.schedule([], ["4"], 0)


@pytest.mark.parametrize("aggregate", [True, False])
def test_outputs_that_are_fetched_late_are_merged_with_their_numbers(aggregate):
    upstream.install()

    def output(*completions):
        return RequestOutput("request", None, [1], None, list(completions), finished=False)

    def completion(index, tokens, numbers):
        made = CompletionOutput(index, "", tokens, None, None)
        made.otter = {"rewards": {"reward": numbers}}
        return made

    merged = output(completion(0, [5], [1.0]))
    merged.add(output(completion(1, [6], [2.0])), aggregate)
    # Streamed pieces are joined; outputs of everything so far take each other's place.
    merged.add(output(completion(0, [7], [3.0]) if aggregate else completion(0, [5, 7], [1.0, 3.0])), aggregate)
    assert [(each.token_ids, client.rewards(each)) for each in merged.outputs] == [
        ([5, 7], {"reward": [1.0, 3.0]}),
        ([6], {"reward": [2.0]}),
    ]


def test_preemption_in_another_process(folder, plain, transformers_path) -> None:
    """The cache holds a part of the requests, so some are thrown out and read again."""
    long = {"max_tokens": 100}
    batches = [
        (PROMPTS, greedy(**long, **client.request(folder, rewards=1))),
        (PROMPTS, greedy(**long, **client.request(folder, rewards=1, threshold=0.0, guard="guard", patience=3))),
    ]
    whole, ended = answers(
        folder, *batches, multiprocess=True, block_size=32, num_gpu_blocks_override=14, max_num_batched_tokens=32
    )
    assert [answer.tokens[:12] for answer in whole] == tokens_of(plain)[:8]
    assert_rewards(transformers_path, whole, "reward", "guard")
    lengths = [guarded(answer.rewards["guard"], 0.0, patience=3) for answer in whole]
    assert min(lengths) < 100
    assert tokens_of(ended) == [answer.tokens[:length] for answer, length in zip(whole, lengths, strict=True)]
    assert_rewards(transformers_path, ended, "reward")


def test_tensor_parallel(tmp_path: Path) -> None:
    """Two processes: each has half of the base's heads and units, and all of what is inserted."""
    folder = make_folder(tmp_path, signals=("reward",), num_attention_heads=4, num_key_value_heads=2)
    batches = [
        (PROMPTS, greedy(**client.request(folder, rewards=1))),
        (PROMPTS, greedy(**client.request(folder, weight=3.0))),
    ]
    (plain,) = answers(folder.parent / "base", (PROMPTS, greedy()), tensor_parallel_size=2)
    whole, steered = answers(folder, *batches)
    split, split_steered = answers(folder, *batches, tensor_parallel_size=2)
    assert tokens_of(split) == tokens_of(plain)
    assert tokens_of(split_steered) == tokens_of(steered) != tokens_of(plain)
    for ours, theirs in zip(split, whole, strict=True):
        assert ours.rewards["reward"] == pytest.approx(theirs.rewards["reward"], abs=1e-4)
