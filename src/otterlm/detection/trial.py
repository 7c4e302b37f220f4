"""Tries a stream at the edge of a small model's blocks.

The trial is of what everybody relies on: that the logits stay, that the stream looks at no later token, and that it
says in generation, token by token, what it says of the whole text.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from otterlm.causal import decoder_of
from otterlm.config import OtterConfig
from otterlm.errors import OtterError, reason
from otterlm.families import KNOWN, Outline
from otterlm.families.parts import base_logits
from otterlm.initialization import initialize
from otterlm.masks import branch_mask
from otterlm.passes import StreamPass
from otterlm.stream import InsertedStream
from otterlm.taps import EdgeTaps, Taps, Visitor

ROWS, TOKENS, NEW = 3, 5, 3
TOLERANCE = 1e-3
"""The tolerance is relative to the largest value."""


def ids_for(model: Any, rows: int = ROWS) -> Tensor:
    """Returns tokens to try a small model with, `[rows, TOKENS]`."""
    ids = torch.arange(3, 3 + rows * TOKENS).view(rows, TOKENS)
    return ids % model.config.get_text_config(decoder=True).vocab_size


class _Reading(Visitor):
    """Reads passes with a stream, and collects the last state of each."""

    def __init__(self, stream: InsertedStream) -> None:
        self.states: list[Tensor] = []
        self._stream = stream
        self._pass: StreamPass | None = None

    def tokens(self, input_ids: Tensor) -> None:
        self._pass = StreamPass(self._stream, self._stream.first_slot)

    def layer(self, index: int, taps: EdgeTaps) -> None:
        assert self._pass is not None
        self._pass.layer(index, taps)

    def final(self, hidden: Tensor, normed: Tensor) -> None:
        assert self._pass is not None
        self._pass.final(hidden, normed)
        assert self._pass.state is not None
        self.states.append(self._pass.state)


class Trial:
    """Tries a random stream at the edge of a small model's blocks.

    Args:
        model: a causal language model, or the decoder of one that is more.
        outline: to be tried.
    """

    def __init__(self, model: Any, outline: Outline) -> None:
        config = OtterConfig(
            hidden_size=8, num_attention_heads=1, head_dim=8, intermediate_size=8, initialization="normal"
        )
        self._model = model
        self._outline = outline
        self._stream = InsertedStream(config, model, outline, model.dtype, "cpu")
        initialize(self._stream, config, model, outline)
        self._width = self._stream.widths.base

    def check(self) -> None:
        """Runs the trials.

        Raises:
            OtterError: one failed.
        """
        ids = ids_for(self._model)
        plain = self._run(input_ids=ids, use_cache=False)[0]
        output, states = self._read(ids)
        if not torch.equal(plain, output):
            raise OtterError("reading it changes what it says")
        if not states.isfinite().all():
            raise OtterError("its states are not finite")
        changed = ids.clone()
        changed[:, -1] = ids[:, 0]
        if not _alike(self._read(changed)[1][:, :-1], states[:, :-1]):
            raise OtterError("it reads later tokens, as encoders do")
        try:
            text, steps = self._generated(ids, NEW)
            whole = self._generated(text[:, :-1], 1)[1][0]
        except Exception as error:  # of whatever kind
            raise OtterError(f"extra heads cannot follow its generation ({reason(error)})") from error
        if not _alike(torch.cat([step[:, -1:] for step in steps], dim=1), whole[:, -NEW:]):
            raise OtterError("in generation, token by token, it has other states than for the whole text")

    def branches(self) -> bool:
        """Returns whether texts that begin alike can be packed."""
        whole, prefix = ids_for(self._model, rows=2), 2
        whole[1, :prefix] = whole[0, :prefix]
        packed = torch.cat((whole[:1], whole[1:, prefix:]), dim=-1)
        segments = torch.tensor([[0] * prefix + [1] * (TOKENS - prefix) + [2] * (TOKENS - prefix)])
        positions = torch.cat((torch.arange(TOKENS), torch.arange(prefix, TOKENS)))[None]
        mask = branch_mask(segments, self._model.dtype)
        try:
            together = self._read(packed, position_ids=positions, attention_mask=mask)[1]
        except Exception:  # of whatever kind: it has no such mask
            return False
        apart = self._read(whole)[1]
        return _alike(together, torch.cat((apart[:1], apart[1:, prefix:]), dim=1))

    def logits(self) -> dict[str, Any]:
        """Returns what is done to the logits, as fields of the outline."""
        unembedding = None if self._is_decoder else self._model.get_output_embeddings()
        if unembedding is None:
            return {"knows_logits": False}
        output, states = self._read(ids_for(self._model))
        for numbers in _numbers(self._model.config):
            with_numbers = replace(self._outline, **numbers)
            try:
                logits = base_logits(self._model, with_numbers, states[..., : self._width])
            except (RuntimeError, OtterError):
                return {"knows_logits": False}
            if logits.shape == output.shape and _alike(logits, output):
                return numbers
        return {"knows_logits": False}

    @property
    def _is_decoder(self) -> bool:
        return decoder_of(self._model) is self._model

    @torch.no_grad()
    def _run(self, **inputs: Any) -> Any:
        return self._model(**inputs)

    @torch.no_grad()
    def _read(self, ids: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        """Runs a pass, and returns the model's output and the widened states, `[B, T, d + d']`."""
        reading = _Reading(self._stream)
        with self._tapped(reading):
            output = self._run(input_ids=ids, use_cache=False, **inputs)[0]
        if len(reading.states) != 1:
            raise OtterError(f"a pass of it ends {len(reading.states)} times")
        return output, reading.states[0]

    @torch.no_grad()
    def _generated(self, ids: Tensor, new: int) -> tuple[Tensor, list[Tensor]]:
        """Continues `ids` token by token, and returns the texts and the widened states of each pass."""
        reading = _Reading(self._stream)
        with self._tapped(reading):
            if not self._is_decoder and self._model.can_generate():
                settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": new}
                text = self._model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
            else:
                text, cache = torch.cat((ids, ids[:, :new]), dim=-1), DynamicCache(config=self._model.config)
                for step in text[:, :-1].split([ids.shape[1], *[1] * (new - 1)], dim=-1):
                    self._run(input_ids=step, past_key_values=cache, use_cache=True)
        return text, reading.states

    def _tapped(self, reading: _Reading) -> Any:
        layers = self._stream.widths.layers
        return Taps(self._model, self._outline, layers, inside=False, edge=True).visit(reading)


def _alike(actual: Tensor, expected: Tensor) -> bool:
    if actual.shape != expected.shape:
        return False
    return bool((actual - expected).abs().max() <= TOLERANCE * expected.abs().max())


def _numbers(config: Any) -> Iterator[dict[str, Any]]:
    """Yields the names of numbers that listed families have for their logits, and this configuration has; then none."""
    fields = ("logit_multiplier", "logit_divisor", "logit_softcap")
    known = [(field, getattr(family, field)) for family in KNOWN for field in fields]
    named = {field: name for field, name in known if name is not None and hasattr(config, name)}
    if named:
        yield named
    yield {}
