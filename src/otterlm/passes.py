"""Drives the inserted streams over the base's passes, and stores their signals."""

import threading
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

from otterlm.cache import CacheSlot, inserted_layer
from otterlm.edge import Sight
from otterlm.errors import OtterError
from otterlm.rotary import Rotation
from otterlm.signals.base import Signal
from otterlm.stream import InsertedStream
from otterlm.taps import EdgeTaps, LayerTaps, Visitor, changed

if TYPE_CHECKING:
    from otterlm.generation import Generation
    from otterlm.model import OtterModel


class StreamPass(Visitor):
    """Runs one forward pass of an inserted stream, driven by the base's.

    Args:
        stream: the parameters.
        first_slot: where its keys and values start among the layers of the KV cache.

    Attributes:
        state: [h, h'] after the final norm, `[B, T, d + d']`, once the pass is over.
    """

    def __init__(self, stream: InsertedStream, first_slot: int) -> None:
        self.stream = stream
        self.state: Tensor | None = None
        self._slots = {
            block: CacheSlot(block, index, stream.number, whole=not stream.inside)
            for index, block in enumerate(stream.widths.layers, start=first_slot)
        }
        self._shown = 0
        self._inserted: Tensor | None = None
        self._table: tuple[Tensor, Tensor] | None = None
        self._rotation: Rotation | None = None
        self._sight: Sight | None = None

    def tokens(self, input_ids: Tensor) -> None:
        """Reads E'[tokens], where there is a table."""
        if self.stream.table is not None:
            self._inserted = self.stream.table(input_ids)

    def layer(self, index: int, taps: EdgeTaps) -> None:
        """Moves h' through one block, if it is widened."""
        slot = self._slots.get(index)
        if slot is None:
            return
        self._shown += 1
        shown, taps = taps, _cast(taps, self.stream.dtype)
        if self._inserted is None:
            if self.stream.projection is None:
                raise OtterError("this adapter embeds tokens (embedding: table): give input_ids, not inputs_embeds")
            self._inserted = self.stream.projection(taps.hidden)
        if self._inserted.shape[1] != taps.hidden.shape[1]:
            raise OtterError("this base reads fewer tokens in its later blocks, where a stream needs all")
        shared: Rotation | Sight | None
        if self.stream.inside:
            assert isinstance(taps, LayerTaps)
            shared = self._rotated_by(taps.rotary)
        else:
            shared = self._seen_by(taps, slot)
        layer = self.stream.layers[str(index)]
        if shown.again is None or not torch.is_grad_enabled():
            self._inserted = layer(self._inserted, taps, slot, shared)
            return
        again = _Recomputed(layer, shown, self.stream.dtype)
        # A stream has no dropout, so the state of random numbers need not be stored.
        self._inserted = checkpoint(again, self._inserted, slot, shared, use_reentrant=False, preserve_rng_state=False)

    def _rotated_by(self, table: tuple[Tensor, Tensor] | None) -> Rotation | None:
        """Returns the heads' rotation. Blocks that follow each other mostly share one table."""
        if table is not self._table:
            widths = self.stream.widths
            stride = widths.base_head_dim // widths.head_dim
            self._rotation = table and Rotation(*table, stride, self.stream.rotation, self.stream.dtype)
            self._table = table
        return self._rotation

    def _seen_by(self, taps: EdgeTaps, slot: CacheSlot) -> Sight:
        """Returns what the heads of all blocks see, once the first block is shown."""
        if self._sight is None:
            layer = None if taps.cache is None else inserted_layer(taps.cache, slot)
            self._sight = Sight.of(taps, layer, self.stream.widths, self.stream.dtype)
        return self._sight

    def final(self, hidden: Tensor, normed: Tensor) -> None:
        """Joins the two states for the heads.

        Raises:
            OtterError: the base did not run each of the widened blocks once.
        """
        if self._shown != len(self._slots) or self._inserted is None:
            raise OtterError(changed("the base's blocks"))
        inserted = self.stream.final_norm(self._inserted, hidden)
        self.state = torch.cat((normed.to(inserted.dtype), inserted), dim=-1)


class _Recomputed:
    """Runs a layer on the taps that are there, and in the backward pass on taps that are computed again."""

    def __init__(self, layer: nn.Module, taps: EdgeTaps, dtype: torch.dtype) -> None:
        self._layer, self._dtype = layer, dtype
        self._taps: EdgeTaps | None = taps
        self._again = taps.again

    def __call__(self, inserted: Tensor, slot: CacheSlot, shared: Any) -> Tensor:
        taps, self._taps = self._taps, None
        if taps is None:
            assert self._again is not None
            taps = self._again()
        return self._layer(inserted, _cast(taps, self._dtype), slot, shared)


def _length(index: int, taps: EdgeTaps) -> int | None:
    """Counts the tokens of the text so far, this pass's among them; None where they are not known as a number."""
    length: Any
    if isinstance(taps, LayerTaps):
        length = taps.hidden.shape[1] if taps.cache is None else taps.cache.get_seq_length(index)
    else:
        past = None if taps.text is None else taps.text.past.tokens
        length = None if past is None else past + taps.hidden.shape[1]
    return length if isinstance(length, int) else None


