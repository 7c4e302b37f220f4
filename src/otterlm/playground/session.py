"""Grows responses to one prompt in turns: the base's, and guided ones. Knows nothing of a page."""

import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from otterlm.bases import check_context
from otterlm.checks import check_count
from otterlm.decoding.choice import plug_in
from otterlm.errors import OtterError
from otterlm.interventions import (
    InterventionSettings,
    InterventionType,
    intervention_type,
    interventions,
    refuse_unused,
)
from otterlm.model import OtterModel
from otterlm.playground.comparison import Comparison, Outcome, Prompt, Settings
from otterlm.playground.controls import STRENGTHS
from otterlm.playground.growth import Growth, Guided
from otterlm.playground.problems import blame
from otterlm.playground.responses import Response
from otterlm.signals.base import Capability, SignalConfig
from otterlm.training.data.conversations import clean
from otterlm.training.data.tokens import prompt_tokens

STOP, GUARD = intervention_type("stop"), intervention_type("guard")
MOST = 4
"""Guided responses side by side."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """Holds a comparison that was checked: the prompt's tokens `[1, T]`, and the interventions of each response."""

    ids: Tensor
    sampling: dict[str, Any]
    steering: list[dict[str, Any]]


class Session:
    """Holds a base with its adapters, for any number of comparisons at a time.

    Comparisons share no state: those of two threads take turns, a token each.

    Args:
        model: with its adapters.
        tokenizer: the base's.

    Attributes:
        signals: the configuration of each adapter's signal, by name.
        methods: the interventions that each adapter can guide by, by its name.
        chats: whether the base has a chat template.

    Raises:
        OtterError: no adapter gives a number beside every token.
    """

    def __init__(self, model: OtterModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._turn = threading.Lock()
        self.signals: dict[str, SignalConfig] = {}
        self.methods: dict[str, list[InterventionType]] = {}
        self.chats = bool(tokenizer.chat_template)
        for name in model.active_adapters:
            self._add(name)
        if not self.coloured:
            raise OtterError("there is nothing to colour with: give an adapter that says a number beside every token")

    @property
    def coloured(self) -> list[str]:
        """Returns the names of the adapters that give a number beside every token."""
        return [name for name in self.signals if self.can(name, Capability.BESIDE)]

    def can(self, name: str | None, capability: Capability) -> bool:
        """Says whether an adapter's signal can do one of these."""
        return name in self.signals and bool(self.signals[name].capabilities & capability)

    def load(self, name: str, folder: Path) -> None:
        """Inserts one more adapter, between the tokens of running comparisons.

        Raises:
            OtterError: it cannot be loaded, or does not fit.
        """
        with self._turn:
            self._model.load_adapter(folder, name)
            self._model.eval()
        self._add(name)

    def takes(self, shown: str, steering: str | None, method: str | None) -> list[str]:
        """Returns the names of the settings that are of use with these, see `Settings`.

        Raises:
            OtterError: the adapter cannot guide by the method.
        """
        return [name for _, use in self._uses(shown, steering, method) for name in use.takes]

    def compare(self, prompt: Prompt, settings: Settings) -> Iterator[Comparison]:
        """Generates all responses, and the base's alone, which times them: greedily, or all by sampling where the
        method samples.

        Args:
            prompt: what to answer or to continue.
            settings: see there.

        Raises:
            FieldError: the prompt is empty or too long, or a setting is out of range or of no use.
        """
        plan = self._plan(prompt, settings)
        adapters = [name for name in dict.fromkeys((settings.steering, settings.shown)) if name is not None]
        growth = Growth(self._model, self._tokenizer, self._turn, plan.ids, settings)
        alone = growth.respond([], plan.sampling)
        original = growth.respond(adapters, plan.sampling)
        guided = [growth.guided(adapters, plan.sampling, steering) for steering in plan.steering]

        def compared() -> Comparison:
            return Comparison(
                original=Outcome(tuple(original.tokens), original.ended, original.speed),
                guided=tuple(each.outcome(alone) for each in guided),
                exact=all(a.token == b.token for a, b in zip(original.tokens, alone.tokens, strict=False)),
            )

        growing: list[Response[Any] | Guided] = [original, *guided, alone]
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

    def _add(self, name: str) -> None:
        signal = self._model.adapter(name).config.signal
        self.methods[name] = [use for use in interventions(signal.capabilities) if use.plug != STOP.plug]
        self.signals[name] = signal

    def _plan(self, prompt: Prompt, settings: Settings) -> _Plan:
        """Checks everything that was chosen, field by field."""
        with blame("length"):
            length = check_count("the length", settings.max_new_tokens)
        with blame("seed"):
            check_count("the seed", settings.seed, least=0, most=2**32 - 1)
        with blame("prompt"):
            ids = self._read(prompt, length)
        if settings.shown not in self.coloured:
            with blame("shown"):
                raise OtterError(f"no adapter {settings.shown!r} colours tokens; there is: {', '.join(self.coloured)}")
        with blame("guide"):
            uses = self._uses(settings.shown, settings.steering, settings.method)
        for name, value in settings.values.items():
            with blame(name):
                refuse_unused([name], [use for _, use in uses], interventions())
                InterventionSettings(**{name: value})
        steering = []
        for values in self._variants(settings, uses):
            with blame("strengths"):
                made = InterventionSettings(**values)
            with blame("guide"):
                steering.append(plug_in(self._model, uses, made))
        temperature = settings.values.get("temperature")
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature is not None or any(use.samples for _, use in uses):
            sampling = {"do_sample": True, "temperature": temperature or 1.0, "top_k": 0}
        return _Plan(ids, sampling, steering)

    def _variants(self, settings: Settings, uses: list[tuple[str, InterventionType]]) -> list[dict[str, Any]]:
        """Returns the settings of each guided response."""
        values = dict(settings.values)
        strength = next((name for _, use in uses for name in use.takes if name in STRENGTHS), None)
        if strength is None or not settings.strengths:
            return [values]
        with blame("strengths"):
            if len(settings.strengths) > MOST:
                raise OtterError(f"at most {MOST} weights stand side by side, got {len(settings.strengths)}")
            return [{**values, strength: each} for each in dict.fromkeys(settings.strengths)]

    def _read(self, prompt: Prompt, length: int) -> Tensor:
        """Returns the prompt's tokens, `[1, T]`."""
        text = prompt if isinstance(prompt, str) else prompt[-1][1] if prompt else ""
        if not text.strip():
            raise OtterError("the prompt is empty")
        if isinstance(prompt, str):
            clean(prompt, "the prompt")  # refuses half of a character; the text is encoded as it is
            tokens: list[int] = self._tokenizer.encode(prompt)
        else:
            tokens = prompt_tokens(prompt, self._tokenizer)
        check_context(self._model.config, len(tokens) + length)
        return torch.tensor([tokens], device=self._model.device)

    def _uses(self, shown: str, steering: str | None, method: str | None) -> list[tuple[str, InterventionType]]:
        """Returns the adapters with what each is used for: the method, and a stop unless the method has its threshold
        or takes back what it would end."""
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


def _bytes(module: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
