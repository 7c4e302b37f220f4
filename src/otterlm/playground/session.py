"""One prompt, two responses that grow in turns: the base's own, and the guided one. Knows nothing of a page."""

import statistics
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from otterlm.bases import check_context
from otterlm.checks import check_count
from otterlm.decoding import RewardStop, StreamedToken, stream_tokens
from otterlm.errors import OtterError
from otterlm.interventions import InterventionSettings, intervention_type
from otterlm.model import OtterModel
from otterlm.signals.base import STEERS, Capability
from otterlm.training.data.tokens import prompt_tokens


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be chosen for a comparison.

    Attributes:
        shown: the adapter whose signal colours the tokens; a reward also stops the guided response.
        steering: the adapter that guides; None: none.
        weight: of its reward, or alpha of its contrast; 0 gives the original.
        top_k: candidates a step, of a reward.
        threshold: the guided response ends when the shown reward falls under it; minus infinity: never.
        max_new_tokens: length of each response.
    """

    shown: str
    steering: str | None
    weight: float = 2.0
    top_k: int = 10
    threshold: float = -torch.inf
    max_new_tokens: int = 48


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both responses so far.

    Attributes:
        original: what the base says, the adapters only read.
        guided: what it says when it is steered.
        exact: whether the original so far is what the base alone, no adapter on, says in the same run.
        stopped: whether the threshold ended the guided response.
        slowdown: extra time a token of the guided response, as a share of what a token of the base alone takes; medians
            that leave out the first token, which reads the prompt. None until there are two tokens.
    """

    original: tuple[StreamedToken, ...]
    guided: tuple[StreamedToken, ...]
    exact: bool
    stopped: bool
    slowdown: float | None


class Session:
    """A base with its adapters, for any number of comparisons at a time.

    Comparisons share no state: those of two threads take turns, a token each.

    Args:
        model: with its adapters.
        tokenizer: the base's.

    Attributes:
        signals: the configuration of each adapter's signal, by name.
        coloured: names of the adapters that give a number beside every token.
        steering: names of the adapters that can steer.

    Raises:
        OtterError: no adapter gives a number beside every token.
    """

    def __init__(self, model: OtterModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.signals = {name: model.adapter(name).config.signal for name in model.active_adapters}
        self.coloured = [name for name in self.signals if self.can(name, Capability.BESIDE)]
        self.steering = [name for name in self.signals if self.can(name, STEERS)]
        if not self.coloured:
            raise OtterError("there is nothing to colour with: give an adapter that says a number beside every token")
        self._model = model
        self._tokenizer = tokenizer
        self._turn = threading.Lock()

    def can(self, name: str | None, capability: Capability) -> bool:
        """Whether an adapter's signal can do one of these."""
        return name in self.signals and bool(self.signals[name].capabilities & capability)

    def compare(self, prompt: str, settings: Settings) -> Iterator[Comparison]:
        """Generates both responses, greedily, and the base's alone, which times them.

        Args:
            prompt: what the user says.
            settings: see there.

        Raises:
            OtterError: the prompt is empty or too long, or a setting is out of range.
        """
        ids = self._read(prompt, settings.max_new_tokens)
        adapters = [name for name in dict.fromkeys((settings.shown, settings.steering)) if name is not None]
        guidance, stop = self._guidance(settings), self._stop(settings)
        alone = self._respond(ids, settings, [])
        original = self._respond(ids, settings, adapters)
        guided = self._respond(
            ids, settings, adapters, logits_processor=guidance, stopping_criteria=[] if stop is None else [stop]
        )
        growing = [original, guided, alone]
        while growing:
            for response in list(growing):
                if not response.grow():
                    growing.remove(response)
                    continue
                yield Comparison(
                    original=tuple(original.tokens),
                    guided=tuple(guided.tokens),
                    exact=all(a.token == b.token for a, b in zip(original.tokens, alone.tokens, strict=False)),
                    stopped=stop is not None and stop.stopped is not None and bool(stop.stopped.any()),
                    slowdown=_slowdown(guided.seconds, alone.seconds),
                )

    def bytes_of(self, names: Collection[str]) -> tuple[int, int]:
        """Bytes of the base's parameters, and of what adapters insert: their parameters, and the up projections folded
        with the unembedding that are kept beside them."""
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

    def _guidance(self, settings: Settings) -> list[LogitsProcessor]:
        if settings.steering is None:
            return []
        use = "contrast" if self.can(settings.steering, Capability.REPLACES) else "guidance"
        strength = InterventionSettings(settings.weight, settings.top_k, alpha=settings.weight)
        return [intervention_type(use).make(self._model, settings.steering, strength)]

    def _stop(self, settings: Settings) -> RewardStop | None:
        if not self.can(settings.shown, Capability.PREFIX):
            return None
        stop: RewardStop = intervention_type("stop").make(
            self._model, settings.shown, InterventionSettings(threshold=settings.threshold)
        )
        return stop

    def _respond(self, ids: Tensor, settings: Settings, adapters: list[str], **steering: Any) -> "_Response":
        stream = stream_tokens(
            self._model,
            self._tokenizer,
            ids,
            attention_mask=torch.ones_like(ids),
            pad_token_id=self._tokenizer.pad_token_id,
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
            **steering,
        )
        return _Response(self._model, adapters, stream, self._turn)


class _Response:
    """One response as it grows, and the seconds that each of its tokens took."""

    def __init__(
        self, model: OtterModel, adapters: list[str], stream: Iterator[StreamedToken], turn: threading.Lock
    ) -> None:
        self.tokens: list[StreamedToken] = []
        self.seconds: list[float] = []
        self._model = model
        self._adapters = adapters
        self._stream = stream
        self._turn = turn

    def grow(self) -> bool:
        """One more token, from whatever thread; False at the end."""
        # One pass at a time, so that nobody's is timed while it shares the cores.
        with self._turn, self._model.use_adapters(self._adapters):
            started = time.perf_counter()
            token = next(self._stream, None)
            seconds = time.perf_counter() - started
        if token is None:
            return False
        self.tokens.append(token)
        self.seconds.append(seconds)
        return True


def _slowdown(seconds: list[float], reference: list[float]) -> float | None:
    if min(len(seconds), len(reference)) < 2:
        return None
    return statistics.median(seconds[1:]) / statistics.median(reference[1:]) - 1


def _bytes(module: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
