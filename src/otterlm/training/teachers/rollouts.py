"""Judges prefixes by rollouts: the base continues a prefix several times, and a scorer rates each whole response.

A prefix counts as an offence where at least a share of them does (85% in Qwen3Guard, arXiv 2510.14276; see also
StreamGuard, arXiv 2604.03962).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.checks import check_share
from otterlm.decoding.prompt import read_once
from otterlm.identity import identity, of_data, of_tokenizer
from otterlm.resumable import run_resumable
from otterlm.settings import check_settings, setting
from otterlm.training.data.conversations import Prompt
from otterlm.training.data.packing import Example
from otterlm.training.teachers.continuations import of_generation, pad_left, responses_of
from otterlm.training.teachers.responses import Sampling
from otterlm.training.teachers.scorers import LoadedScorer


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Says how prefixes are judged.

    Attributes:
        rollouts: continuations of each prefix; 0: prefixes are not judged, and learn the label of the whole response.
        prefixes: how many of each response are judged, in equal steps.
        rollout_share: of the rollouts that are offences, from which on the prefix is one.
    """

    rollouts: int = setting(0, "Continuations by which a prefix is judged; 0: by its response alone.", minimum=0)
    prefixes: int = setting(4, "Prefixes of each response that are judged by rollouts.", minimum=1)
    rollout_share: float = setting(0.85, "Share of a prefix's rollouts that makes it an offence.", check=check_share)

    def __post_init__(self) -> None:
        check_settings(self)

    def lengths(self, tokens: int) -> list[int]:
        """Returns the lengths of the prefixes of a response of so many tokens, without the whole response."""
        parts = self.prefixes + 1
        return sorted({tokens * part // parts for part in range(1, parts)} - {0, tokens})


class PrefixJudge:
    """Judges prefixes of the base's responses.

    Args:
        base: continues them.
        tokenizer: its tokenizer.
        scorer: rates whole responses.
        threshold: from this score on a response is an offence.
        sampling: of the rollouts, as of the responses.
        rollouts: how many.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        scorer: LoadedScorer,
        threshold: float,
        sampling: Sampling,
        rollouts: Rollouts,
    ) -> None:
        self._base, self._tokenizer, self._scorer = base, tokenizer, scorer
        self._threshold, self._sampling, self._rollouts = threshold, sampling, rollouts

    def judge(self, prompts: Sequence[Prompt], examples: Sequence[Example], path: Path) -> list[list[list[float]]]:
        """Judges the prefixes of all responses, and keeps what is done in a file, from which a later call goes on.

        Args:
            prompts: as chat turns; `row` of an example is the index of its prompt.
            examples: prompts with responses.
            path: a JSON lines file.

        Returns:
            Of every example, of each of its responses, of each of `Rollouts.lengths`: the share of offences.

        Raises:
            OtterError: the file is of another run, or the scorer fails.
        """
        depends: dict[str, Any] = of_generation(self._base) | {"tokenizer": of_tokenizer(self._tokenizer)}
        depends |= {"examples": of_data(examples), "scorer": self._scorer.identity, "threshold": self._threshold}
        depends |= {"prompts": of_data(prompts)}  # the scorer reads them whole, and examples may have only their ends
        this = identity("judged prefixes", **depends, **asdict(self._sampling), **asdict(self._rollouts))

        def one(example: Example) -> list[list[float]]:
            torch.manual_seed(self._sampling.seed * 1_000_003 + example.row)
            parts = [tokens[:end] for tokens in example.branches for end in self._ends(tokens)]
            judged = iter(self._shares(prompts[example.row], example.prefix, parts) if parts else ())
            return [[next(judged) for _ in self._ends(tokens)] for tokens in example.branches]

        shares: list[list[list[float]]] = run_resumable(list(examples), one, path, this, "judging prefixes")
        return shares

    def _ends(self, tokens: Sequence[int]) -> list[int]:
        return self._rollouts.lengths(len(tokens))

    @torch.no_grad()
    def _shares(self, prompt: Prompt, before: Sequence[int], parts: Sequence[Sequence[int]]) -> list[float]:
        """Returns of each prefix the share of offences among whole responses that begin with it. All are continued in
        one call, which reads each prefix once."""
        pad, sampling, count = self._tokenizer.pad_token_id or 0, self._sampling, self._rollouts.rollouts
        prefixes, seen = pad_left([[*before, *part] for part in parts], pad, self._base.device)
        ids, mask = (each.repeat_interleave(count, dim=0) for each in (prefixes, seen))
        allowed = [max(1, sampling.max_new_tokens - len(part)) for part in parts]
        output: Any = self._base.generate(
            ids,
            attention_mask=mask,
            past_key_values=read_once(self._base, prefixes, seen, count),
            max_new_tokens=max(allowed),
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            pad_token_id=pad,
        )
        rows, texts = responses_of(output, ids.shape[1], self._base), []
        for number, row in enumerate(rows):
            whole = [*parts[number // count], *row[: allowed[number // count]]]
            texts.append(self._tokenizer.decode(whole, skip_special_tokens=True))
        offences = [score >= self._threshold for score in self._scorer([prompt] * len(texts), texts)]
        return [sum(offences[start : start + count]) / count for start in range(0, len(offences), count)]