_CAST = ("hidden", "added", "attention_input", "heads", "middle", "ffn_input", "units", "attended", "produced")


def _cast(taps: EdgeTaps, dtype: torch.dtype) -> EdgeTaps:
    """Converts the taps to the stream's precision, where the base runs in another."""
    if taps.hidden.dtype == dtype:
        return taps
    tensors = {name: getattr(taps, name, None) for name in _CAST}
    return replace(taps, **{name: value.to(dtype) for name, value in tensors.items() if value is not None})


class State:
    """The state describes what one thread does with a model.

    Attributes:
        chosen: the adapters that `use_adapters` named; None: those that the model runs everywhere.
        signals: of the latest pass.
        read: the tokens of the latest pass, `[B, T]`, or None for embeddings; and how long the whole text was.
        generation: the call of `generate` that is running.
    """

    def __init__(self) -> None:
        self.chosen: tuple[str, ...] | None = None
        self.signals: dict[str, Signal] = {}
        self.read: tuple[Tensor | None, int | None] = (None, None)
        self.generation: Generation | None = None


class ThreadState(threading.local):
    """Holds the state of each thread, so that two do not mix.

    The state is a separate object, because a compiler does not write to a `local`.
    """

    def __init__(self) -> None:
        self.state = State()


class Passes(Visitor):
    """Shows the base's passes to the streams of the adapters that are on, and stores their signals."""

    def __init__(self, model: "OtterModel") -> None:
        self._model = model
        self._streams: dict[str, StreamPass] | None = None
        self._read: Tensor | None = None
        self._length: int | None = None
        self._over = False

    def _begin(self) -> dict[str, StreamPass]:
        self._model.follow_vocabulary()
        self._streams = self._model.stream_passes(self._model.active_adapters)
        return self._streams

    def tokens(self, input_ids: Tensor) -> None:
        """Starts a pass, see `Visitor` for this and the other methods."""
        self._read = input_ids
        for stream in self._begin().values():
            stream.tokens(input_ids)

    def layer(self, index: int, taps: EdgeTaps) -> None:
        if self._length is None:
            self._length = _length(index, taps)
        streams = self._begin() if self._streams is None else self._streams
        for stream in streams.values():
            stream.layer(index, taps)

    def final(self, hidden: Tensor, normed: Tensor) -> None:
        streams, self._streams = self._streams or {}, None
        for stream in streams.values():
            stream.final(hidden, normed)
        self._model.read_signals({name: stream.state for name, stream in streams.items() if stream.state is not None})
        self._model._thread.state.read = self._read, self._length
        self._read = self._length = None
        self._over = True

    def output(self, output: Any) -> None:
        """Gives the output its signals.

        Raises:
            OtterError: the pass showed no last state, so that the signals would be those of a pass before.
        """
        if not self._over and self._model.active_adapters:
            raise OtterError(changed("the base's decoder"))
        self._over = False
        if isinstance(output, ModelOutput):
            output.signals = self._model.signals


@dataclass
class ExportedOutput(CausalLMOutputWithPast):
    """A program of `torch.export` returns this output: only tensors can leave it.

    Attributes:
        signals: by adapter, `state`, `[B, T, d + d']`, of which `OtterModel.read_signals` makes signals, and for a
            reward or a guard `prefix`, `[B, T]`.
    """

    signals: dict[str, dict[str, Tensor]] | None = None


_FIELDS = tuple(field.name for field in fields(ExportedOutput))


class _Untrained(torch.autograd.Function):
    """Passes the base's loss on, and refuses to be trained by it: no gradient goes through the base."""

    @staticmethod
    def forward(context: Any, loss: Tensor, inserted: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        raise OtterError(
            "the base's loss trains no adapter: learn from output.signals, or use "
            "otterlm.training.adapter_trainer.AdapterTrainer"
        )


def returned(output: Any, model: "OtterModel") -> Any:
    """Returns the output of a pass as a program gets it.

    The base's loss, with which Transformers' `Trainer` would train nothing, says so in its backward pass.

    Raises:
        OtterError: `torch.jit.trace` records the pass, and would lose the signals.
    """
    if torch.compiler.is_exporting():
        return with_tensors(output, model.signals)
    if torch.jit.is_tracing() and model.active_adapters:  # type: ignore[attr-defined]
        raise OtterError("torch.jit.trace would lose the signals: use torch.export.export")
    loss = getattr(output, "loss", None)
    if model.training and loss is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        trained = next((parameter for parameter in model.adapters.parameters() if parameter.requires_grad), None)
        output.loss = loss if trained is None else _Untrained.apply(loss, trained)
    return output


def with_tensors(output: Any, signals: dict[str, Signal]) -> Any:
    """Returns the output of a pass with its signals as tensors among its fields, or at the end of a tuple."""
    tensors = {
        name: {part: getattr(signal, part) for part in ("state", "prefix") if hasattr(signal, part)}
        for name, signal in signals.items()
    }
    if isinstance(output, tuple):
        return (*output, tensors)
    return ExportedOutput(**{name: value for name, value in output.items() if name in _FIELDS}, signals=tensors)
