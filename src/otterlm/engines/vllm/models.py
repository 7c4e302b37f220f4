"""Defines vLLM's model classes with what is inserted, such as `OtterLlamaForCausalLM`."""

from collections.abc import Iterable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from otterlm.config import OtterConfig
from otterlm.detection import recognize
from otterlm.engines.exported import ADAPTERS, base_config, read_adapters
from otterlm.engines.vllm.kernels import operators
from otterlm.engines.vllm.paged import NONE, PagedLayer, narrowed
from otterlm.engines.vllm.replacing import Replacement
from otterlm.engines.vllm.rows import Step
from otterlm.engines.vllm.steering import Steering
from otterlm.engines.vllm.upstream import install_compiler, install_worker, served, shared
from otterlm.engines.vllm.upstream.names import (
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    VllmConfig,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
)
from otterlm.engines.vllm.watching import Watcher
from otterlm.engines.vllm.widening import Widening, shard_and_pack
from otterlm.errors import OtterError
from otterlm.families import Family
from otterlm.signals import head_class
from otterlm.signals.base import Capability, Signal
from otterlm.stream import InsertedStream


class EngineAdapter(nn.Module):
    """The adapter is an inserted stream with paged attention, and its head. Tensors have the names of adapter files.

    Args:
        config: its shape.
        base: the base as Transformers has it, without weights; only shapes are read.
        family: the base's.
        dtype: of the parameters.
    """

    def __init__(self, config: OtterConfig, base: Any, family: Family, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.stream = InsertedStream(config, base, family, dtype, layer=PagedLayer)
        widths = self.stream.widths
        head = head_class(config.signal)
        self.head = head(config.signal, widths.base + widths.inserted, widths.base, dtype=dtype)


class Otter:
    """Is mixed into a model class of vLLM. `forward` returns [h, h'_1, h'_2, ...]; the base's modules see h alone.

    Attributes:
        states: those of the latest `compute_logits`, by adapter, `[N, 1, d + d']`.
        sampled: those that were sampled from. Prompts' log probabilities may have come after them.
        rows: of each request of the batch among `sampled`, see `rows_of`.
        step: the latest that was sampled from.
        fused: widened blocks are operators, see `kernels`.
        slots: of the second runner, the slot that each row's request has, `[N]`.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        config: Any = vllm_config.model_config.hf_config
        with torch.device("meta"):
            base = AutoModelForCausalLM.from_config(base_config(config))
        configs = read_adapters(config)
        family = recognize(base)
        if not isinstance(family, Family) or any(adapter.taps == "edge" for adapter in configs.values()):
            raise OtterError("the vLLM engine serves no adapters that read blocks at their edge: use Transformers")
        make = partial(EngineAdapter, base=base, family=family, dtype=vllm_config.model_config.dtype)
        adapters = {name: make(adapter_config) for name, adapter_config in configs.items()}
        model: Any = self
        narrow = cache(narrowed)
        for name, adapter in adapters.items():
            inserted: dict[str, Any] = dict(adapter.stream.layers.items())
            stride = adapter.stream.widths.base_head_dim // adapter.stream.widths.head_dim
            for index, layer in inserted.items():
                attention = model.model.layers[int(index)].self_attn
                rotary = narrow(attention.rotary_emb, stride)
                layer.attach(vllm_config, f"model.layers.{index}.otter_{name}.attn", attention.attn, rotary)
        model.otter = nn.ModuleDict(adapters)
        streams = {name: adapter.stream for name, adapter in adapters.items()}
        layers = [layer for stream in streams.values() for layer in stream.layers.children()]
        self.fused = operators.usable(vllm_config, layers)
        self._widening = Widening(model.model, family, streams, self.fused)
        self._widths = [config.hidden_size, *(adapter.config.hidden_size for adapter in adapters.values())]
        self._vocabulary_size = config.vocab_size
        shared(vllm_config).model = self
        self._config = vllm_config
        self.watcher = Watcher(self, served(vllm_config))
        self.replacement = Replacement(self, vllm_config, make)
        # vLLM makes none where drafts are verified, see `upstream.worker`.
        self.steering = None if vllm_config.speculative_config is None else Steering(vllm_config)
        install_worker()
        if vllm_config.compilation_config.mode != NONE:
            install_compiler()
        self.states: dict[str, Tensor] = {}
        self.sampled: dict[str, Tensor] = {}
        self.rows: list[range] = []
        self.step: Step | None = None
        self.slots: Tensor | None = None

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Maps rows, `[N, d + d'_1 + ...]`, to the base's logits, `[N, V]`, and stores their states for the signals."""
        hidden = hidden_states[:, : self._widths[0]]
        logits: Tensor | None = super().compute_logits(hidden.contiguous())  # type: ignore[misc]
        self.states = self._split(hidden_states)
        return logits

    def _split(self, hidden_states: Tensor) -> dict[str, Tensor]:
        """Splits rows, `[N, d + d'_1 + ...]`, into each adapter's states, `[N, 1, d + d']`."""
        names = list(self.otter)  # type: ignore[attr-defined]
        if len(names) == 1:
            return {names[0]: hidden_states.unsqueeze(1)}
        hidden, *inserted = hidden_states.split(self._widths, dim=-1)
        return {
            name: torch.cat((hidden, part), dim=-1).unsqueeze(1) for name, part in zip(names, inserted, strict=True)
        }

    def signals(self, hidden_states: Tensor, names: Iterable[str]) -> dict[str, Signal]:
        """Returns what some adapters predict at rows that `forward` gave, one position each."""
        states = self._split(hidden_states)
        return {name: self._head(name, states[name]) for name in names}

    def _head(self, name: str, states: Tensor) -> Signal:
        head = self.otter[name].head  # type: ignore[attr-defined]
        return head(states, self.lm_head.weight)  # type: ignore[attr-defined]

    def signal(self, name: str, rows: Tensor | slice | list[int] = slice(None), sampled: bool = False) -> Signal:
        """Returns what an adapter predicts at some rows of the latest `compute_logits`, one position each.

        Of numbers for the whole vocabulary each process has its part, see `gather`.

        Args:
            name: of the adapter.
            rows: all, if they are left out.
            sampled: of the latest call that was sampled from instead.
        """
        states = self.sampled if sampled else self.states
        return self._head(name, states[name][rows])

    def unit(self, name: str) -> float:
        """Returns what steering weights of an adapter count in, see `SignalConfig.unit`."""
        unit: float = self.otter[name].config.signal.unit  # type: ignore[attr-defined]
        return unit

    def rewards(self, signal: Any, tokens: Tensor | None) -> Tensor:
        """Returns what a signal expects after some next tokens of each row, `[N, k]`, or after all, `[N, V]`."""
        if tokens is None or get_tensor_model_parallel_world_size() > 1:
            rewards = self.gather(signal.vocabulary())
            return rewards if tokens is None else rewards.gather(-1, tokens)
        expected: Tensor = signal.vocabulary(tokens)
        return expected

    @torch.inference_mode()
    def warm(self) -> None:
        """Computes what heads remember of every token, where it is not known yet, so that the first steered steps take
        no longer than later ones."""
        for name, each in served(self._config).signals.items():
            if Capability.ADDS in each:
                width = self._widths[0] + self.otter[name].config.hidden_size  # type: ignore[attr-defined]
                signal: Any = self._head(name, self.lm_head.weight.new_zeros(1, 1, width))  # type: ignore[attr-defined]
                signal.vocabulary()

    def gather(self, scores: Tensor) -> Tensor:
        """Gathers the scores of each process's part of the vocabulary to those of all of it, `[N, V]`."""
        if get_tensor_model_parallel_world_size() > 1:
            scores = tensor_model_parallel_all_gather(scores)
        return scores[:, : self._vocabulary_size]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Loads weights, see vLLM's class. Otter's are those whose names begin with `otter.`."""
        model: Any = self
        # The other tensors are buffers of vLLM's kernels.
        tensors = model.otter.state_dict(prefix=f"{ADAPTERS}.").items()
        inserted = {name: tensor for name, tensor in tensors if ".kernel." not in name}
        seen: set[str] = set()

        def others() -> Iterable[tuple[str, Tensor]]:
            for name, tensor in weights:
                if not name.startswith(f"{ADAPTERS}."):
                    yield name, tensor
                    continue
                if name not in inserted or inserted[name].shape != tensor.shape:
                    raise OtterError(f"{name} of shape {list(tensor.shape)} does not fit config.json: export again")
                inserted[name].copy_(tensor)
                seen.add(name)

        loaded = super().load_weights(others())  # type: ignore[misc]
        if missing := inserted.keys() - seen:
            raise OtterError(f"the folder lacks {len(missing)} tensors, such as {min(missing)}: export again")
        for adapter in model.otter.values():
            shard_and_pack(adapter.stream, model.fused)
        return set(loaded) | {f"{ADAPTERS}.{name}" for name, _ in model.otter.named_parameters()}


class OtterLlamaForCausalLM(Otter, LlamaForCausalLM):
    """Is the widened Llama."""


class OtterMistralForCausalLM(Otter, MistralForCausalLM):
    """Is the widened Mistral."""


class OtterQwen2ForCausalLM(Otter, Qwen2ForCausalLM):
    """Is the widened Qwen 2 and 2.5."""


class OtterQwen3ForCausalLM(Otter, Qwen3ForCausalLM):
    """Is the widened Qwen 3."""
