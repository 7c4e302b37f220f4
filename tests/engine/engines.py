"""What the tests of the engine share: small exported folders, and engines on them. The CPU kernels want heads of 32."""

import json
import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
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

from otterlm import ContrastConfig, DraftConfig, OtterModel
from otterlm.engines.exported import export
from otterlm.engines.vllm.channels import rewards_of

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
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, after four special ones; ids beyond stay unused."""
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


def make_folder(out: Path, model_type: str = "llama", signals: tuple[str, ...] = tuple(SIGNALS), **sizes: Any) -> Path:
    """A base in `out/base`, adapters beside it, and all of it exported to `out/export`."""
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
    """What came back for one prompt."""

    prompt: list[int]
    tokens: list[int]
    rewards: dict[str, list[float]]
    logprobs: list[dict[int, float]]

    @classmethod
    def of(cls, output: Any, channels: Mapping[str, int]) -> Self:
        """From vLLM's output."""
        own = output.outputs[0]
        steps = own.logprobs or []
        logprobs = [{token: entry.logprob for token, entry in step.items()} for step in steps]
        return cls(list(output.prompt_token_ids), list(own.token_ids), rewards_of(steps, channels), logprobs)


def engine(folder: Path, **settings: Any) -> LLM:
    """An engine in this process. There can be one: it owns global state of vLLM's."""
    defaults: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 8}
    return LLM(model=str(folder), **(defaults | settings))


def _answers(folder: Path, asked: list[tuple[list[Any], Any]], settings: dict[str, Any]) -> list[list[Answer]]:
    if settings.get("tensor_parallel_size", 1) > 1:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    llm = engine(folder, **settings)
    channels = json.loads((folder / "config.json").read_text()).get("otter_channels") or {}
    found = []
    for batch, parameters in asked:
        outputs = llm.generate(batch, parameters, use_tqdm=False)
        found.append([Answer.of(output, channels) for output in outputs])
    return found


def answers(folder: Path, *asked: tuple[list[Any], Any], **settings: Any) -> list[list[Answer]]:
    """What an engine in a process of its own answers to some batches, each with its sampling parameters."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_answers, folder, list(asked), settings).result()


def greedy(**settings: Any) -> SamplingParams:
    """Twelve tokens, greedily, without an end."""
    return SamplingParams(**({"temperature": 0, "max_tokens": 12, "ignore_eos": True} | settings))


def prompts(count: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Prompts of 3 to 60 tokens; every other one begins as the one before it, for the prefix cache."""
    generator = torch.Generator().manual_seed(seed)
    found: list[list[int]] = []
    for index in range(count):
        length = int(torch.randint(3, 30, (1,), generator=generator))
        own = torch.randint(4, VOCABULARY - 60, (length,), generator=generator).tolist()
        found.append([*found[-1][:40], *own] if index % 2 else own)
    return [{"prompt_token_ids": ids} for ids in found]


def said(outputs: list[Any]) -> list[list[int]]:
    """The tokens of each request's output."""
    return [list(output.outputs[0].token_ids) for output in outputs]


def tokens_of(found: list[Answer]) -> list[list[int]]:
    return [answer.tokens for answer in found]


def assert_rewards(model: Any, found: list[Answer], signal: str = "reward") -> None:
    """The rewards are what the Transformers path says of the texts that each token was chosen after."""
    for answer in found:
        with torch.no_grad():
            rewards = model(torch.tensor([[*answer.prompt, *answer.tokens]])).signals[signal].prefix[0]
        told = torch.tensor(answer.rewards[signal])
        torch.testing.assert_close(told, rewards[len(answer.prompt) - 1 : -1], atol=1e-4, rtol=0)
