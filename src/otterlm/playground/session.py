"""Grows two responses to one prompt in turns: the base's, and the guided one. Knows nothing of a page."""

import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from otterlm.bases import check_context
from otterlm.checks import check_count
from otterlm.decoding import StreamedToken, stream_tokens
from otterlm.decoding.choice import plug_in
from otterlm.decoding.ending import SignalStop
from otterlm.decoding.stream_loop import TokenReader, shown_tokens
from otterlm.errors import OtterError
from otterlm.interventions import (
    InterventionSettings,
    InterventionType,
    intervention_type,
    interventions,
    refuse_unused,
)
from otterlm.model import OtterModel
from otterlm.playground.responses import Draws, Response
from otterlm.signals.base import Capability
from otterlm.training.data.tokens import prompt_tokens

STOP, GUARD = intervention_type("stop"), intervention_type("guard")


@dataclass(frozen=True, slots=True)
class Settings:
    """Holds what can be chosen for a comparison.

    Attributes:
        shown: the adapter whose signal colours the tokens; a reward or a guard also stops the guided response.
        steering: the adapter that guides; None: none.
        method: the intervention that it guides by; None: the first that it can be used for.
        values: settings of the method and of the stop, by their names in `InterventionSettings`; the others have their
            defaults.
        max_new_tokens: length of each response.
        seed: of what is drawn at random, for each response anew.
    """

    shown: str
    steering: str | None
    method: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    max_new_tokens: int = 48
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Holds both responses so far.

    Attributes:
        original: what the base says, the adapters only read.
        guided: what it says when it is steered.
        exact: whether the original so far is what the base alone, no adapter on, says in the same run.
        stopped: whether the threshold or a guard's alarm ended the guided response.
        slowdown: extra time a token of the guided response, as a share of what a token of the base alone takes; see
            `Response.slowdown`.
    """

    original: tuple[StreamedToken, ...]
    guided: tuple[StreamedToken, ...]
    exact: bool
    stopped: bool
    slowdown: float | None


class Session:
    """Holds a base with its adapters, for any number of comparisons at a time.

    Comparisons share no state: those of two threads take turns, a token each.

    Args:
        model: with its adapters.
        tokenizer: the base's.

    Attributes:
        signals: the configuration of each adapter's signal, by name.
        coloured: names of the adapters that give a number beside every token.
        methods: the interventions that each adapter can guide by, by its name.

    Raises:
        OtterError: no adapter gives a number beside every token.
    """

    def __init__(self, model: OtterModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.signals = {name: model.adapter(name).config.signal for name in model.active_adapters}
        self.coloured = [name for name in self.signals if self.can(name, Capability.BESIDE)]
        self.methods = {
            name: [use for use in interventions(signal.capabilities) if use.plug != STOP.plug]
            for name, signal in self.signals.items()
        }
        if not self.coloured:
            raise OtterError("there is nothing to colour with: give an adapter that says a number beside every token")
        self._model = model
        self._tokenizer = tokenizer
        self._turn = threading.Lock()

    def can(self, name: str | None, capability: Capability) -> bool:
        """Says whether an adapter's signal can do one of these."""
        return name in self.signals and bool(self.signals[name].capabilities & capability)

    def takes(self, shown: str, steering: str | None, method: str | None) -> list[str]:
        """Returns the names of the settings that are of use with these, see `Settings`.

        Raises:
            OtterError: the adapter cannot guide by the method.
        """
        return [name for _, use in self._uses(shown, steering, method) for name in use.takes]

    def compare(self, prompt: str, settings: Settings) -> Iterator[Comparison]:
        """Generates both responses, and the base's alone, which times them: greedily, or all by sampling where the
        method samples.

        Args:
            prompt: what the user says.
            settings: see there.

        Raises:
            OtterError: the prompt is empty or too long, or a setting is out of range or of no use.
        """
        ids = self._read(prompt, settings.max_new_tokens)
        check_count("seed", settings.seed, least=0, most=2**32 - 1)
        adapters = [name for name in dict.fromkeys((settings.shown, settings.steering)) if name is not None]
        uses = self._uses(settings.shown, settings.steering, settings.method)
        refuse_unused(settings.values, [use for _, use in uses], interventions())
        values = InterventionSettings(**settings.values)
        steering = plug_in(self._model, uses, values)
        stop: SignalStop | None = next(iter(steering.get(STOP.plug, ())), None)
        sampling: dict[str, Any] = {"do_sample": False}
        if values.temperature is not None or any(use.samples for _, use in uses):
            sampling = {"do_sample": True, "temperature": values.temperature or 1.0, "top_k": 0}
        alone = self._respond(ids, settings, [], sampling)
        original = self._respond(ids, settings, adapters, sampling)
        respond = self._respond_by_loop if "custom_generate" in steering else self._respond
        guided: Response[Any] = respond(ids, settings, adapters, sampling | steering)

        def compared() -> Comparison:
            return Comparison(
                original=tuple(original.tokens),
                guided=tuple(guided.tokens),
                exact=all(a.token == b.token for a, b in zip(original.tokens, alone.tokens, strict=False)),
                stopped=stop is not None and stop.stopped is not None and bool(stop.stopped.any()),
                slowdown=guided.slowdown(alone),
            )

        growing = [original, guided, alone]
        while growing:
            for response in list(growing):
                if response.grow():
                    yield compared()
                else:
                    growing.remove(response)
        yield compared()  # what a loop takes is known at its end

    def bytes_of(self, names: Collection[str]) -> tuple[int, int]:
        """Counts bytes of the base's parameters, and of what adapters insert: their parameters, and the up projections
        folded with the unembedding that are kept beside them."""
        base, inserted = self._model.base_model, 0
        vocabulary = base.get_output_embeddings().weight.shape[0]
        for adapter in map(self._model.adapter, names):
            derived = adapter.config.signal.derived_parameters(vocabulary)
            inserted += _bytes(adapter) + derived * next(adapter.head.parameters()).element_size()
        return _bytes(base), inserted

    def _read(self, prompt: str, max_new_tokens: int) -> Tensor:
        if not prompt.strip():
            raise OtterError("the prompt is empty")
        tokens = prompt_tokens((("user", prompt),), self._tokenizer)
        check_context(self._model.config, len(tokens) + check_count("max_new_tokens", max_new_tokens))
        return torch.tensor([tokens], device=self._model.device)  # [1, T]

    def _uses(self, shown: str, steering: str | None, method: str | None) -> list[tuple[str, InterventionType]]:
        """The adapters with what each is used for: the method, and a stop unless the method has its threshold or takes
        back what it would end."""
        uses = []
        if steering is not None:
            known = {use.name: use for use in self.methods.get(steering, ())}
            name = method if method is not None else next(iter(known), None)
            if name not in known:
                raise OtterError(f"{steering!r} cannot guide by {name}; there is: {', '.join(known) or 'nothing'}")
            uses.append((steering, known[name]))
        stop = GUARD if self.can(shown, GUARD.needs) else STOP
        taken = {name for _, use in uses for name in use.takes}
        if self.can(shown, stop.needs) and not taken & {"threshold", "alarm"}:
            uses.append((shown, stop))
        return uses

    def _respond(
        self, ids: Tensor, settings: Settings, adapters: list[str], arguments: dict[str, Any]
    ) -> Response[StreamedToken]:
        stream = stream_tokens(self._model, self._tokenizer, ids, **self._arguments(ids, settings), **arguments)
        draws = Draws(self._model.device, settings.seed)
        return Response(self._model, adapters, stream, lambda token: token, draws, self._turn)

    def _respond_by_loop(
        self, ids: Tensor, settings: Settings, adapters: list[str], arguments: dict[str, Any]
    ) -> Response[int]:
        def generate(streamer: BaseStreamer) -> None:
            with self._model.use_adapters(adapters):
                self._model.generate(ids, streamer=streamer, **self._arguments(ids, settings), **arguments)

        reader = TokenReader(self._model, self._tokenizer, ids)
        draws = Draws(self._model.device, settings.seed)
        return Response(self._model, adapters, shown_tokens(generate), reader.read, draws, self._turn, loop=True)

    def _arguments(self, ids: Tensor, settings: Settings) -> dict[str, Any]:
        return {
            "attention_mask": torch.ones_like(ids),
            "pad_token_id": self._tokenizer.pad_token_id,
            "max_new_tokens": settings.max_new_tokens,
        }


def _bytes(module: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
