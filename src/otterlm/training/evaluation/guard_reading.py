"""Reads what a guard says of labelled texts, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from otterlm.model import OtterModel
from otterlm.progress import track
from otterlm.signals.base import Capability
from otterlm.signals.guard.config import GuardConfig
from otterlm.signals.guard.head import late_logits
from otterlm.training.data.labelled_tokens import LabelledExample
from otterlm.training.data.packing import collate, length_buckets
from otterlm.training.data.targets import tokens_inside
from otterlm.training.evaluation.detection import alarm_levels
from otterlm.training.evaluation.passages import (
    Range,
    characters_in,
    limit_of,
    listed_shares,
    marked_passages,
    word_probabilities,
    word_values,
    words_of,
)
from otterlm.training.sources import LiveBase, Source, read_batch


@dataclass(frozen=True, slots=True)
class GuardReading:
    """A reading has one text, and the guard's outputs beside its n tokens: of the response, or of a prompt alone.

    Attributes:
        labelled: the text.
        config: the guard's.
        probabilities: `[n, L]` float32, of the labels.
        spans: `[n, S]` float32, of being inside a passage; as late as the guard reads it.
        prompt: `[L]` float32, after the last token of the prompt; None where there is none.
    """

    labelled: LabelledExample
    config: GuardConfig
    probabilities: Tensor
    spans: Tensor
    prompt: Tensor | None = None

    def of(self, label: str) -> Tensor:
        """Returns the probabilities of a label, `[n]`."""
        return self.probabilities[:, self.config.labels.index(label)]

    @property
    def offence(self) -> Tensor:
        """Returns the probability that the text is not harmless after each token, `[n]`: of exclusive labels the sum of
        the offences, else the likeliest offence's."""
        return offence(self.probabilities, self.config)

    @property
    def rings(self) -> int | None:
        """Returns the index of the token at which the alarm rings first."""
        alarms = self.config.alarms
        levels = [alarm_levels(self.of(name), self.config.hits, self.config.window) for name in alarms]
        ringing = torch.stack([level >= alarm for level, alarm in zip(levels, alarms.values(), strict=True)])
        indices = ringing.any(dim=0).nonzero()
        return int(indices[0]) if len(indices) else None

    def words(self, label: str) -> tuple[list[Range], list[float], list[float]]:
        """Returns the words of the response, the probability of each of being inside a passage of a label, and its
        share in the list of marked words."""
        text, characters = self.labelled.row.text.response, self.labelled.characters
        assert characters is not None
        words, column = words_of(text), self.spans[:, self.config.spans.index(label)].tolist()
        probabilities = word_probabilities(text, words, characters, column)
        return words, probabilities, listed_shares(text, words, self.config.word_shares(label))

    def passages(self, label: str) -> list[Range]:
        """Returns the passages of a label, by its stored threshold: characters of the response."""
        words, probabilities, listed = self.words(label)
        threshold = self.config.span_thresholds[label]
        values = word_values(probabilities, listed, threshold.listed)
        limit = limit_of(values, threshold)
        return marked_passages(self.labelled.row.text.response, words, [value >= limit for value in values])

    def marked(self, label: str) -> set[int]:
        """Returns the characters of the response that stand in passages of a label."""
        return characters_in(self.passages(label))

    def first_inside(self) -> int | None:
        """Returns the index of the first token that is inside a marked passage."""
        inside = tokens_inside(self.labelled.characters or (), self.labelled.row.spans or ())
        return int(inside.int().argmax()) if bool(inside.any()) else None


def offence(probabilities: Tensor, config: GuardConfig) -> Tensor:
    """Returns the probability that a text is not harmless, `[..., L]` to `[...]`."""
    columns = probabilities[..., [config.labels.index(name) for name in config.offences]]
    return columns.sum(dim=-1).clamp_max(1.0) if config.exclusive else columns.amax(dim=-1)


def reaches(final: Tensor, config: GuardConfig) -> Tensor:
    """Returns which whole texts reach the threshold of an offence, `[..., L]` to `[...]` bool."""
    columns = [final[..., config.labels.index(name)] >= value for name, value in config.thresholds.items()]
    return torch.stack(columns).any(dim=0)


@torch.no_grad()
def read_guard(
    model: OtterModel,
    examples: Sequence[LabelledExample],
    batch_size: int = 8,
    adapter_name: str | None = None,
    source: Source | None = None,
) -> list[GuardReading]:
    """Reads labelled texts, in their order.

    Args:
        model: with the guard.
        examples: what to read.
        batch_size: texts a pass.
        adapter_name: whose labels; may be left out where there is one guard.
        source: shows the base's intermediates; None: the base runs.
    """
    name = model.adapter_name(adapter_name, Capability.CLASSES)
    config = model.adapter(name).config.signal
    assert isinstance(config, GuardConfig)
    shows, readings = source or LiveBase(model), {}
    by_row = {each.example.row: each for each in examples}
    for group in track(list(length_buckets([each.example for each in examples], batch_size)), "scoring"):
        signal = read_batch(model, shows, collate(group).to(model.device), name)
        probabilities, spans = signal.probabilities.cpu(), signal.span_logits.cpu()
        for index, example in enumerate(group):
            begin, end = len(example.prefix), len(example)
            prompt = probabilities[index, begin - 1].clone() if begin else None
            parts = probabilities[index, begin:end].clone(), late_logits(spans[index], begin, end).sigmoid()
            readings[example.row] = GuardReading(by_row[example.row], config, *parts, prompt)
    return [readings[each.example.row] for each in examples]
