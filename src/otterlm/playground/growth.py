"""Starts the responses of one comparison: the base's, and those that interventions guide."""

import threading
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from otterlm.decoding import GuardStop, RollbackOutput, StreamedToken, stream_tokens
from otterlm.decoding.ending import SignalStop
from otterlm.decoding.stream_loop import TokenReader, shown_tokens
from otterlm.model import OtterModel
from otterlm.playground.alternatives import Lens, ShownToken
from otterlm.playground.comparison import Outcome, Passage, Settings
from otterlm.playground.responses import Draws, Response


class Guided:
    """Holds a guided response with what its interventions did.

    Args:
        response: as it grows.
        tokenizer: the base's.
        stop: that may end it.
        results: receives what a decoding loop returns.
    """

    def __init__(
        self,
        response: Response[Any],
        tokenizer: PreTrainedTokenizerBase,
        stop: SignalStop | None,
        results: list[Any],
    ) -> None:
        self._response = response
        self._tokenizer = tokenizer
        self._stop = stop
        self._results = results

    def grow(self) -> bool:
        """Reads one more token; False at the end."""
        return self._response.grow()

    def outcome(self, reference: Response[Any]) -> Outcome:
        """Returns the response so far, timed against that of the base alone."""
        response = self._response
        return Outcome(
            tuple(response.tokens),
            response.ended,
            response.speed,
            self._stopped(),
            self._passages(),
            response.slowdown(reference),
        )

    def _stopped(self) -> str | None:
        rolled = self._rollback
        if rolled is not None:
            return (rolled.stopped or [None])[0]
        if self._stop is None or self._stop.stopped is None or not bool(self._stop.stopped.any()):
            return None
        return self._stop.labels[0] if isinstance(self._stop, GuardStop) else "threshold"

    def _passages(self) -> tuple[Passage, ...]:
        rolled = self._rollback
        if rolled is None or not rolled.taken_back:
            return ()
        # An offence that could not be avoided ends the response, and is the last that is taken back.
        labels = [*(rolled.rollbacks or [[]])[0], (rolled.stopped or [None])[0]]
        return tuple(
            Passage(index, self._tokenizer.decode(tokens), label or "")
            for (index, tokens), label in zip(rolled.taken_back[0], labels, strict=False)
        )

    @property
    def _rollback(self) -> RollbackOutput | None:
        return next((each for each in self._results if isinstance(each, RollbackOutput)), None)


class Growth:
    """Starts responses to one prompt.

    Args:
        model: with its adapters.
        tokenizer: the base's.
        turn: held by the response that grows.
        ids: `[1, T]`, the prompt.
        settings: of the comparison.
    """

    def __init__(
        self,
        model: OtterModel,
        tokenizer: PreTrainedTokenizerBase,
        turn: threading.Lock,
        ids: Tensor,
        settings: Settings,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._turn = turn
        self._ids = ids
        self._settings = settings
        self._arguments: dict[str, Any] = {
            "attention_mask": torch.ones_like(ids),
            "pad_token_id": tokenizer.pad_token_id,
            "max_new_tokens": settings.max_new_tokens,
        }

    def respond(self, adapters: list[str], arguments: dict[str, Any]) -> Response[StreamedToken]:
        """Starts a response of the base's own decoding, with these adapters on and these arguments of `generate`."""
        lens = Lens(self._model, self._tokenizer, adapters)
        watched = arguments | {"logits_processor": lens.around(arguments.get("logits_processor", []))}
        stream = stream_tokens(self._model, self._tokenizer, self._ids, **self._arguments, **watched)
        return Response(self._model, adapters, stream, lens.look, self._draws(), self._turn)

    def guided(self, adapters: list[str], sampling: dict[str, Any], steering: dict[str, Any]) -> Guided:
        """Starts a response that is guided by interventions, see `otterlm.decoding.choice.plug_in`."""
        stop: SignalStop | None = next(iter(steering.get("stopping_criteria", ())), None)
        results: list[Any] = []
        response: Response[Any]
        if "custom_generate" in steering:
            response = self._by_loop(adapters, sampling | steering, results)
        else:
            response = self.respond(adapters, sampling | steering)
        return Guided(response, self._tokenizer, stop, results)

    def _by_loop(self, adapters: list[str], arguments: dict[str, Any], results: list[Any]) -> Response[int]:
        def generate(streamer: BaseStreamer) -> None:
            how = {"streamer": streamer, "return_dict_in_generate": True}
            with self._model.use_adapters(adapters):
                results.append(self._model.generate(self._ids, **how, **self._arguments, **arguments))

        reader = TokenReader(self._model, self._tokenizer, self._ids)
        lens = Lens(self._model, self._tokenizer, adapters)

        def read(token: int) -> ShownToken:
            streamed = reader.read(token)
            return lens.look(streamed, reader.logits, reader.before)

        return Response(self._model, adapters, shown_tokens(generate), read, self._draws(), self._turn, loop=True)

    def _draws(self) -> Draws:
        return Draws(self._model.device, self._settings.seed)
