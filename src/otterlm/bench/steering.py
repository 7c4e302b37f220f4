"""Measures steering: guidance at several weights and search, beside the base, one sample, and best-of-n.

All methods answer the same prompts in turn, batch by batch, and each response's final reward is read from the widened
model. The base's samples are made once: best-of-4 chooses among the first four of the sixteen that best-of-16 has.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.bases import check_context
from otterlm.bench.answering import SAMPLING, Method, pace, respond
from otterlm.bench.report import machine
from otterlm.bench.steering_methods import BASE, FinalReward, Label
from otterlm.identity import identity, of_data, of_inserted
from otterlm.model import OtterModel
from otterlm.resumable import run_resumable
from otterlm.training.data.conversations import Prompt
from otterlm.training.data.tokens import encode_prompts
from otterlm.training.teachers.continuations import of_generation, pad_left

SAMPLES = 16
"""The base samples so many responses of each prompt."""
AT_ONCE = 4
"""So many of them are sampled at once."""
BEST_OF = (4, 16)
"""The values of n for best-of-n, multiples of `AT_ONCE`."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of one method have one response to each prompt.

    Attributes:
        responses: their tokens, the end among them.
        rewards: their final rewards, `[N]`.
        paces: seconds a step, of each batch.
    """

    responses: list[list[int]]
    rewards: Tensor
    paces: list[float]


def answer_all(
    methods: Mapping[Label, Method],
    model: OtterModel,
    adapter_name: str,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    new_tokens: int = 64,
    max_prompt_tokens: int = 256,
    batch_size: int = 8,
    seed: int = 0,
    path: Path | None = None,
) -> list[dict[str, Any]]:
    """Answers prompts with all methods in turn, batch by batch, and reads the final rewards.

    Args:
        methods: see `otterlm.bench.steering_methods.methods_of`.
        model: the base with the adapter.
        adapter_name: of the reward.
        tokenizer: the base's.
        prompts: as chat turns.
        new_tokens: at most so many are generated after each.
        max_prompt_tokens: a longer prompt keeps its end.
        batch_size: prompts a batch.
        seed: with the number of the batch it seeds sampling methods.
        path: see `otterlm.resumable.run_resumable`.

    Returns:
        For each batch: `methods`, a list of `seconds`, `responses` and `rewards`; and `samples`, a list of the same for
        every `AT_ONCE` of the base's samples, rows `AT_ONCE * b + n`. Their seconds have the time of scoring, too.

    Raises:
        OtterError: a text exceeds the base's context, or `path` belongs to another run.
    """
    base = methods[BASE, None].model
    encoded = encode_prompts(prompts, tokenizer, max_prompt_tokens)
    check_context(base.config, max(map(len, encoded)) + new_tokens)
    groups = [(start, encoded[start : start + batch_size]) for start in range(0, len(encoded), batch_size)]
    pad = tokenizer.pad_token_id or 0

    def one(group: tuple[int, list[list[int]]]) -> dict[str, Any]:
        start, rows = group
        final = FinalReward(model, adapter_name, pad)
        ids, mask = pad_left(rows, pad, base.device)
        answers = []
        for method in methods.values():
            torch.manual_seed(1000 * seed + start // batch_size)
            answered = respond(method, ids, mask, new_tokens, pad, base)
            answers.append(answered | {"rewards": final(rows, answered["responses"])})
        torch.manual_seed(1000 * seed + start // batch_size)
        samples = [_sample(base, final, rows, new_tokens) for _ in range(SAMPLES // AT_ONCE)]
        return {"methods": answers, "samples": samples}

    adapter = model.adapter(adapter_name)
    this = identity(
        "steering bench",
        **of_generation(base),
        adapter=of_inserted(adapter),
        methods=list(methods),
        depends=[method.depends for method in methods.values()],
        prompts=of_data(encoded),
        new_tokens=new_tokens,
        batch_size=batch_size,
        samples=SAMPLES,
        seed=seed,
        machine=machine(),
    )
    return run_resumable(groups, one, path, this, "answering", warm_up=lambda: one((0, encoded[:1])))


def _sample(base: PreTrainedModel, final: FinalReward, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
    """Samples `AT_ONCE` responses of each prompt, and reads their rewards."""
    ids, mask = pad_left(prompts, final.pad, base.device)
    answered = respond(Method(base, lambda mask: SAMPLING), ids, mask, new_tokens, final.pad, base, AT_ONCE)
    started = time.perf_counter()
    rewards = final([prompt for prompt in prompts for _ in range(AT_ONCE)], answered["responses"])
    seconds = answered["seconds"] + time.perf_counter() - started
    return answered | {"rewards": rewards, "seconds": seconds}


def trained_spread(model: OtterModel, adapter_name: str) -> float | None:
    """Returns the spread of final rewards that training measured; None where it did not."""
    return getattr(model.adapter(adapter_name).config.signal, "spread", None)


def answers_of(labels: Sequence[Label], batches: Sequence[Mapping[str, Any]]) -> dict[Label, Answers]:
    """Collects the responses of `answer_all` by method, best-of-n included.

    Args:
        labels: of the methods, in their order.
        batches: from `answer_all`.
    """
    answers: dict[Label, Answers] = {}
    for index, label in enumerate(labels):
        answered = [batch["methods"][index] for batch in batches]
        answers[label] = Answers(
            [response for each in answered for response in each["responses"]],
            torch.tensor([reward for each in answered for reward in each["rewards"]], dtype=torch.float64),
            list(map(pace, answered)),
        )
    return answers | {(f"best-of-{n}", None): _best_of(n, batches) for n in BEST_OF}


def samples_of(batches: Sequence[Mapping[str, Any]], n: int = SAMPLES) -> tuple[list[list[list[int]]], Tensor]:
    """Returns the first n samples of each prompt, and their rewards, `[N, n]`."""
    responses, rewards = [], []
    for batch in batches:
        rounds = batch["samples"][: n // AT_ONCE]
        for row in range(0, len(rounds[0]["responses"]), AT_ONCE):
            responses.append([each for done in rounds for each in done["responses"][row : row + AT_ONCE]])
            rewards.append([each for done in rounds for each in done["rewards"][row : row + AT_ONCE]])
    return responses, torch.tensor(rewards, dtype=torch.float64)


def _best_of(n: int, batches: Sequence[Mapping[str, Any]]) -> Answers:
    """Takes the one with the highest reward of the first n samples of each prompt. Its time is that of all n."""
    responses, rewards = samples_of(batches, n)
    best, chosen = rewards.max(dim=1)
    rounds = [batch["samples"][: n // AT_ONCE] for batch in batches]
    seconds = [sum(each["seconds"] for each in done) for done in rounds]
    steps = [max(len(response) for each in done for response in each["responses"]) for done in rounds]
    return Answers(
        [samples[index] for samples, index in zip(responses, chosen.tolist(), strict=True)],
        best,
        [taken / longest for taken, longest in zip(seconds, steps, strict=True)],
    )
