"""OtterModel joins a frozen base and one or more adapters, each an inserted stream and the signal read from it."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from otterlm import adapter_files
from otterlm.adapter import Adapter
from otterlm.causal import check_causal, forward_signature
from otterlm.config import OtterConfig, check_config
from otterlm.detection import recognize
from otterlm.errors import OtterError
from otterlm.families.facts import decoder_config
from otterlm.families.parts import weight_of
from otterlm.fingerprint import fingerprint, same_base
from otterlm.generation import Generation
from otterlm.generation import generate as generate_with
from otterlm.identity import of_weights
from otterlm.initialization import fit_table, initialize
from otterlm.latest import LatestSignals
from otterlm.passes import Passes as _Passes
from otterlm.passes import StreamPass, returned
from otterlm.signals.base import Signal
from otterlm.taps import Visitor


class OtterModel(LatestSignals):
    """An OtterModel is a causal language model whose forward pass also gives signals.

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
        check_causal(base_model)
        family = recognize(base_model)
        super().__init__(base_model, family)
        self._rows = decoder_config(base_model).vocab_size
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
        revision: str | None = None,
    ) -> Self:
        """Loads a saved adapter onto a base.

        Args:
            base_model: the model it was trained on.
            adapter: a folder that `save_pretrained` wrote, or a hub id.
            adapter_name: the name of its signal.
            dtype: of the inserted parameters; the base's by default.
            revision: branch, tag or commit on the hub.

        Raises:
            OtterError: the files are missing, corrupt or of another base.
        """
        model = cls(base_model)
        model.load_adapter(adapter, adapter_name, dtype, revision)
        return model.eval()

    def add_adapter(
        self, config: OtterConfig, adapter_name: str | None = None, dtype: torch.dtype | None = None
    ) -> str:
        """Inserts a new, initialised adapter and returns its name; errors are those of the class."""
        config = check_config(config)
        name = self._new_name(adapter_name or config.signal.type)
        adapter = Adapter(config, self.base_model, self.family, dtype or self.base_model.dtype)
        with self.device:
            initialize(adapter.stream, config, self.base_model, adapter.family)
            adapter.head.initialize()
        self._insert(name, adapter)
        return name

    def load_adapter(
        self,
        adapter: str | Path,
        adapter_name: str | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
    ) -> str:
        """Inserts a saved adapter and returns its name. Arguments and errors as in `from_pretrained`."""
        folder = adapter_files.locate(adapter, revision)
        config = adapter_files.read_config(folder)
        if config.base_fingerprint and not same_base(self.base_model, config.base_fingerprint):
            name = f" ({config.base_model_name_or_path})" if config.base_model_name_or_path else ""
            raise OtterError(f"{adapter} was trained on another base{name}; its weights mean nothing here")
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
            adapter_name: the name of its signal; the signal's type by default.
            prefix: of its tensors' names in the file.
            dtype: of the inserted parameters; the base's by default.

        Raises:
            OtterError: the name is taken, or the file is missing, corrupt or of another shape.
        """
        name = self._new_name(adapter_name or config.signal.type)
        adapter = Adapter(config, self.base_model, self.family, dtype or self.base_model.dtype)
        adapter.stream.resize_table(adapter_files.rows(weights, f"{prefix}stream.table.weight"))
        adapter_files.fill(weights, adapter, decoder_config(self.base_model).vocab_size, prefix)
        adapter.loaded = of_weights(adapter)
        fit_table(adapter.stream, self.base_model, self.family)
        self._insert(name, adapter)
        return name

    def _insert(self, name: str, adapter: Adapter) -> None:
        self.adapters[name] = adapter.train(self.training)
        self.watch()

    def save_pretrained(
        self,
        save_directory: str | Path,
        adapter_name: str | None = None,
        card: str | None = None,
        dtype: torch.dtype | None = None,
        is_main_process: bool = True,
        card_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes an adapter: `adapter_config.json`, `adapter_model.safetensors` (inserted tensors only), `README.md`.

        Args:
            save_directory: created if need be.
            adapter_name: which; may be left out where there is one.
            card: text of the README, after the hub's metadata; a short one is made by default.
            dtype: of the file's tensors; as they are by default, and float32 of a float64 adapter.
            is_main_process: whether this process is the one of several that writes.
            card_metadata: what the hub is to know beside base and signal, such as `license`, `datasets` or `metrics`;
                see `huggingface_hub.ModelCardData`.

        Raises:
            OtterError: it cannot be written (what was there before stays).
        """
        if not is_main_process:
            return
        adapter = self.adapter(adapter_name)
        config = replace(
            adapter.config,
            base_model_name_or_path=adapter.config.base_model_name_or_path or self.base_model.config._name_or_path,
            base_fingerprint=fingerprint(self.base_model),
        )
        adapter_files.write(Path(save_directory), config, adapter.state_dict(), card, dtype, card_metadata)

    def push_to_hub(
        self,
        repo_id: str,
        adapter_name: str | None = None,
        card: str | None = None,
        dtype: torch.dtype | None = None,
        card_metadata: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Uploads an adapter's folder to the hub.

        Args:
            repo_id: `OWNER/NAME`; created if need be.
            adapter_name, card, dtype, card_metadata: as for `save_pretrained`.
            kwargs: `private`, `token`, and those of `huggingface_hub.HfApi.upload_folder`, such as `commit_message`,
                `revision` or `create_pr`.

        Returns what `upload_folder` returns.

        Raises:
            OtterError: it cannot be uploaded.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, adapter_name, card, dtype, card_metadata=card_metadata)
            return adapter_files.upload(folder, repo_id, **kwargs)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resizes the base's embeddings. An adapter's table gets rows for new tokens, at first slices of the base's."""
        embedding = self.base_model.resize_token_embeddings(*args, **kwargs)
        self.base_model.requires_grad_(False)
        self.follow_vocabulary()
        self.watch()
        return embedding

    def follow_vocabulary(self) -> None:
        """Fits the adapters to the tokens that the base has now. It may have been resized without this model.

        Raises:
            OtterError: an adapter names tokens that the base has no longer.
        """
        rows = decoder_config(self.base_model).vocab_size
        if rows == self._rows:
            return
        for name, adapter in self._adapters.items():
            named = [buffer for buffer in adapter.head.buffers() if not buffer.is_floating_point()]
            if any(bool((tokens >= rows).any()) for tokens in named):
                raise OtterError(f"adapter {name!r} names tokens that the base, resized to {rows}, has no longer")
            with torch.inference_mode(False):
                fit_table(adapter.stream, self.base_model, self.family)
        self._rows = rows

    # -- running -------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> CausalLMOutputWithPast:
        """Runs one pass of the base. It takes and returns what the base does, with `signals` on the output.

        The base has no trainable parameters, so no graph is stored for it; the signals carry the inserted parameters'.
        A program of `torch.export` gives tensors for signals, see `otterlm.passes.ExportedOutput`.
        """
        with self._taps.visit(_Passes(self)):
            output = self.base_model(*args, **kwargs)
        return returned(output, self)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Runs `base_model.generate`, every pass of it with signals. A callable `custom_generate` receives this model.

        Raises:
            OtterError: an intervention cannot honour a setting, or Transformers refuses the call.
        """
        with self._taps.visit(_Passes(self)):
            return generate_with(self, args, kwargs)

    @property
    def generation(self) -> Generation | None:
        """Returns the call of `generate` that is running in this thread, if any."""
        return self._thread.state.generation

    @contextmanager
    def generating(self, generation: Generation) -> Iterator[None]:
        """Marks a call of `generate` as running, inside the block, in this thread."""
        outer, self._thread.state.generation = self._thread.state.generation, generation
        try:
            with self._taps.visit(_Passes(self)):
                yield
        finally:
            self._thread.state.generation = outer

    def stream_passes(self, names: Sequence[str]) -> dict[str, StreamPass]:
        """Makes stream passes of the named adapters, ready to be shown one forward pass of the base."""
        passes = {}
        slot = 0
        for name, adapter in self._adapters.items():
            slot = slot or adapter.stream.first_slot
            if name in names:
                passes[name] = StreamPass(adapter.stream, slot)
            slot += len(adapter.stream.widths.layers)  # an adapter that is off has its slots, too
        return passes

    def heads(self, states: dict[str, Tensor]) -> dict[str, Signal]:
        """Returns the signals of widened states, `[B, T, d + d']` each, by adapter."""
        unembedding = weight_of(self.base_model.get_output_embeddings())
        return {name: self._adapters[name].head(state, unembedding) for name, state in states.items()}

    def read_signals(self, states: dict[str, Tensor]) -> dict[str, Signal]:
        """Reads the signals of widened states, `[B, T, d + d']` each, and makes them this thread's latest."""
        self._thread.state.signals = self.heads(states)
        return self._thread.state.signals

    def visit(self, visitor: Visitor) -> AbstractContextManager[None]:
        """Shows the base's passes, in this thread, to `visitor` rather than to the adapters, inside the block."""
        return self._taps.visit(visitor)


OtterModel.forward.__signature__ = forward_signature()  # type: ignore[attr-defined]
