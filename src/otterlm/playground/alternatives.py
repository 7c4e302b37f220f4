"""Lists what could have come in a token's place: the likeliest tokens, their signal, and what guidance made of them."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from otterlm.decoding import StreamedToken
from otterlm.model import OtterModel
from otterlm.signals.base import STEERS, Capability, Signal

SHOWN = 5
"""Alternatives of each kind: the likeliest of the base, and the likeliest after guidance."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """An alternative is a token that could have come next.

    Attributes:
        token: its id.
        text: of it.
        probability: that the base gives it.
        guided: the probability that guidance makes of it; None where nothing guides token by token.
        signal: what the adapter says of it, in the same unit as beside tokens; None where it says nothing of next
            tokens.
    """

    token: int
    text: str
    probability: float
    guided: float | None
    signal: float | None


@dataclass(frozen=True, slots=True)
class ShownToken(StreamedToken):
    """A shown token is a streamed token with its alternatives, itself among them, the likeliest first."""

    alternatives: tuple[Alternative, ...] = field(default=(), kw_only=True)


def next_signals(signal: Signal, can: Capability, tokens: Tensor) -> list[float] | None:
    """Returns what a signal says of next tokens, `[k]` ids; None if it says nothing of them."""
    steering: Any = signal
    if Capability.ADDS in can:
        values: Tensor = steering.vocabulary(tokens[None])[0]
        return (values.exp() if Capability.CLASSES in can else values).tolist()
    if Capability.REPLACES in can:
        return steering.difference()[0, tokens].tolist()
    return None


class Lens:
    """A lens watches the choice of each token: the scores before and after guidance, and the signals of that pass.

    Args:
        model: that generates.
        tokenizer: the base's.
        names: the adapters that are on, the most interesting first: the first that says something of next tokens is
            shown.
    """

    def __init__(self, model: OtterModel, tokenizer: PreTrainedTokenizerBase, names: list[str]) -> None:
        self._model = model
        self._tokenizer = tokenizer
        can = {name: model.adapter(name).config.signal.capabilities for name in names}
        self._name = next((name for name in names if can[name] & STEERS), None)
        self._can = can.get(self._name or "", Capability(0))
        self._scores: Tensor | None = None
        self._guided: Tensor | None = None
        self._signals: dict[str, Signal] = {}

    def around(self, processors: list[LogitsProcessor]) -> list[LogitsProcessor]:
        """Returns processors with two that watch: one before all of them, one after."""
        return [_Watch(self._before), *processors, *([_Watch(self._after)] if processors else [])]

    @torch.no_grad()
    def look(self, token: StreamedToken, scores: Tensor | None = None, signals: Any = None) -> ShownToken:
        """Adds the alternatives to the token that was chosen last.

        Args:
            token: that was chosen.
            scores: `[1, V]` of the base; None: those that the processors saw.
            signals: of the same pass, by the name of the adapter.
        """
        guided = self._guided if scores is None else None
        signals = self._signals if scores is None else signals
        scores = self._scores if scores is None else scores
        assert scores is not None
        base = scores[0].float().softmax(dim=-1)  # [V]
        after = None if guided is None else guided[0].float().softmax(dim=-1)
        likeliest = [index for each in (after, base) if each is not None for index in _likeliest(each)]
        tokens = list(dict.fromkeys([*likeliest, token.token]))
        ids = torch.tensor(tokens, device=base.device)
        values = next_signals(signals[self._name], self._can, ids) if self._name else None
        made = [
            Alternative(
                each,
                self._tokenizer.decode([each]),
                float(base[each]),
                None if after is None else float(after[each]),
                None if values is None else values[index],
            )
            for index, each in enumerate(tokens)
        ]
        made.sort(key=lambda each: -each.probability)
        return ShownToken(token.token, token.text, token.signals, token.labels, alternatives=tuple(made))

    def _before(self, scores: Tensor) -> None:
        self._scores, self._guided, self._signals = scores, None, self._model.signals

    def _after(self, scores: Tensor) -> None:
        self._guided = scores


def _likeliest(probabilities: Tensor) -> list[int]:
    """Returns the likeliest tokens of `[V]` probabilities, those that are ruled out left out."""
    shares, tokens = probabilities.topk(min(SHOWN, len(probabilities)))
    return tokens[shares > 0].tolist()


class _Watch(LogitsProcessor):
    """Passes scores on, and to a watcher. It copies nothing: what is timed stays as fast as it is."""

    def __init__(self, watcher: Any) -> None:
        self._watcher = watcher

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the `[B, V]` scores as they are."""
        self._watcher(scores)
        return scores
