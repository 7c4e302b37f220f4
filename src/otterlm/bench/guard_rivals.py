"""Makes detectors of offences beside a guard: probes on its base, a bag of words, and a separate classifier.

Each gives every text a score after 25, 50, 75 and 100% of its tokens, and flags whole texts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.bench.attention_probe import fit_attention_probe
from otterlm.errors import OtterError
from otterlm.progress import track
from otterlm.training.data.labelled_tokens import LabelledExample
from otterlm.training.data.packing import Batch, collate, length_buckets
from otterlm.training.evaluation.detection import auc, best_threshold
from otterlm.training.evaluation.guard_metrics import PERCENTS
from otterlm.training.probe import fit_classifier
from otterlm.training.teachers.reward_model import SeparateRewardModel

HELD = 5
"""One text in so many of those that a rival learns from decides on its blocks and its threshold."""
PENALTY = 1e-2
"""Of the probes while blocks are compared."""
LAST, MEAN = "last token", "mean"


Verdicts = tuple[Tensor, Tensor]
"""Scores after each part of the texts, `[n, 4]`, the higher the more offensive; and which whole texts are flagged,
`[n]` bool."""


@dataclass(frozen=True, slots=True)
class Detector:
    """A detector is a way to detect offences.

    Attributes:
        name: of it.
        judge: texts to verdicts.
        extra_parameters: beside the base.
    """

    name: str
    judge: Callable[[Sequence[LabelledExample]], Verdicts]
    extra_parameters: int


def over(score: Callable[[Sequence[LabelledExample]], Tensor], threshold: float) -> Any:
    """Makes the verdicts of scores and a threshold for whole texts."""

    def judge(examples: Sequence[LabelledExample]) -> Verdicts:
        scores = score(examples)
        return scores, scores[:, -1] >= threshold

    return judge


def part_ends(length: int) -> list[int]:
    """Returns the index of the token that ends each part of a text."""
    return [max(1, length * percent // 100) - 1 for percent in PERCENTS]


def held_out(count: int) -> Tensor:
    """Chooses the texts that decide, `[n]` bool."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order % HELD == 0


def _beside_tokens(
    read: Callable[[Batch], Tensor], examples: Sequence[LabelledExample], device: Any
) -> Iterator[tuple[int, Tensor]]:
    """Reads something, `[B, T, ...]`, beside the tokens of every text; yields the text's index and `[N, ...]` float."""
    order = {each.example.row: index for index, each in enumerate(examples)}
    for group in track(list(length_buckets([each.example for each in examples], 8)), "reading texts"):
        values = read(collate(group).to(device))
        for row, example in enumerate(group):
            yield order[example.row], values[row, len(example.prefix) : len(example)].float()


def _read(
    read: Callable[[Batch], Tensor], examples: Sequence[LabelledExample], device: Any, kinds: Sequence[str]
) -> dict[str, Tensor]:
    """Reads something beside every token after each part of every text: by kind `[n, 4, ...]` bfloat16.

    Args:
        read: gives it, `[B, T, ...]`.
        examples: the texts.
        device: to read on.
        kinds: `LAST`, at the last token, or `MEAN`, over all tokens so far.
    """
    collected: dict[str, list[Any]] = {kind: [None] * len(examples) for kind in kinds}
    for index, inside in _beside_tokens(read, examples, device):
        ends = part_ends(len(inside))
        for kind in kinds:
            part = inside[ends] if kind == LAST else torch.stack([inside[: end + 1].mean(dim=0) for end in ends])
            collected[kind][index] = part.bfloat16().cpu()
    return {kind: torch.stack(parts) for kind, parts in collected.items()}


def _blocks(base: PreTrainedModel, chosen: Sequence[int]) -> Callable[[Batch], Tensor]:
    """Reads the states after some blocks (0: the embedding, the last one after the final norm), `[B, T, n, d]`."""
    decoder = base.get_decoder()

    @torch.no_grad()
    def read(batch: Batch) -> Tensor:
        states = decoder(**batch.inputs(base.dtype), output_hidden_states=True).hidden_states
        return torch.stack([states[index] for index in chosen], dim=2)

    return read


def probes(base: PreTrainedModel, examples: Sequence[LabelledExample], truth: Tensor) -> list[Detector]:
    """Fits probes on the base's states: linear ones on its last block and on its best one, and one with attention.

    Block and pooling (the last token, or the mean so far) are chosen on a fifth of the texts. The linear probes are
    logistic regressions, fitted to the states after all parts of the other texts. The probe with attention reads all
    states of the block whose mean detects best. The base reads the texts twice.

    Args:
        base: the frozen base.
        examples: what to learn from.
        truth: `[n]` bool.
    """
    last = base.config.get_text_config(decoder=True).num_hidden_layers
    held = held_out(len(examples))
    states = _read(_blocks(base, range(last + 1)), examples, base.device, (LAST, MEAN))
    areas: dict[tuple[int, str], float] = {}
    for kind, values in states.items():
        for block in range(last + 1):
            whole = values[:, -1, block].float()  # [n, d]
            weight, bias = fit_classifier(whole[~held], truth[~held], PENALTY)
            areas[block, kind] = auc(whole[held] @ weight + bias, truth[held])
    block, kind = max(areas, key=lambda choice: areas[choice])
    pooling = max((LAST, MEAN), key=lambda kind: areas[last, kind])
    made = [
        _linear_probe(base, states[pooling][:, :, last], truth, last, pooling, f"linear probe, last block ({pooling})"),
        _linear_probe(base, states[kind][:, :, block], truth, block, kind, f"linear probe, block {block} ({kind})"),
    ]
    del states
    return [*made, _attention_probe(base, examples, truth, max(range(last + 1), key=lambda block: areas[block, MEAN]))]


