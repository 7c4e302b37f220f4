"""OtterModel: a frozen base with one or more adapters, each an inserted stream and the signal read from it."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

from otterlm import adapter_files
from otterlm.config import OtterConfig
from otterlm.detection import recognize
from otterlm.errors import OtterError
from otterlm.families import Family
from otterlm.families.parts import device_of, weight_of
from otterlm.fingerprint import fingerprint, same_base
from otterlm.generation import Generation
from otterlm.generation import generate as generate_with
from otterlm.initialization import initialize
from otterlm.signals import HEADS, Signal
from otterlm.stream import InsertedStream, StreamPass
from otterlm.taps import LayerTaps, Taps, Visitor


class Adapter(nn.Module):
    """An inserted stream and its head."""

    def __init__(self, config: OtterConfig, base: PreTrainedModel, family: Family, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        device = device_of(base.get_input_embeddings())
        self.stream = InsertedStream(config, base, family, dtype, device)
        widths = self.stream.widths
        head: Any = HEADS[type(config.signal)]
        self.head = head(config.signal, widths.base + widths.inserted, widths.base, dtype=dtype, device=device)

    def extra_parameters(self, vocabulary_size: int) -> int:
        """How many numbers it keeps in memory: its parameters, and those derived from them and the unembedding."""
        inserted = sum(parameter.numel() for parameter in self.parameters())
        return inserted + self.config.signal.derived_parameters(vocabulary_size)


class OtterModel(nn.Module):
    """A causal language model whose forward pass also gives signals.

    `output.logits` is the base's, bit for bit; `output.signals[name]` is what adapter `name` predicts. Everything else
    (`config`, `device`, `prepare_inputs_for_generation`, ...) is the base's.

    Args:
        base_model: a causal language model of Transformers. It is frozen and carries hooks that are inert outside this
            object.
        config: of a first adapter, freshly initialised; None for none.
        adapter_name: its name; the signal's type by default.
        dtype: of the inserted parameters; the base's by default.

    Raises:
        OtterError: the architecture is neither known nor recognised, or the adapter does not fit it.
    """

    def __init__(
        self,
        base_model: PreTrainedModel,
        config: OtterConfig | None = None,
        adapter_name: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.base_model = base_model.requires_grad_(False).eval()
        self.family = recognize(base_model)
        self.adapters = nn.ModuleDict()
        self._taps = Taps(base_model, self.family, ())
        self._thread = _ThreadState()
        if config is not None:
            self.add_adapter(config, adapter_name, dtype)

    # -- adapters ------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        base_model: PreTrainedModel,
        adapter: str | Path,
        adapter_name: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """A base with a saved adapter.

        Args:
            base_model: the model it was trained on.
            adapter: a folder that `save_pretrained` wrote, or a hub id.
            adapter_name: the name its signal goes by.
            dtype: of the inserted parameters; the base's by default.

        Raises:
            OtterError: the files are missing, corrupt or of another base.
        """
        model = cls(base_model)
        model.load_adapter(adapter, adapter_name, dtype)
        return model.eval()

    def add_adapter(
        self, config: OtterConfig, adapter_name: str | None = None, dtype: torch.dtype | None = None
    ) -> str:
        """Inserts a new, initialised adapter and returns its name."""
        name = self._new_name(adapter_name or config.signal.type)
        adapter = Adapter(config, self.base_model, self.family, dtype or self.base_model.dtype)
        initialize(adapter.stream, config, self.base_model, self.family)
        adapter.head.initialize()
        self._insert(name, adapter)
        return name

    def load_adapter(
        self, adapter: str | Path, adapter_name: str | None = None, dtype: torch.dtype | None = None
    ) -> str:
        """Inserts a saved adapter and returns its name. Arguments and errors as in `from_pretrained`."""
        folder = adapter_files.locate(adapter)
        config = adapter_files.read_config(folder)
        if config.base_fingerprint and not same_base(config.base_fingerprint, fingerprint(self.base_model)):
            raise OtterError(
                f"{adapter} was trained on another base ({config.base_model_name_or_path}); "
                "its weights mean nothing here"
            )
        return self.insert_adapter(config, folder / adapter_files.WEIGHTS, adapter_name, dtype=dtype)

    def insert_adapter(
        self,
        config: OtterConfig,
        weights: Path,
        adapter_name: str | None = None,
        prefix: str = "",
        dtype: torch.dtype | None = None,
    ) -> str:
        """Inserts an adapter of a configuration with the tensors of a file and returns its name.

        Args:
            config: its shape.
            weights: a safetensors file.
            adapter_name: the name its signal goes by; the signal's type by default.
            prefix: of its tensors' names in the file.
            dtype: of the inserted parameters; the base's by default.

        Raises:
            OtterError: the name is taken, or the file is missing, corrupt or of another shape.
        """
        name = self._new_name(adapter_name or config.signal.type)
        adapter = Adapter(config, self.base_model, self.family, dtype or self.base_model.dtype)
        adapter_files.fill(weights, adapter, self.base_model.config.vocab_size, prefix)
        self._insert(name, adapter)
        return name

    @property
    def _adapters(self) -> dict[str, Adapter]:
        return {name: module for name, module in self.adapters.items() if isinstance(module, Adapter)}

    def _new_name(self, name: str) -> str:
        if name in self.adapters:
            raise OtterError(f"there is already an adapter named {name!r}: give adapter_name")
        if not name.isidentifier() or hasattr(self.adapters, name):
            raise OtterError(f"an adapter cannot be named {name!r}: choose another identifier")
        return name

    def _insert(self, name: str, adapter: Adapter) -> None:
        self.adapters[name] = adapter.train(self.training)
        self._taps.remove()
        self._taps = Taps(self.base_model, self.family, self.watched_layers)

    @property
    def watched_layers(self) -> tuple[int, ...]:
        """The blocks that one adapter or another widens."""
        return tuple(sorted({layer for a in self._adapters.values() for layer in a.stream.widths.layers}))

    def save_pretrained(
        self,
        folder: str | Path,
        adapter_name: str | None = None,
        card: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Writes an adapter: `adapter_config.json`, `adapter_model.safetensors` (inserted tensors only), `README.md`.

        Args:
            folder: created if need be.
            adapter_name: which; may be left out where there is one.
            card: text of the README, after a line of metadata; a short one is made by default.
            dtype: of the file's tensors; as they are by default.

        Raises:
            OtterError: it cannot be written (what was there before stays).
        """
        adapter = self.adapter(adapter_name)
        config = replace(
            adapter.config,
            base_model_name_or_path=adapter.config.base_model_name_or_path or self.base_model.config._name_or_path,
            base_fingerprint=fingerprint(self.base_model),
        )
        adapter_files.write(Path(folder), config, adapter.state_dict(), card, dtype)

    def adapter(self, name: str | None = None) -> Adapter:
        """An adapter by name; without one, the only adapter. Errors as for `adapter_name`."""
        return self._adapters[self.adapter_name(name)]

    def adapter_name(self, name: str | None = None, kind: str | None = None) -> str:
        """The name of the adapter that is meant.

        Args:
            name: its name; None: the only one (of its kind).
            kind: what it must predict: `reward`, `contrast` or `draft`; None: anything.

        Raises:
            OtterError: there is none of this name, it predicts something else, or no name was given and there are
                several.
        """
        kinds = {name: adapter.config.signal.type for name, adapter in self._adapters.items()}
        fitting = [name for name in kinds if kind in (None, kinds[name])]
        if name is None and len(fitting) == 1:
            return fitting[0]
        if name is None or name not in kinds:
            what = "name an adapter" if fitting else f"no adapter predicts {kind or 'anything'}"
            what = what if name is None else f"unknown signal {name!r}"
            raise OtterError(f"{what}; there are: {', '.join(self.adapters) or 'none'}")
        if name not in fitting:
            raise OtterError(f"adapter {name!r} predicts {kinds[name]}, not {kind}")
        return name

    # -- running -------------------------------------------------------------------------------------------------

    @property
    def active_adapters(self) -> list[str]:
        """Names of the adapters that run with the base, in this thread."""
        chosen = self._thread.chosen
        return [name for name in self.adapters if chosen is None or name in chosen]

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside the block, in this thread, the base runs alone."""
        with self.use_adapters(()):
            yield

    @contextmanager
    def use_adapters(self, names: Sequence[str]) -> Iterator[None]:
        """Inside the block, in this thread, only these adapters run."""
        for name in names:
            self.adapter(name)
        outer, self._thread.chosen = self._thread.chosen, tuple(names)
        try:
            yield
        finally:
            self._thread.chosen = outer

    def forward(self, *args: Any, **kwargs: Any) -> CausalLMOutputWithPast:
        """One pass of the base; takes and returns what the base does, with `signals` on the output.

        The base has no trainable parameters, so no graph is kept for it; the signals carry the inserted parameters'.
        """
        with self._taps.visit(_Passes(self)):
            return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`base_model.generate`, every pass of it with signals. A callable `custom_generate` is given this model.

        Raises:
            OtterError: an intervention cannot honour a setting, or Transformers refuses the call.
        """
        with self._taps.visit(_Passes(self)):
            return generate_with(self, args, kwargs)

    @property
    def generation(self) -> Generation | None:
        """The call of `generate` that is running in this thread, if any."""
        return self._thread.generation

    @contextmanager
    def generating(self, generation: Generation) -> Iterator[None]:
        """Inside the block, in this thread, a call of `generate` is running."""
        outer, self._thread.generation = self._thread.generation, generation
        try:
            with self._taps.visit(_Passes(self)):
                yield
        finally:
            self._thread.generation = outer

    @property
    def signals(self) -> dict[str, Signal]:
        """The signals of the latest pass in this thread, by adapter; what a `LogitsProcessor` reads."""
        return self._thread.signals

    @contextmanager
    def show_signals(self, signals: dict[str, Signal]) -> Iterator[None]:
        """Inside the block, in this thread, `signals` are these."""
        outer, self._thread.signals = self._thread.signals, signals
        try:
            yield
        finally:
            self._thread.signals = outer

    def check_read(self, input_ids: Tensor) -> None:
        """That the latest pass in this thread ended with the last of these tokens, `[B, T]`.

        Raises:
            OtterError: it read something else.
        """
        read, length = self._thread.read
        known = length in (None, input_ids.shape[1])
        if read is not None and not (known and torch.equal(read, input_ids[:, -read.shape[1] :])):
            raise OtterError("the latest pass of this OtterModel read another text: generate with the OtterModel")

    def signal(self, name: str | None = None) -> Any:
        """One of `signals`. Errors as for `adapter_name`."""
        name = self.adapter_name(name)
        if name not in self.signals:
            raise OtterError(f"the latest pass gave no signal {name!r}: generate with the OtterModel, the adapter on")
        return self.signals[name]

    def stream_passes(self, names: Sequence[str]) -> dict[str, StreamPass]:
        """Streams of the named adapters, ready to be shown one forward pass of the base."""
        # An adapter that is off keeps its place in the cache.
        owners = [*range(self.base_model.config.num_hidden_layers)]
        first = {}
        for name, adapter in self._adapters.items():
            first[name] = len(owners)
            owners += adapter.stream.widths.layers
        return {
            name: StreamPass(adapter.stream, first[name], tuple(owners))
            for name, adapter in self._adapters.items()
            if name in names
        }

    def heads(self, states: dict[str, Tensor]) -> dict[str, Signal]:
        """The signals of widened states, `[B, T, d + d']` each, by adapter."""
        unembedding = weight_of(self.base_model.get_output_embeddings())
        return {name: self._adapters[name].head(state, unembedding) for name, state in states.items()}

    def read_signals(self, states: dict[str, Tensor]) -> dict[str, Signal]:
        """Reads the signals of widened states, `[B, T, d + d']` each, and makes them this thread's latest."""
        self._thread.signals = self.heads(states)
        return self._thread.signals

    def visit(self, visitor: Visitor) -> AbstractContextManager[None]:
        """A context in which the base's passes, in this thread, are shown to `visitor` rather than to the adapters."""
        return self._taps.visit(visitor)

    # -- as PEFT and Transformers users expect ---------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.base_model, name)

    def train(self, mode: bool = True) -> Self:
        """Training mode for the adapters; the frozen base stays in evaluation mode."""
        super().train(mode)
        self.base_model.eval()
        return self

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Inserted parameters that are trained, and all parameters."""
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return trainable, sum(p.numel() for p in self.parameters())

    def print_trainable_parameters(self) -> None:
        """Prints `get_nb_trainable_parameters` and the share."""
        trainable, total = self.get_nb_trainable_parameters()
        print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}")


class _Passes(Visitor):
    """Shows the base's passes to the streams of the adapters that are on, and keeps their signals."""

    def __init__(self, model: OtterModel) -> None:
        self._model = model
        self._streams: dict[str, StreamPass] | None = None
        self._read: Tensor | None = None
        self._length: int | None = None

    def _begin(self) -> dict[str, StreamPass]:
        self._streams = self._model.stream_passes(self._model.active_adapters)
        return self._streams

    def tokens(self, input_ids: Tensor) -> None:
        self._read = input_ids
        for stream in self._begin().values():
            stream.tokens(input_ids)

    def layer(self, index: int, taps: LayerTaps) -> None:
        if self._length is None:
            length = taps.hidden.shape[1] if taps.cache is None else taps.cache.get_seq_length(index)
            self._length = length if isinstance(length, int) else None
        streams = self._begin() if self._streams is None else self._streams
        for stream in streams.values():
            stream.layer(index, taps)

    def final(self, hidden: Tensor, normed: Tensor) -> None:
        streams, self._streams = self._streams or {}, None
        for stream in streams.values():
            stream.final(hidden, normed)
        self._model.read_signals({name: stream.state for name, stream in streams.items() if stream.state is not None})
        self._model._thread.read = self._read, self._length
        self._read = self._length = None

    def output(self, output: Any) -> None:
        if isinstance(output, ModelOutput):
            output.signals = self._model.signals


class _ThreadState(threading.local):
    """What each thread is doing with the model, so that two do not mix."""

    def __init__(self) -> None:
        self.chosen: tuple[str, ...] | None = None
        self.signals: dict[str, Signal] = {}
        # The tokens of the latest pass, [B, T], or None for embeddings; and how long the whole text was.
        self.read: tuple[Tensor | None, int | None] = (None, None)
        self.generation: Generation | None = None
