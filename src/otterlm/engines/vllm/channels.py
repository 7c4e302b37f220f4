"""How a reward gets out of an engine: as the log probability of a token that nobody says.

vLLM returns numbers beside tokens in one place only, the log probabilities. Every reward adapter of an exported folder
has a *channel*, a token id whose log probability is the reward plus an offset, in the rows of requests that ask for it.
The token's own logit is put back before anything is sampled; of the log probabilities of such a row, the others are
those of a vocabulary without its channels.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

OFFSET = -64.0
"""Added to a reward: so far below the others that their log probabilities do not move by a bit."""

LIMIT = 32.0
"""Rewards are clamped to this, from above, for the same reason."""


def choose_channels(names: Sequence[str], tokenizer: Any, vocabulary_size: int, ends: Iterable[int]) -> dict[str, int]:
    """A channel for each name: ids that no tokenizer makes, else special tokens that no dialogue has, else the last
    tokens of the vocabulary.

    Args:
        names: of the reward adapters.
        tokenizer: the base's; None: unknown.
        vocabulary_size: the base's.
        ends: tokens that end a response.
    """
    last_first = range(vocabulary_size - 1, -1, -1)
    unused: list[int] = []
    special: list[int] = []
    if tokenizer is not None:
        used = set(tokenizer.get_vocab().values())
        unused = [token for token in last_first if token not in used]
        template = str(tokenizer.chat_template or "")
        marks = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id, *ends}
        added = tokenizer.added_tokens_decoder
        special = [
            token
            for token in last_first
            if token in added and added[token].special and token not in marks and added[token].content not in template
        ]
    candidates = dict.fromkeys([*unused, *special, *last_first])
    return dict(zip(names, candidates, strict=False))


def encode(rewards: Tensor, logits: Tensor) -> Tensor:
    """The logits that channels need for their log probabilities to say `rewards`.

    Args:
        rewards: `[N]`.
        logits: `[N, V]`, minus infinity at the channels.

    Returns:
        `[N]`, float32.
    """
    return torch.logsumexp(logits.float(), dim=-1) + rewards.float().clamp_max(LIMIT) + OFFSET


def decode(logprob: float) -> float:
    """A channel's log probability to the reward."""
    return logprob - OFFSET


def rewards_of(logprobs: Sequence[Mapping[int, Any]], channels: Mapping[str, int]) -> dict[str, list[float]]:
    """The rewards beside the tokens of an offline `CompletionOutput`.

    Args:
        logprobs: its `logprobs`.
        channels: of the folder, see `otterlm.engines.exported.read_channels`.

    Returns:
        By adapter, one number a token: the reward of the text that the token was chosen after.
    """
    asked = {name: token for name, token in channels.items() if logprobs and token in logprobs[0]}
    return {name: [decode(step[token].logprob) for step in logprobs] for name, token in asked.items()}