def _linear_probe(base: PreTrainedModel, seen: Tensor, truth: Tensor, block: int, kind: str, name: str) -> Detector:
    """Fits a linear probe to the states of one block after each part of the texts, `[n, 4, d]`."""
    read, held, seen = _blocks(base, [block]), held_out(len(seen)), seen.float()
    parts = truth[~held].repeat_interleave(len(PERCENTS))
    weight, bias = fit_classifier(seen[~held].flatten(0, 1), parts)
    threshold = best_threshold(seen[held, -1] @ weight + bias, truth[held])

    def score(texts: Sequence[LabelledExample]) -> Tensor:
        return _read(read, texts, base.device, (kind,))[kind][:, :, 0].float() @ weight + bias  # [n, 4]

    return Detector(name, over(score, threshold), len(weight) + 1)


def _attention_probe(base: PreTrainedModel, examples: Sequence[LabelledExample], truth: Tensor, block: int) -> Detector:
    read, held = _blocks(base, [block]), held_out(len(examples))

    def states(texts: Sequence[LabelledExample]) -> list[Tensor]:
        by_text = dict(_beside_tokens(read, texts, base.device))
        return [by_text[index][:, 0].bfloat16().cpu() for index in range(len(texts))]  # each [N, d]

    seen = states(examples)
    probe = fit_attention_probe(seen, truth, held)

    @torch.no_grad()
    def scores(some: Sequence[Tensor]) -> Tensor:
        return torch.stack([probe(each[None].float())[0, part_ends(len(each))] for each in some])  # [n, 4]

    decided = [each for each, out in zip(seen, held.tolist(), strict=True) if out]
    threshold = best_threshold(scores(decided)[:, -1], truth[held])
    size = sum(parameter.numel() for parameter in probe.parameters())
    return Detector(f"attention probe, block {block}", over(lambda texts: scores(states(texts)), threshold), size)


def bag_of_words(tokenizer: PreTrainedTokenizerBase, examples: Sequence[LabelledExample], truth: Tensor) -> Detector:
    """Fits a logistic regression on TF-IDF of words and pairs of words.

    Raises:
        OtterError: scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ModuleNotFoundError as error:
        raise OtterError("the bag of words needs scikit-learn: pip install 'otter-lm[bench]'") from error

    def texts(some: Sequence[LabelledExample], part: int) -> list[str]:
        branches = [each.example.branches[0] for each in some]
        return [
            tokenizer.decode(branch[: part_ends(len(branch))[part] + 1], skip_special_tokens=True)
            for branch in branches
        ]

    held = held_out(len(examples))
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2), LogisticRegression(C=10.0))
    learned = [each for each, out in zip(examples, held.tolist(), strict=True) if not out]
    model.fit(texts(learned, -1), truth[~held].numpy())

    def score(some: Sequence[LabelledExample]) -> Tensor:
        columns = [model.predict_proba(texts(some, part))[:, 1] for part in range(len(PERCENTS))]
        return torch.stack([torch.as_tensor(column, dtype=torch.float32) for column in columns], dim=1)

    decided = [each for each, out in zip(examples, held.tolist(), strict=True) if out]
    threshold = best_threshold(score(decided)[:, -1], truth[held])
    return Detector("bag of words", over(score, threshold), model[-1].coef_.size + 1)


def separate_classifier(
    folder: str, base: PreTrainedModel, examples: Sequence[LabelledExample], truth: Tensor
) -> Detector:
    """Loads a fully fine-tuned copy of the base, as `otterlm.peers.classifier` trains it.

    Args:
        folder: of the classifier.
        base: tells where to compute.
        examples: a fifth of them decides on the threshold; it was trained on them.
        truth: `[n]` bool.

    Raises:
        OtterError: there is none, or it has another vocabulary than the base.
    """
    model = SeparateRewardModel.from_pretrained(folder, base.dtype).to(base.device)
    theirs, ours = (each.config.vocab_size for each in (model.classifier, base))
    if theirs != ours:
        raise OtterError(f"{folder} has {theirs} tokens and the base {ours}: it is no copy of the base")

    @torch.no_grad()
    def read(batch: Batch) -> Tensor:
        return model.read(**batch.inputs(model.classifier.dtype))

    def score(texts: Sequence[LabelledExample]) -> Tensor:
        return _read(read, texts, base.device, (LAST,))[LAST].float()

    held = held_out(len(examples))
    decided = [each for each, out in zip(examples, held.tolist(), strict=True) if out]
    threshold = best_threshold(score(decided)[:, -1], truth[held])
    size = sum(parameter.numel() for parameter in model.parameters())
    return Detector("separate classifier, fine-tuned", over(score, threshold), size)
