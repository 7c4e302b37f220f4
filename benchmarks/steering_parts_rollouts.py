"""Rolls the base out behind candidate tokens, as `benchmarks/steering_parts.py` needs it: what does a token lead to?

At random positions of the base's responses each of its likeliest next tokens is followed by a short sampled
continuation. A vocabulary head then learns what stands at the end of the continuation, and not one token later.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from otterlm.decoding.ends import end_tokens
from otterlm.decoding.prompt import read_once
from otterlm.identity import identity, of_data, of_weights
from otterlm.model import OtterModel
from otterlm.resumable import run_resumable
from otterlm.signals.reward.losses import final_rewards
from otterlm.training.data.packing import CHOSEN, Example, collate
from otterlm.training.sources import LiveBase, read_batch
from otterlm.training.teachers.continuations import pad_left, responses_of
from otterlm.training.teachers.responses import Response
from otterlm.training.vocabulary_head import Steps

POSITIONS = 6
"""So many positions of each prompt's responses."""
TOKENS = 24
"""So many tokens follow a candidate."""
TOP_P = 0.95
BATCH = 12

Prefix = tuple[int, tuple[int, ...]]
"""The row of a prompt, and the tokens up to a position of one of its responses."""


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Holds what follows k candidates at one position.

    Attributes:
        text: the tokens up to the position as the prefix, and each candidate with its continuation as a branch.
        log_probs: the base's of the candidates; the likeliest first.
    """

    text: Example
    log_probs: tuple[float, ...]


@torch.no_grad()
def roll_out(
    base: PreTrainedModel, examples: Sequence[Example], k: int, seed: int, pad: int, path: Path
) -> list[Rollouts]:
    """Rolls out the base's k likeliest tokens at `POSITIONS` positions of each example; a stopped call goes on."""
    prefixes = _prefixes(examples, seed)
    batches = list(enumerate(prefixes[start : start + BATCH] for start in range(0, len(prefixes), BATCH)))
    settings = {"k": k, "seed": seed, "tokens": TOKENS, "top_p": TOP_P, "batch": BATCH}
    this = identity("rollouts of candidates", base=of_weights(base), prefixes=of_data(prefixes), **settings)

    def one(batch: tuple[int, list[Prefix]]) -> list[list[list[Any]]]:
        torch.manual_seed(seed * 1_000_003 + batch[0])
        return _continue(base, [list(tokens) for _, tokens in batch[1]], k, pad)

    done = run_resumable(batches, one, path, this, "rolling out candidates")
    flat = [candidates for group in done for candidates in group]
    return [
        Rollouts(Example(row, tokens, tuple(tuple(branch) for branch, _ in each)), tuple(log for _, log in each))
        for (row, tokens), each in zip(prefixes, flat, strict=True)
    ]


def _prefixes(examples: Sequence[Example], seed: int) -> list[Prefix]:
    """Chooses positions, of like length together."""
    chosen = random.Random(seed)
    prefixes: list[Prefix] = []
    for example in examples:
        every = [
            (example.row, example.prefix + branch[:length])
            for branch in example.branches
            for length in range(len(branch))
        ]
        prefixes += chosen.sample(every, min(POSITIONS, len(every)))
    return sorted(prefixes, key=lambda prefix: len(prefix[1]))


def _continue(base: PreTrainedModel, prefixes: list[list[int]], k: int, pad: int) -> list[list[list[Any]]]:
    """Returns of each prefix k candidates with their continuations, and their log probabilities."""
    ids, mask = pad_left(prefixes, pad, base.device)
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    logits = base(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1).logits[:, -1]
    log_probs, candidates = logits.float().log_softmax(dim=-1).topk(k, dim=-1)  # [B, k]
    first = candidates.flatten()[:, None]  # [B k, 1]
    output = base.generate(
        torch.cat((ids.repeat_interleave(k, dim=0), first), dim=1),
        attention_mask=torch.cat((mask.repeat_interleave(k, dim=0), torch.ones_like(first)), dim=1),
        past_key_values=read_once(base, ids, mask, k),
        max_new_tokens=TOKENS,
        do_sample=True,
        temperature=1.0,
        top_p=TOP_P,
        top_k=0,
        pad_token_id=pad,
    )
    ends = end_tokens(base.generation_config)
    branches = [row[:1] if row[0] in ends else row for row in responses_of(output, ids.shape[1], base)]
    logs = log_probs.flatten().tolist()
    both = [[branch, log] for branch, log in zip(branches, logs, strict=True)]
    return [both[start : start + k] for start in range(0, len(both), k)]


@torch.no_grad()
def rollout_steps(
    model: OtterModel,
    rollouts: Sequence[Rollouts],
    rate: Callable[[Sequence[Response]], list[float]] | None,
    batch_size: int,
) -> Steps:
    """Makes steps of rollouts, for `fit_vocabulary`.

    Args:
        model: with the trained stream.
        rollouts: of `roll_out`.
        rate: gives the number at a rollout's end; None: the stream's own reward there.
        batch_size: positions a pass.
    """
    source, name, parts = LiveBase(model), model.adapter_name(None), list[tuple[Tensor, Tensor]]()
    for start in range(0, len(rollouts), batch_size):
        group = rollouts[start : start + batch_size]
        batch = collate([each.text for each in group]).to(model.device)
        signal = read_batch(model, source, batch, name)
        at = torch.tensor([len(each.text.prefix) - 1 for each in group])
        if rate is None:
            sides = range(CHOSEN, CHOSEN + len(group[0].text.branches))
            ends = torch.stack([final_rewards(signal.prefix, batch.segments, side) for side in sides], dim=1)
        else:
            responses = [Response((), "", [*each.text.prefix], [*b]) for each in group for b in each.text.branches]
            ends = torch.tensor(rate(responses)).view(len(group), -1)
        parts.append((signal.state[torch.arange(len(group)), at].to(torch.bfloat16), ends))
    states, ends = (torch.cat(each) for each in zip(*parts, strict=True))
    tokens = torch.tensor([[branch[0] for branch in each.text.branches] for each in rollouts])
    log_probs = torch.tensor([each.log_probs for each in rollouts])
    rows = torch.tensor([each.text.row for each in rollouts])
    return Steps(rows, states, tokens, log_probs, ends - ends.mean(dim=1, keepdim=True))
