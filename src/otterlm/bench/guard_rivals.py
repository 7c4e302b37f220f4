"""Makes detectors of offences beside a guard: a bag of words, and a separate classifier.

Each gives every text a score after 25, 50, 75 and 100% of its tokens, and flags whole texts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.errors import OtterError
from otterlm.progress import track
from otterlm.training.data.labelled_tokens import LabelledExample
from otterlm.training.data.packing import Batch, collate, length_buckets
from otterlm.training.evaluation.detection import best_threshold
from otterlm.training.evaluation.guard_metrics import PERCENTS
from otterlm.training.evaluation.scoring import index_at
from otterlm.training.teachers.reward_model import SeparateRewardModel

HELD = 5
"""One text in so many of those that a rival learns from decides on its blocks and its threshold."""
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
        kind: what detectors of several seeds share; empty: the name.
        seed: of what it learned from, and of its initialisation.
    """

    name: str
    judge: Callable[[Sequence[LabelledExample]], Verdicts]
    extra_parameters: int
    kind: str = ""
    seed: int = 0


def over(score: Callable[[Sequence[LabelledExample]], Tensor], threshold: float) -> Any:
    """Makes the verdicts of scores and a threshold for whole texts."""

    def judge(examples: Sequence[LabelledExample]) -> Verdicts:
        scores = score(examples)
        return scores, scores[:, -1] >= threshold

    return judge


def part_ends(length: int) -> list[int]:
    """Returns the index of the token that ends each part of a text."""
    return [index_at(length, percent) for percent in PERCENTS]


def held_out(count: int, seed: int = 0) -> Tensor:
    """Chooses the texts that decide, `[n]` bool."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order % HELD == 0


def beside_tokens(
    read: Callable[[Batch], Tensor], examples: Sequence[LabelledExample], device: Any
) -> Iterator[tuple[int, Tensor]]:
    """Reads something, `[B, T, ...]`, beside the tokens of every text; yields the text's index and `[N, ...]` float."""
    order = {each.example.row: index for index, each in enumerate(examples)}
    for group in track(list(length_buckets([each.example for each in examples], 8)), "reading texts"):
        values = read(collate(group).to(device))
        for row, example in enumerate(group):
            yield order[example.row], values[row, len(example.prefix) : len(example)].float()


def pooled(inside: Tensor, kind: str) -> Tensor:
    """Computes what stands beside a text's tokens, `[N, ...]`, at the end of each part, `[4, ...]`.

    Args:
        inside: float.
        kind: `LAST`, at the last token, or `MEAN`, over all tokens so far.
    """
    ends = part_ends(len(inside))
    return inside[ends] if kind == LAST else torch.stack([inside[: end + 1].mean(dim=0) for end in ends])


def read_parts(
    read: Callable[[Batch], Tensor], examples: Sequence[LabelledExample], device: Any, kinds: Sequence[str]
) -> dict[str, Tensor]:
    """Reads something beside every token after each part of every text: by kind `[n, 4, ...]` bfloat16.

    Args:
        read: gives it, `[B, T, ...]`.
        examples: the texts.
        device: to read on.
        kinds: how it is pooled, see `pooled`.
    """
    collected: dict[str, list[Any]] = {kind: [None] * len(examples) for kind in kinds}
    for index, inside in beside_tokens(read, examples, device):
        for kind in kinds:
            collected[kind][index] = pooled(inside, kind).bfloat16().cpu()
    return {kind: torch.stack(parts) for kind, parts in collected.items()}


def of_seed(name: str, seed: int) -> str:
    """Returns the name of a detector of a seed; the first seed's has no number."""
    return f"{name}, seed {seed}" if seed else name


def bag_of_words(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[LabelledExample], truth: Tensor, seed: int = 0
) -> Detector:
    """Fits a logistic regression on TF-IDF of words and pairs of words.

    Args:
        tokenizer: of the texts.
        examples: what to learn from.
        truth: `[n]` bool.
        seed: of the fifth that decides on the threshold, from which nothing else is learned.

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

    held = held_out(len(examples), seed)
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, token_pattern=r"\b\w+\b")
    model = make_pipeline(words, LogisticRegression(C=10.0))
    learned = [each for each, out in zip(examples, held.tolist(), strict=True) if not out]
    model.fit(texts(learned, -1), truth[~held].numpy())

    def score(some: Sequence[LabelledExample]) -> Tensor:
        columns = [model.predict_proba(texts(some, part))[:, 1] for part in range(len(PERCENTS))]
        return torch.stack([torch.as_tensor(column, dtype=torch.float32) for column in columns], dim=1)

    decided = [each for each, out in zip(examples, held.tolist(), strict=True) if out]
    threshold = best_threshold(score(decided)[:, -1], truth[held])
    kind, size = "bag of words", model[-1].coef_.size + 1
    return Detector(of_seed(kind, seed), over(score, threshold), size, kind, seed)


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
        return read_parts(read, texts, base.device, (LAST,))[LAST].float()

    held = held_out(len(examples))
    decided = [each for each, out in zip(examples, held.tolist(), strict=True) if out]
    threshold = best_threshold(score(decided)[:, -1], truth[held])
    size = sum(parameter.numel() for parameter in model.parameters())
    return Detector("separate classifier, fine-tuned", over(score, threshold), size)
