"""Provides a training step's intermediates, from the base itself or from a recording of it on disk.

The base is frozen, so what it computes on an example is the same in every epoch, for every seed and setting. Recorded
once, it need not run again: a step is then only the thin inserted stream.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from otterlm.causal import decoder_of
from otterlm.families import Family
from otterlm.families.facts import decoder_config
from otterlm.families.parts import blocks_of, inputs_of, part_of, rotary_table
from otterlm.identity import Identity, identity, of_config, of_data, of_weights
from otterlm.masks import branch_mask
from otterlm.model import OtterModel
from otterlm.taps import EdgeTaps, LayerTaps, Text, Visitor
from otterlm.training.apart import Packing, Unpacked, text_of
from otterlm.training.data.packing import Batch, Example, collate
from otterlm.training.recomputation import recomputing
from otterlm.training.token_file import TokenFile


class Source(Protocol):
    """Shows the base's pass over a packed batch to a visitor."""

    def show(self, batch: Batch, visitor: Visitor) -> None:
        """Calls `visitor.tokens`, `visitor.layer` for every widened block, and `visitor.final`."""


def read_batch(model: OtterModel, source: Source, batch: Batch, adapter_name: str) -> Any:
    """Returns what an adapter predicts on a packed batch."""
    stream = model.stream_passes([adapter_name])[adapter_name]
    source.show(batch, stream)
    assert stream.state is not None
    return model.read_signals({adapter_name: stream.state})[adapter_name]


def of_adapter(model: OtterModel, adapter_name: str) -> Identity:
    """Returns what the checkpoint of an adapter's training must agree with, beside the trainer's settings.

    Where a loaded adapter is trained on, the weights that it starts from are part of it.
    """
    adapter = model.adapter(adapter_name)
    start = {} if adapter.loaded is None else {"start": adapter.loaded}
    return {"base": of_weights(model.base_model), "adapter": of_config(adapter.config), **start}


class LiveBase:
    """Runs the base (without its unembedding, which training does not need).

    Args:
        model: with the adapters that are trained.
        again: whether blocks are computed again in the backward pass, see `otterlm.training.recomputation`.
    """

    def __init__(self, model: OtterModel, again: bool = False) -> None:
        self._model = model
        self._again = again

    def show(self, batch: Batch, visitor: Visitor) -> None:
        """Runs the base, see `Source`."""
        base = self._model.base_model
        inputs = batch.inputs(base.dtype) if self._model.family.branches else {}
        if not inputs:
            apart = Unpacked(batch)
            visitor = Packing(visitor, apart, base.dtype)
            inputs = {"input_ids": apart.input_ids, "attention_mask": apart.attention_mask, "use_cache": False}
        show = recomputing if self._again and torch.is_grad_enabled() else OtterModel.visit
        with show(self._model, visitor):
            decoder_of(base)(**inputs)


