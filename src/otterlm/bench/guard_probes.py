"""Fits probes on the base's states to compare a guard with: linear ones, and one with attention."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from otterlm.bench.attention_probe import fit_attention_probe
from otterlm.bench.guard_rivals import (
    LAST,
    MEAN,
    Detector,
    beside_tokens,
    held_out,
    of_seed,
    over,
    part_ends,
    pooled,
    read_parts,
)
from otterlm.causal import decoder_of
from otterlm.training.data.labelled_tokens import LabelledExample
from otterlm.training.data.packing import Batch
from otterlm.training.evaluation.detection import auc, best_threshold
from otterlm.training.evaluation.guard_metrics import PERCENTS
from otterlm.training.probe import fit_classifier

PENALTY = 1e-2
"""Of the linear probes while blocks are compared."""

Texts = Sequence[LabelledExample]


def block_states(base: PreTrainedModel, blocks: Sequence[int]) -> Callable[[Batch], Tensor]:
    """Makes a reader of the states after some blocks, `[B, T, n, d]`. 0 is the embedding; the last is normed."""
    decoder = decoder_of(base)

    @torch.no_grad()
    def read(batch: Batch) -> Tensor:
        states = decoder(**batch.inputs(base.dtype), output_hidden_states=True).hidden_states
        return torch.stack([states[block] for block in blocks], dim=2)

    return read


class TokenStates:
    """Reads the states of some blocks beside all tokens. It remembers the latest texts, so that probes share a reading.

    Args:
        base: the frozen base.
        blocks: see `block_states`.
    """

    def __init__(self, base: PreTrainedModel, blocks: Sequence[int]) -> None:
        self.blocks = list(dict.fromkeys(blocks))
        self._base = base
        self._texts: Texts | None = None
        self._states: list[Tensor] = []

    def of(self, texts: Texts, block: int) -> list[Tensor]:
        """Returns the states of each text, `[N, d]` bfloat16."""
        if texts is not self._texts:
            self._texts = None
            read = beside_tokens(block_states(self._base, self.blocks), texts, self._base.device)
            by_text = {index: inside.bfloat16().cpu() for index, inside in read}
            self._states = [by_text[index] for index in range(len(texts))]  # each [N, n, d]
            self._texts = texts
        return [each[:, self.blocks.index(block)] for each in self._states]


def probes(base: PreTrainedModel, examples: Texts, truth: Tensor, seeds: int = 1) -> list[Detector]:
    """Fits linear probes on the base's last block and on its best one, and a probe with attention.

    Block and pooling (the last token, or the mean so far) are chosen on a fifth of the texts. The linear probes are
    logistic regressions, fitted to the states after all parts of the other texts. The probe with attention reads all
    states of the block whose mean detects best. The base reads the texts twice.

    Args:
        base: the frozen base.
        examples: what to learn from.
        truth: `[n]` bool.
        seeds: so many probes of each kind, which differ in the fifth, so in what they learn from, and in their
            initialisation.
    """
    last = base.config.get_text_config(decoder=True).num_hidden_layers
    parts = read_parts(block_states(base, range(last + 1)), examples, base.device, (LAST, MEAN))
    choices = [_choose(parts, truth, held_out(len(examples), seed)) for seed in range(seeds)]
    read = [block for choice in choices for block in (choice.best, choice.attended)]
    states = TokenStates(base, (last, *read))
    made: list[Detector] = []
    for seed, choice in enumerate(choices):
        for block, pooling, which in ((last, choice.pooling, "last"), (choice.best, choice.best_pooling, "best")):
            linear = _linear(states, parts[pooling][:, :, block].float(), truth, block, pooling, seed)
            layer = "last block" if which == "last" else f"block {block}"
            name = of_seed(f"linear probe, {layer} ({pooling})", seed)
            made.append(replace(linear, name=name, kind=f"linear probe, {which} block"))
    del parts
    learned = TokenStates(base, [choice.attended for choice in choices])  # of many texts few blocks fit in memory
    for seed, choice in enumerate(choices):
        made.append(_attention(states, learned.of(examples, choice.attended), truth, choice.attended, seed))
    return made


@dataclass(frozen=True, slots=True)
class _Choice:
    """Holds what the texts that decide have chosen.

    Attributes:
        pooling: of the last block.
        best, best_pooling: the block that detects best, and its pooling.
        attended: the block whose mean detects best.
    """

    pooling: str
    best: int
    best_pooling: str
    attended: int


def _choose(parts: Mapping[str, Tensor], truth: Tensor, held: Tensor) -> _Choice:
    """Chooses blocks by the AUC of whole texts; `parts` are `[n, 4, blocks, d]` by pooling."""
    areas: dict[tuple[int, str], float] = {}
    for pooling, values in parts.items():
        for block in range(values.shape[2]):
            whole = values[:, -1, block].float()  # [n, d]
            weight, bias = fit_classifier(whole[~held], truth[~held], PENALTY)
            areas[block, pooling] = auc(whole[held] @ weight + bias, truth[held])
    last = max(block for block, _ in areas)
    best, best_pooling = max(areas, key=lambda choice: areas[choice])
    pooling = max((LAST, MEAN), key=lambda pooling: areas[last, pooling])
    attended = max(range(last + 1), key=lambda block: areas[block, MEAN])
    return _Choice(pooling, best, best_pooling, attended)


def _linear(states: TokenStates, seen: Tensor, truth: Tensor, block: int, pooling: str, seed: int) -> Detector:
    """Fits a linear probe to the states of one block after each part of the texts, `[n, 4, d]`."""
    held = held_out(len(seen), seed)
    labels = truth[~held].repeat_interleave(len(PERCENTS))
    weight, bias = fit_classifier(seen[~held].flatten(0, 1), labels)
    threshold = best_threshold(seen[held, -1] @ weight + bias, truth[held])

    def score(texts: Texts) -> Tensor:
        return torch.stack([pooled(each.float(), pooling) for each in states.of(texts, block)]) @ weight + bias

    return Detector("linear probe", over(score, threshold), len(weight) + 1, seed=seed)


def _attention(states: TokenStates, seen: Sequence[Tensor], truth: Tensor, block: int, seed: int) -> Detector:
    """Fits a probe with attention to the states of one block beside all tokens, `[N, d]` of each text."""
    held = held_out(len(seen), seed)
    probe = fit_attention_probe(seen, truth, held, seed)

    @torch.no_grad()
    def scores(some: Sequence[Tensor]) -> Tensor:
        return torch.stack([probe(each[None].float())[0, part_ends(len(each))] for each in some])  # [n, 4]

    decided = [each for each, out in zip(seen, held.tolist(), strict=True) if out]
    threshold = best_threshold(scores(decided)[:, -1], truth[held])
    size = sum(parameter.numel() for parameter in probe.parameters())
    verdicts = over(lambda texts: scores(states.of(texts, block)), threshold)
    kind = "attention probe"
    return Detector(of_seed(f"{kind}, block {block}", seed), verdicts, size, kind, seed)
