"""Defines tiny random bases and adapters that every test shares. Nothing here uses the network."""

import gzip
import importlib.util
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from word_tokenizer import TEMPLATE, WORDS, tokenizer

from otterlm.config import OtterConfig
from otterlm.decoding import pass_costs
from otterlm.engines.vllm.kernels import building
from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.signals.reward.config import RewardConfig

torch.set_num_threads(1)

# The engine's tests have an environment of their own: make test-vllm.
collect_ignore = [] if importlib.util.find_spec("vllm") else ["engine"]

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
WIDTH, LAYERS, VOCABULARY = 32, 4, 97
NEW = 6
"""Tokens that `generate` adds."""


def since(version: str) -> pytest.MarkDecorator:
    """Skips a test of what older versions of Transformers do not have, see `make test-oldest`."""
    return pytest.mark.skipif(Version(transformers.__version__) < Version(version), reason=f"Transformers < {version}")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the processes a test starts; the libraries of this one read it when they were imported."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _costs(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Measured costs of passes stay out of the user's cache folder."""
    monkeypatch.setattr(pass_costs, "cache_folder", lambda: tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def _no_lines_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of what a command prints must not depend on how long a busy machine takes."""
    monkeypatch.setattr("otterlm.progress.INTERVAL", math.inf)


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> None:
    """Sets values that no two slices share: matrices N(0, 0.2), biases N(0, 0.3), norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            noise = noise * (1.0 if "embed" in name or "table" in name else 0.2)
        else:
            noise = 0.3 * noise + (0.0 if name.endswith("bias") else 1.0)
        parameter.copy_(noise)


def tiny_base(
    model_type: str = "llama",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    seed: int = 0,
    **overrides: Any,
) -> PreTrainedModel:
    """Makes a frozen base of 4 layers, 4 heads and 2 key/value heads, the same one for the same arguments.

    Frozen, because torch.matmul picks another kernel for a weight that requires a gradient, also under no_grad.
    """
    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if model_type == "qwen3":
        sizes["head_dim"] = 16
    config = AutoConfig.for_model(model_type, **(sizes | overrides))
    base = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    randomize(base, seed)
    return base.requires_grad_(False).to(dtype).eval()


def with_lora(seed: int = 0) -> Any:
    """Makes a tiny base with a LoRA adapter of PEFT."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    return get_peft_model(tiny_base(), lora).requires_grad_(False).eval()


def tiny_config(**config: Any) -> OtterConfig:
    """Returns a small adapter's configuration."""
    small: dict[str, Any] = {
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 12,
        "initialization": "normal",
        "layers": None,
        "signal": RewardConfig(vocabulary_rank=16, vocabulary_hidden=8),
    }
    return OtterConfig(**(small | config))


def add_tiny_adapter(otter: OtterModel, name: str, seed: int = 1, dtype: Any = None, **config: Any) -> None:
    """One more adapter; its stream is random unless it is a copy of the base, its head is random."""
    otter.add_adapter(tiny_config(**config), name, dtype)
    adapter = otter.adapter(name)
    if adapter.config.initialization != "copy":
        randomize(adapter.stream, seed)
    randomize(adapter.head, seed + 1000)


def tiny_otter(base: PreTrainedModel, seed: int = 1, dtype: Any = None, **config: Any) -> OtterModel:
    """Makes a base with one adapter, named reward."""
    otter = OtterModel(base)
    add_tiny_adapter(otter, "reward", seed, dtype, **config)
    return otter.eval()


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Returns random token ids, none of them special."""
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def batch() -> dict[str, Tensor]:
    """Returns two prompts, the second left-padded."""
    ids = tokens(2, 7)
    mask = torch.ones_like(ids)
    ids[1, :3], mask[1, :3] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def generate(model: Any, **settings: Any) -> Any:
    """Generates after `batch`, greedily and `NEW` tokens long by default."""
    defaults = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(**(batch() | defaults | settings))


class Listener:
    """Is a streamer that records its tokens, -1 for the end."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.tokens.append(-1)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Asserts that two tensors agree, absolutely and relatively."""
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance, check_dtype=False)


def error_of(call: Callable[[], object]) -> str:
    """Asserts that a call raises an OtterError of one line, and returns the line."""
    with pytest.raises(OtterError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message, message
    return message


def refused(call: Callable[[], object], words: str, *more: str) -> None:
    """Asserts that a call raises an OtterError of one line that has these words, which no other message has."""
    message = error_of(call)
    for each in (words, *more):
        assert each in message, message


# -- the command -------------------------------------------------------------------------------------------------------

SHAPE = ("--hidden-size", 8, "--heads", 2, "--kv-heads", 1, "--intermediate-size", 12)
"""A small adapter's shape, as options."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a folder with a tiny model and its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    tiny_base(vocab_size=len(WORDS)).save_pretrained(folder)
    tokenizer(TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(base, tmp_path: Path) -> Path:
    """Makes an adapter for the base."""
    tiny_otter(tiny_base(vocab_size=len(WORDS))).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def reward_model(folder: Path, seed: int) -> Path:
    """Makes a random separate reward model and its tokenizer, in a folder."""
    from otterlm.training.teachers.reward_model import SeparateRewardModel

    model = SeparateRewardModel.of(tiny_base(vocab_size=len(WORDS), seed=seed))
    randomize(model.classifier.score, seed)
    model.save_pretrained(folder)
    tokenizer(TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Forty pairs: the better response says a and b, the worse one i and j."""
    path = tmp_path / "pairs.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for i in range(40):
            turn = f"\n\nHuman: {WORDS[10 + i % 8]} {WORDS[10 + i // 8]}\n\nAssistant: "
            file.write(json.dumps({"chosen": f"{turn}a b", "rejected": f"{turn}i j"}) + "\n")
    return path


@pytest.fixture
def otter(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command; returns exit code, stdout and stderr."""
    from otterlm.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["otter", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        return int(exit.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def answer(otter):
    """Runs the command with --json and returns the object, the only thing on stdout."""

    def run(*arguments: object) -> dict[str, Any]:
        code, out, err = otter(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return run


@pytest.fixture
def refusal(otter):
    """Asserts that the command fails with exit code 2, one line on stderr and nothing on stdout; returns the line."""

    def run(*arguments: object) -> str:
        code, out, err = otter(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("otter: ")
        assert err.count("\n") == 1
        return err

    return run


needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Builds the C++ operators into a cache of its own, for the tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "cache_folder", lambda: tmp_path_factory.mktemp("cache"))
        building.library.cache_clear()
        yield building.library()
    building.library.cache_clear()