class RecordedBase:
    """Plays back a recording: one file of bf16 numbers, a row a token.

    A row holds the state before every watched block and what else adapters read of it: inside a block the heads, the
    state in its middle and the units; at its edge what the block adds. At its end it holds the state before the final
    norm. Norms and RoPE are cheap and computed again.

    Args:
        model: with the adapter that is to be trained; the blocks that its adapters widen are recorded.
        examples: all that will be read.
        folder: of the recording.
        batch_size: examples a recording pass.
        again: whether what a block reads is made of the recording again in the backward pass.

    Raises:
        OtterError: the folder holds the recording of another run, the recording does not fit on the disk, or another
            process is making it.
    """

    def __init__(
        self,
        model: OtterModel,
        examples: Sequence[Example],
        folder: Path,
        batch_size: int = 8,
        again: bool = False,
    ) -> None:
        self._model, self._again = model, again
        self._blocks = blocks_of(model.base_model, model.family)
        self._layers = model.watched_layers
        self._inside = model.family if isinstance(model.family, Family) and model.reads(inside=True) else None
        self._fields = _recorded_fields(self._inside, model.reads(inside=False))
        base = decoder_config(model.base_model).hidden_size
        block = self._blocks[0].get_submodule
        sizes = {}
        if self._inside is not None:
            down = self._inside.down
            sizes["heads"] = inputs_of(block(self._inside.attention_output))
            sizes["units"] = inputs_of(block(down)) if down else 0
        self._parts = [sizes.get(name, base) for name in self._fields]
        width = len(self._layers) * sum(self._parts) + base
        parts = {"base": of_weights(model.base_model), "layers": self._layers, "data": of_data(_texts(examples))}
        if "added" in self._fields:
            parts["fields"] = self._fields
        self._file = TokenFile(
            folder / "recording.bf16",
            examples,
            width,
            torch.bfloat16,
            identity("recording of the base", **parts),
            self._recorded,
            batch_size,
            "recording the base",
        )

    @torch.no_grad()
    def _recorded(self, group: Sequence[Example]) -> Tensor:
        recorder = _Recorder(self._fields)
        LiveBase(self._model).show(collate(group).to(self._model.device), recorder)
        return torch.cat(recorder.pieces, dim=-1)  # [B, T, width]

    def show(self, batch: Batch, visitor: Visitor) -> None:
        """Reads the recording, see `Source`."""
        base, family, device = self._model.base_model, self._model.family, batch.input_ids.device
        recorded = self._file.read(batch).to(device, base.dtype)  # [B, T, width]
        text = text_of(batch, branch_mask(batch.segments, base.dtype))
        visitor.tokens(batch.input_ids)
        *blocks, final = recorded.split([*self._parts * len(self._layers), decoder_config(base).hidden_size], dim=-1)
        for n, index in enumerate(self._layers):
            start = n * len(self._fields)
            tensors = dict(zip(self._fields, blocks[start : start + len(self._fields)], strict=True))
            taps = self._taps(index, tensors, text)
            if self._again:
                taps.again = partial(self._taps, index, tensors, text)
            visitor.layer(index, taps)
        norm = part_of(decoder_of(base), family.final_norm)
        visitor.final(final, final if norm is None else norm(final))

    def _taps(self, index: int, tensors: Mapping[str, Any], text: Text) -> EdgeTaps:
        """Makes the taps of a block of what is recorded of it."""
        if self._inside is None:
            return EdgeTaps(text=text, **tensors)
        rest = dict(tensors)
        hidden, middle, units = rest["hidden"], rest.pop("middle", rest["hidden"]), rest.pop("units", None)
        assert text.positions is not None
        return LayerTaps(
            attention_input=self._normed(index, self._inside.attention_norm, hidden),
            middle=middle,
            ffn_input=self._normed(index, self._inside.ffn_norm, middle),
            units=units,
            rotary=rotary_table(self._model.base_model, self._inside, index, hidden, text.positions),
            mask=text.mask,
            text=text,
            **rest,
        )

    def _normed(self, index: int, path: str | None, state: Tensor) -> Tensor:
        return state if path is None else self._blocks[index].get_submodule(path)(state)


def _texts(examples: Sequence[Example]) -> Iterator[object]:
    """Yields what the base reads of examples: not their scores."""
    for example in examples:
        yield example.row, example.prefix, example.branches


def _recorded_fields(family: Family | None, edge: bool) -> list[str]:
    """Returns the tensors that are recorded of a block: all that its norms cannot compute, and what it adds."""
    fields = ["hidden", "added"] if edge else ["hidden"]
    if family is None:
        return fields
    fields.append("heads")
    if not family.parallel:
        fields.append("middle")
    fields.append("units" if family.down else "produced")
    if family.attention_post_norm is not None:
        fields.append("attended")
    if family.ffn_post_norm is not None and family.down:
        fields.append("produced")
    return fields


class _Recorder(Visitor):
    """Collects what a recording holds of one pass."""

    def __init__(self, fields: list[str]) -> None:
        self.pieces: list[Tensor] = []
        self._fields = fields

    def layer(self, index: int, taps: EdgeTaps) -> None:
        self.pieces += [getattr(taps, name) for name in self._fields]

    def final(self, hidden: Tensor, normed: Tensor) -> None:
        self.pieces.append(hidden)


class FinalState(Visitor):
    """Stores the base's last state.

    Attributes:
        normed: after the final norm, `[B, T, d]`, once a pass was shown.
    """

    def __init__(self) -> None:
        self.normed: Tensor | None = None

    def final(self, hidden: Tensor, normed: Tensor) -> None:
        """Stores the state, see `Visitor`."""
        self.normed = normed
