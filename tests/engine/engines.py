"""Makes what the tests of the engine share: small exported folders, and engines on them.

The CPU kernels want heads of 32.
"""

import itertools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
}

import torch
from conftest import add_tiny_adapter, tiny_base
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMValidationError

from otterlm import ContrastConfig, DraftConfig, GuardConfig, OtterModel, client
from otterlm.engines.exported import export

VOCABULARY = 320
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 96,
    "head_dim": 64,
    "num_attention_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
}
SIGNALS: dict[str, dict[str, Any]] = {
    "reward": {},
    "guard": {"seed": 2, "head_dim": 32},
    "contrast": {"signal": ContrastConfig(rank=8)},
    "draft": {"signal": DraftConfig(heads=3, width=16, rank=8, vocabulary_size=64)},
    "moderator": {"seed": 3, "signal": GuardConfig(("rude", "threat"), spans=("threat",), vocabulary_rank=4)},
}
PLAIN = ("reward", "guard", "contrast", "draft")
"""Adapters without labels. The one that is called guard is a reward."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Makes a tokenizer of bytes, after four special ones; ids beyond stay unused."""
    marks = ["<pad>", "<s>", "</s>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*marks, *alphabet])}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return fast


def make_folder(out: Path, model_type: str = "llama", signals: tuple[str, ...] = PLAIN, **sizes: Any) -> Path:
    """Makes a base in `out/base`, adapters beside it, and all of it exported to `out/export`."""
    base = tiny_base(model_type, **(SIZES | sizes))
    base.save_pretrained(out / "base")
    tokenizer().save_pretrained(out / "base")
    model = OtterModel(base)
    for name in signals:
        add_tiny_adapter(model, name, **SIGNALS[name])
        model.save_pretrained(out / name, name)
    export(str(out / "base"), {name: out / name for name in signals}, out / "export")
    return out / "export"


@dataclass(frozen=True)
class Answer:
    """An answer is one text that an engine returns for a prompt."""

    prompt: list[int]
    tokens: list[int]
    rewards: dict[str, list[float]]
    logprobs: list[dict[int, float]]
    stop_reason: Any = None
    guards: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    spans: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    at_prompt: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, output: Any, index: int = 0) -> Self:
        """Reads vLLM's output, which has several texts if they were asked for."""
        text = output.outputs[index]
        logprobs = [{token: entry.logprob for token, entry in step.items()} for step in text.logprobs or []]
        prompt, tokens = list(output.prompt_token_ids), list(text.token_ids)
        labelled = client.guards(text), client.spans(text), client.prompt(text)
        return cls(prompt, tokens, client.rewards(text), logprobs, text.stop_reason, *labelled)


def engine(folder: Path, **settings: Any) -> LLM:
    """Makes an engine in this process. There can be only one: it has global state of vLLM."""
    defaults: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 8}
    return LLM(model=str(folder), **(defaults | settings))


def _answers(folder: Path, batches: list[tuple[list[Any], Any]], settings: dict[str, Any]) -> list[Any]:
    if settings.pop("multiprocess", settings.get("tensor_parallel_size", 1) > 1):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    counting = settings.pop("count", False)
    llm = engine(folder, **settings, disable_log_stats=not counting)
    results: list[Any] = []
    for batch, parameters in batches:
        try:
            outputs = llm.generate(batch, parameters, use_tqdm=False)
        except VLLMValidationError as error:
            results.append(str(error))
        else:
            results.append([Answer.of(output, index) for output in outputs for index in range(len(output.outputs))])
    if counting:
        counts = {metric.name: getattr(metric, "value", None) for metric in llm.get_metrics()}
        names = {"drafted": "vllm:spec_decode_num_draft_tokens", "accepted": "vllm:spec_decode_num_accepted_tokens"}
        results.append({short: counts[name] for short, name in names.items()})
    return results


def answers(folder: Path, *batches: tuple[list[Any], Any], **settings: Any) -> list[Any]:
    """Returns an engine's answers to batches, each with its sampling parameters, in another process: a list of
    `Answer`, or the message of a refusal. With `count=True` the last is how many drafts were verified and accepted."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_answers, folder, list(batches), settings).result()


def greedy(**settings: Any) -> SamplingParams:
    """Returns the settings for twelve tokens, greedily, without an end."""
    return SamplingParams(**({"temperature": 0, "max_tokens": 12, "ignore_eos": True} | settings))


def prompts(count: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Prompts of 3 to 60 tokens; every other one begins as the one before it, for the prefix cache."""
    generator = torch.Generator().manual_seed(seed)
    results: list[list[int]] = []
    for index in range(count):
        length = int(torch.randint(3, 30, (1,), generator=generator))
        fresh = torch.randint(4, VOCABULARY - 60, (length,), generator=generator).tolist()
        results.append([*results[-1][:40], *fresh] if index % 2 else fresh)
    return [{"prompt_token_ids": ids} for ids in results]


def ids_of(outputs: list[Any]) -> list[list[int]]:
    """Returns the tokens of each request's output."""
    return [list(output.outputs[0].token_ids) for output in outputs]


def tokens_of(outputs: list[Answer]) -> list[list[int]]:
    return [answer.tokens for answer in outputs]


def assert_rewards(model: Any, outputs: list[Answer], *signals: str) -> None:
    """The rewards are the Transformers path's, of the texts that each token was chosen after."""
    for answer in outputs:
        with torch.no_grad():
            expected = model(torch.tensor([[*answer.prompt, *answer.tokens]])).signals
        for signal in signals or ("reward",):
            assert len(answer.rewards[signal]) == len(answer.tokens)
            rewards = expected[signal].prefix[0, len(answer.prompt) - 1 : -1]
            torch.testing.assert_close(torch.tensor(answer.rewards[signal]), rewards, atol=1e-4, rtol=0)


def guarded(rewards: list[float], threshold: float, patience: int = 1, least: int = 0) -> int:
    """Returns how long a response is under a guard, by the rewards of the unguarded one."""
    # The reward of a token is known when the next is chosen, and the first is the prompt's.
    for length in range(patience, len(rewards)):
        if length >= least and all(reward < threshold for reward in rewards[length - patience + 1 : length + 1]):
            return length
    return len(rewards)


def between(rewards: list[list[float]]) -> float:
    """Returns a threshold in the widest gap between low rewards: batches round differently."""
    ranked = sorted(reward for row in rewards for reward in row[1:])
    low = ranked[len(ranked) // 20 : len(ranked) // 6]
    _, threshold = max((right - left, (left + right) / 2) for left, right in itertools.pairwise(low))
    return threshold


def deviation(samples: list[Any], chances: dict[Any, float]) -> float:
    """Returns by how many standard deviations Pearson's statistic is above what is expected of samples.

    Texts that are expected less than five times count as one.
    """
    counts = {text: samples.count(text) for text in chances}
    assert sum(counts.values()) == len(samples)
    cells = [(counts[text], len(samples) * chance) for text, chance in chances.items()]
    rare = [sum(column) for column in zip((0, 0), *(cell for cell in cells if cell[1] < 5), strict=True)]
    cells = [cell for cell in cells if cell[1] >= 5] + [(rare[0], rare[1])] * (rare[1] > 0)
    freedom = len(cells) - 1
    return (sum((count - mean) ** 2 / mean for count, mean in cells) - freedom) / (2 * freedom) ** 0.5
