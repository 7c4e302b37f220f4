"""Compares preference alignment by Otter's guidance and search, ARGS, and CARDS with either's rewards.

All methods answer the same prompts in turn, batch by batch. A judge, a reward model of other data, rates the responses.
Rewards have no common scale, so each reward model's are measured on the base's responses first: a weight counts in
their spreads, and the threshold of CARDS is one spread above their mean.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from otterlm.bench.alignment_methods import BASE
from otterlm.bench.answering import Method, pace, respond, time_over
from otterlm.bench.judges import Coherence, diversity
from otterlm.bench.report import half_interval, machine
from otterlm.identity import identity, of_data
from otterlm.resumable import run_resumable
from otterlm.training.data.conversations import Prompt
from otterlm.training.data.tokens import Limits, encode_prompts
from otterlm.training.teachers.continuations import of_generation, pad_left
from otterlm.training.teachers.reward_model import Preference


@dataclass(frozen=True, slots=True)
class AlignmentRow:
    """A row is one method over all prompts; `..._ci95` is half of a 95% interval.

    Attributes:
        method: its name.
        prompts: how many there are.
        reward: mean of the judge's rewards.
        win_rate: share of prompts where the judge rates the response above the base's greedy one; equals count half.
        diversity, coherence: see `otterlm.bench.judges`; coherence None: not measured.
        tokens: mean length of a response.
        seconds_per_step: median over the batches of seconds / tokens of the longest response.
        time_over_base: median over the batches of its seconds a step / those of the base; `_ci95` is its interval.
        extra_time_saved: 1 - extra seconds a step / those of ARGS at the same k, with a KV cache.
        extra_parameters: beside the base.
        extra_space_saved: 1 - those / those of the separate reward model.
    """

    method: str
    prompts: int
    reward: float
    reward_ci95: float
    win_rate: float
    win_rate_ci95: float
    diversity: float
    coherence: float | None
    tokens: float
    seconds_per_step: float
    time_over_base: float
    time_over_base_ci95: list[float]
    extra_time_saved: float
    extra_parameters: int
    extra_space_saved: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the row for JSON."""
        return asdict(self)


def answer_all(
    methods: Mapping[str, Method],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    new_tokens: int = 64,
    max_prompt_tokens: int = 96,
    batch_size: int = 8,
    seed: int = 0,
    path: Path | None = None,
) -> list[dict[str, Any]]:
    """Answers prompts with all methods in turn, batch by batch.

    Args:
        methods: by name, `BASE` among them.
        tokenizer: the base's.
        prompts: as chat turns.
        new_tokens: at most so many are generated after each.
        max_prompt_tokens: a longer prompt keeps its end.
        batch_size: prompts a batch.
        seed: with the number of the batch it seeds sampling methods.
        path: see `otterlm.resumable.run_resumable`.

    Returns:
        For each batch, by method: `seconds`, and `responses`, a list of tokens a prompt.

    Raises:
        OtterError: `path` belongs to another run.
    """
    base = methods[BASE].model
    encoded = encode_prompts(prompts, tokenizer, max_prompt_tokens)
    groups = [(start, encoded[start : start + batch_size]) for start in range(0, len(encoded), batch_size)]
    pad = tokenizer.pad_token_id or 0

    def one(group: tuple[int, list[list[int]]]) -> dict[str, Any]:
        start, rows = group
        ids, mask = pad_left(rows, pad, base.device)
        results = {}
        for name, method in methods.items():
            torch.manual_seed(1000 * seed + start // batch_size)
            results[name] = respond(method, ids, mask, new_tokens, pad, base)
        return results

    settings = {"new_tokens": new_tokens, "batch_size": batch_size, "seed": seed, "machine": machine()}
    depends = {name: method.depends for name, method in methods.items()}
    parts = of_generation(base) | settings | {"methods": depends, "prompts": of_data(encoded)}
    this = identity("alignment bench", **parts)
    return run_resumable(groups, one, path, this, "answering", warm_up=lambda: one((0, encoded[:1])))


def judge(
    methods: Mapping[str, Method],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    batches: Sequence[Mapping[str, Any]],
    preference: Preference,
    coherence: Coherence | None,
    limits: Limits,
) -> list[AlignmentRow]:
    """Rates the responses of `answer_all`.

    Args:
        methods, tokenizer, prompts: as for `answer_all`.
        batches: from `answer_all`.
        preference: the judge.
        coherence: None: not measured.
        limits: how much the judge reads of a prompt and of a response.
    """
    texts = {
        name: [
            tokenizer.decode(tokens, skip_special_tokens=True)
            for batch in batches
            for tokens in batch[name]["responses"]
        ]
        for name in methods
    }
    last_turns = [prompt[-1][1] for prompt in prompts]
    rewards = {name: torch.tensor(preference(prompts, responses, limits)) for name, responses in texts.items()}
    paces = {name: [pace(each[name]) for each in batches] for name in methods}
    extra = {
        name: statistics.median(steered - plain for steered, plain in zip(paces[name], paces[BASE], strict=True))
        for name in methods
    }
    args = max(seconds for name, seconds in extra.items() if name.startswith("ARGS"))
    copy = max(method.extra_parameters for method in methods.values())
    rows = []
    for name, method in methods.items():
        wins = (rewards[name] > rewards[BASE]).double() + 0.5 * (rewards[name] == rewards[BASE]).double()
        slower, between = time_over(paces[name], paces[BASE])
        rows.append(
            AlignmentRow(
                method=name,
                prompts=len(prompts),
                reward=float(rewards[name].mean()),
                reward_ci95=half_interval(rewards[name]),
                win_rate=float(wins.mean()),
                win_rate_ci95=half_interval(wins),
                diversity=statistics.mean(map(diversity, texts[name])),
                coherence=None if coherence is None else statistics.mean(coherence(last_turns, texts[name])),
                tokens=statistics.mean(len(tokens) for batch in batches for tokens in batch[name]["responses"]),
                seconds_per_step=statistics.median(paces[name]),
                time_over_base=slower,
                time_over_base_ci95=between,
                extra_time_saved=1 - extra[name] / args,
                extra_parameters=method.extra_parameters,
                extra_space_saved=1 - method.extra_parameters / copy,
            )
        )
    return rows
