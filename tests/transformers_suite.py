"""Runs Transformers' tests of models and of generation on an OtterModel where they expect a plain model.

They are not part of its wheel, and are read as data: never installed, never copied into this repository. pip downloads
the sdist of the installed version once. It holds the tests of models (`tests/test_modeling_common.py`) but not those of
generation, so OTTER_TRANSFORMERS may name a checkout, which has both:

    git clone --depth 1 --branch v5.23.0 https://github.com/huggingface/transformers
"""

import importlib
import inspect
import os
import subprocess
import sys
import tarfile
import tempfile
import types
import unittest
from pathlib import Path
from typing import Any

os.environ["RUN_SLOW"] = "1"  # what Transformers calls slow is quick on tiny models

import torch
import transformers
from conftest import add_tiny_adapter
from families import SIZES
from torch import Tensor
from transformers import AutoConfig, LogitsProcessor, PreTrainedModel

from otterlm.model import OtterModel
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.smollm2 import cache_folder

VARIABLE = "OTTER_TRANSFORMERS"
# Windows are longer than any text here: the tests expect a cache that keeps everything.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3_moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "gemma2": {"head_dim": 16, "sliding_window": 64},
    "gemma3_text": {"head_dim": 16, "sliding_window": 64},
    "gpt2": {"n_inner": 48, "num_key_value_heads": 4},
}
SHAPE = {"hidden_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 10}
ADAPTERS: dict[str, dict[str, Any]] = {"reward": {}, "contrast": {"layers": (1,), "signal": ContrastConfig(rank=4)}}


def load_mixins() -> tuple[type, type]:
    """Loads Transformers' tests of models and of generation; the latter without tests where only the sdist is there.

    Raises:
        subprocess.CalledProcessError: the sdist cannot be downloaded.
    """
    checkout = os.environ.get(VARIABLE)
    # Not by `sys.path`: an installed package may be called `tests`, too, and nothing of it may hide another.
    package = sys.modules["tests"] = types.ModuleType("tests")
    package.__path__ = [str(Path(checkout or _sdist(), "tests"))]
    if not checkout:
        for folder, file, mixin in (
            ("exporters", "test_export", "ExportTesterMixin"),
            ("generation", "test_utils", "GenerationTesterMixin"),
        ):
            sys.modules[f"tests.{folder}"] = types.ModuleType(folder)
            module = sys.modules[f"tests.{folder}.{file}"] = types.ModuleType(file)
            setattr(module, mixin, type(mixin, (), {}))
    common = importlib.import_module("tests.test_modeling_common")
    # It looks among a tensor's parents for a PreTrainedModel, without end where the outermost is none.
    common.find_parent_traceback = lambda name, model: (name, "", "")  # type: ignore[attr-defined]
    return common.ModelTesterMixin, common.GenerationTesterMixin


def _sdist() -> Path:
    """Returns the unpacked sdist of the installed version, in Otter's cache folder."""
    name = f"transformers-{transformers.__version__}"
    folder = cache_folder() / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            options = ["--quiet", "--no-deps", "--no-binary=:all:", f"--dest={temporary}"]
            command = [sys.executable, "-m", "pip", "download", *options, name.replace("-", "==")]
            subprocess.run(command, check=True)
            with tarfile.open(Path(temporary, f"{name}.tar.gz")) as archive:
                archive.extractall(temporary, filter="data")
            Path(temporary, name).rename(folder)
    return folder


class _Wrapping(type):
    """Of a class that stands in for a model class: to call it wraps what that makes, and its attributes are that's."""

    plain: type[PreTrainedModel]

    def __getattr__(cls, name: str) -> Any:
        if "plain" not in cls.__dict__:
            raise AttributeError(name)
        return getattr(cls.plain, name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.wrap(cls.plain(*args, **kwargs))

    def wrap(cls, base: PreTrainedModel) -> Any:
        otter = super().__call__(base)
        for name, config in ADAPTERS.items():
            add_tiny_adapter(otter, name, **(SHAPE | config))
        return otter.train(base.training)


class _Listening(LogitsProcessor):
    """Checks that each pass of a generation gave every adapter's signal."""

    def __init__(self, model: OtterModel) -> None:
        self.model = model
        self.states: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        earlier, self.states = self.states, [self.model.signals[name].state for name in ADAPTERS]
        assert not any(new is old for new, old in zip(self.states, earlier, strict=False)), "a pass gave no signals"
        return scores


class _Wrapped(OtterModel, metaclass=_Wrapping):
    """Has random adapters, and checks that they speak in every pass; it is loaded and saved as the plain model."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        listening = _Listening(self)
        listening.states = [signal.state for signal in self.signals.values()]
        output = super().forward(*args, **kwargs)
        return output if torch.compiler.is_compiling() else listening(None, output)  # type: ignore[arg-type]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.keys() & {"assistant_model", "prompt_lookup_num_tokens"}:  # they ask several times a pass
            kwargs["logits_processor"] = [*kwargs.get("logits_processor", []), _Listening(self)]
        return super().generate(*args, **kwargs)

    @classmethod
    def _from_config(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return cls.wrap(cls.plain._from_config(*args, **kwargs))

    @classmethod
    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = cls.plain.from_pretrained(*args, **kwargs)
        return (cls.wrap(loaded[0]), *loaded[1:]) if isinstance(loaded, tuple) else cls.wrap(loaded)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        self.base_model.save_pretrained(*args, **kwargs)


def wrapped(plain: type[PreTrainedModel]) -> Any:
    """Makes a class of OtterModels over what `plain` makes; to who inspects it, it looks like `plain`."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _Wrapped.forward(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(plain.forward)  # type: ignore[attr-defined]
    forward.__annotations__ = plain.forward.__annotations__
    return _Wrapping(plain.__name__, (_Wrapped,), {"plain": plain, "forward": forward, "__module__": plain.__module__})


class Tester:
    """Provides what the tests need of a model's tester."""

    batch_size, seq_length, is_training = 3, 7, True

    def __init__(self, architecture: str) -> None:
        self.values = {"num_hidden_layers": 2, **ARCHITECTURES[architecture]}
        self.values = SIZES | self.values
        self.architecture = architecture
        for name, value in self.values.items():
            setattr(self, name, value)

    def get_config(self) -> Any:
        return AutoConfig.for_model(self.architecture, **self.values)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        ids = torch.randint(3, self.values["vocab_size"], (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids).tril()}


def suite(architecture: str, model_class: Any, mixins: tuple[type, type]) -> type[unittest.TestCase]:
    """Makes Transformers' tests of a model class."""

    class Suite(*mixins, unittest.TestCase):  # type: ignore[misc]
        all_model_classes = all_generative_model_classes = (model_class,)

        def setUp(self) -> None:
            self.model_tester = Tester(architecture)

        def _check_past_key_values_for_generate(
            self, batch_size: int, past_key_values: Any, seq_length: int, config: Any
        ) -> None:
            """Checks the base's layers; the adapters' come after them."""
            layers = past_key_values.layers
            past_key_values.layers = layers[: config.num_hidden_layers]
            super()._check_past_key_values_for_generate(batch_size, past_key_values, seq_length, config)
            past_key_values.layers = layers

    return Suite


def plain_class(architecture: str) -> type[PreTrainedModel]:
    """Returns the architecture's causal language model."""
    config = AutoConfig.for_model(architecture, **ARCHITECTURES[architecture])
    return transformers.AutoModelForCausalLM._model_mapping[type(config)]


def outcome(case: unittest.TestCase) -> tuple[str, str]:
    """Returns `passed`, `skipped` or `failed`, and why."""
    result = unittest.TestResult()
    case.run(result)
    wrong = result.failures + result.errors
    if wrong:
        return "failed", wrong[0][1]
    return ("skipped", result.skipped[0][1]) if result.skipped else ("passed", "")
