"""Continues prompts for `draft_text.py`: by vLLM, or by Transformers in large batches, as pays on a GPU."""

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from otterlm.bases import base_folder
from otterlm.decoding.ends import end_tokens
from otterlm.masks import additive, token_positions
from otterlm.training.teachers.continuations import pad_left

LOOK = 16
"""After so many steps a batch leaves out the rows that ended. Keys are read in multiples of it, too: attention kernels
want masks of such widths."""


@dataclass(frozen=True, slots=True)
class Continued:
    """A continuation has its tokens, the one that ended it among them, and whether one did."""

    tokens: list[int]
    ended: bool


class Engine(Protocol):
    """Continues prompts, greedily where the seed is None, else sampled at temperature 1."""

    def generate(
        self, prompts: list[list[int]], seeds: list[int | None], limit: int, end: int | None
    ) -> list[Continued]:
        """Continues prompts by up to `limit` tokens.

        They end with a token of the base's generation settings, or with `end`.
        """


class ByVllm:
    """The engine is vLLM, in its environment.

    Args:
        base: its name.
        length: the longest text, in tokens.
        sequences: at once.
        compiled: by torch.compile, as vLLM does by default.
    """

    def __init__(self, base: str, length: int, sequences: int, compiled: bool) -> None:
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        from vllm import LLM

        self._llm = LLM(
            model=str(base_folder(base)),
            dtype="float32",
            enforce_eager=not compiled,
            max_model_len=length,
            max_num_seqs=sequences,
        )

    def generate(
        self, prompts: list[list[int]], seeds: list[int | None], limit: int, end: int | None
    ) -> list[Continued]:
        """Continues prompts, see `Engine`."""
        from vllm import SamplingParams

        ends = [] if end is None else [end]
        parameters = [
            SamplingParams(temperature=0.0 if seed is None else 1.0, seed=seed, max_tokens=limit, stop_token_ids=ends)
            for seed in seeds
        ]
        requests: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = [output.outputs[0] for output in self._llm.generate(requests, parameters, use_tqdm=False)]
        return [Continued(list(output.token_ids), output.finish_reason == "stop") for output in outputs]


class ByTransformers:
    """The engine is the base itself, with as many rows a batch as the cache has room for.

    A step costs about the same for one row as for a thousand where it is bound by launches.

    Args:
        base: the model, on its device; it attends by `attend_in_groups` from now on.
        pad: any token id.
        cache_tokens: of all rows of a batch together.
    """

    def __init__(self, base: PreTrainedModel, pad: int, cache_tokens: int) -> None:
        AttentionInterface.register("otter_groups", attend_in_groups)
        base.set_attn_implementation("otter_groups")
        self._base, self._pad, self._cache_tokens = base, pad, cache_tokens

    def generate(
        self, prompts: list[list[int]], seeds: list[int | None], limit: int, end: int | None
    ) -> list[Continued]:
        """Continues prompts, see `Engine`. A batch's samples are drawn together, so they depend on all its seeds."""
        ends = end_tokens(self._base.generation_config) | (set() if end is None else {end})
        done: dict[int, Continued] = {}
        for rows in self._batches(prompts, limit):
            drawn = [seeds[row] for row in rows]
            made = continue_batch(self._base, [prompts[row] for row in rows], drawn, limit, ends, self._pad)
            done |= dict(zip(rows, made, strict=True))
        return [done[row] for row in range(len(prompts))]

    def _batches(self, prompts: list[list[int]], limit: int) -> Iterator[list[int]]:
        """Yields the rows of batches: prompts of like length, as many as fit."""
        batch: list[int] = []
        for row in sorted(range(len(prompts)), key=lambda row: len(prompts[row])):
            if batch and (len(batch) + 1) * _in_full(len(prompts[row]) + limit) > self._cache_tokens:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch


def _in_full(tokens: int) -> int:
    return -(-tokens // LOOK) * LOOK


class Slots(DynamicLayer):
    """The cache of a layer has room for the whole text from the start: one that grows is copied at each step.

    Args:
        room: tokens a row.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room, self._used = room, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds keys and values, `[B, H, T, D]`, and returns all, in multiples of `LOOK`."""
        if not self._used:
            self.keys, self.values = (
                states.new_zeros(*states.shape[:2], self._room, states.shape[3])
                for states in (key_states, value_states)
            )
            self.is_initialized = True
        start, self._used = self._used, self._used + key_states.shape[2]
        self.keys[:, :, start : self._used] = key_states
        self.values[:, :, start : self._used] = value_states
        read = _in_full(self._used)
        return self.keys[:, :, :read], self.values[:, :, :read]

    def get_seq_length(self) -> int:
        """Counts the tokens of a row."""
        return self._used


def attend_in_groups(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attends as `sdpa` does, without copies of the keys for the heads that share them where a row reads one token.

    Those heads are then the queries of one head.

    Args:
        module: the attention of a block.
        query: `[B, H, T, D]`.
        key, value: `[B, K, S, D]`, K a divisor of H.
        attention_mask: additive, `[B, 1, T, S]`.
        scaling: of the scores.

    Returns:
        `[B, T, H, D]`.
    """
    batch, heads, tokens, width = query.shape
    groups = key.shape[1]
    if tokens == 1:
        query = query.view(batch, groups, heads // groups, width)
    elif groups != heads:
        key, value = (states.repeat_interleave(heads // groups, dim=1) for states in (key, value))
    read = torch.nn.functional.scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling)
    return read.reshape(batch, heads, tokens, -1).transpose(1, 2).contiguous(), None


@torch.no_grad()
def continue_batch(
    base: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int | None],
    limit: int,
    ends: set[int],
    pad: int,
) -> list[Continued]:
    """Continues prompts in one batch, from which rows that ended are left out now and then.

    Args:
        base: attends by `attend_in_groups`.
        prompts: token ids.
        seeds: of samples; None: greedy.
        limit: new tokens.
        ends: the tokens that end a continuation.
        pad: any token id.
    """
    device, dtype = base.device, base.dtype
    ids, mask = pad_left(prompts, pad, device)
    count, length = ids.shape
    room = _in_full(length + limit)
    cache = Cache(layers=[Slots(room) for _ in range(base.config.num_hidden_layers)])
    known = torch.zeros(count, room, dtype=torch.bool, device=device)
    known[:, :length] = mask.bool()
    position = token_positions(mask)
    settings: dict[str, Any] = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    visible = _prompt_mask(known[:, : _in_full(length)], length, dtype)
    logits = base(ids, attention_mask=visible, position_ids=position, **settings).logits[:, -1]
    scores = additive(known, dtype)  # [B, S]
    position, rows = position[:, -1:], torch.arange(count, device=device)
    sampled = torch.tensor([seed is not None for seed in seeds], device=device)
    draws = sampled.nonzero()[:, 0]
    generator = torch.Generator(device).manual_seed(random.Random(repr(seeds)).getrandbits(63))
    stops = torch.tensor(sorted(ends), dtype=torch.long, device=device)
    written = torch.full((count, limit), pad, device=device)
    ended = torch.zeros(count, dtype=torch.bool, device=device)
    for step in range(limit):
        tokens = choose(logits, draws, generator)
        written[rows, step] = tokens
        ended |= torch.isin(tokens, stops)
        if step + 1 == limit:
            break
        if (step + 1) % LOOK == 0:
            left = (~ended).nonzero()[:, 0]
            if not len(left):
                break
            if len(left) < 0.9 * len(rows):
                cache.batch_select_indices(left)
                rows, scores, position, sampled = rows[left], scores[left], position[left], sampled[left]
                tokens, ended, draws = tokens[left], ended[left], sampled.nonzero()[:, 0]
        slot = length + step
        scores[:, slot] = 0
        position = position + 1
        visible = scores[:, None, None, : _in_full(slot + 1)]  # [B, 1, 1, S]
        logits = base(tokens[:, None], attention_mask=visible, position_ids=position, **settings).logits[:, -1]
    return [_cut(tokens, ends) for tokens in written.tolist()]


def _prompt_mask(known: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Returns the additive mask of prompts, `[B, 1, T, S]`, by which slots hold a token, `[B, S]`.

    A padding token sees itself: no row of scores is empty.
    """
    slot = torch.arange(known.shape[1], device=known.device)
    token = slot[:length, None]
    return additive((known[:, None] & (slot <= token) | (slot == token))[:, None], dtype)


def choose(logits: Tensor, draws: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a token a row, `[B]`: the best, or in the rows `draws` one drawn by its chance.

    A draw is the best of logits plus Gumbel noise (arXiv 1411.0030).

    Args:
        logits: `[B, V]`.
        draws: `[n]`, indices of rows.
        generator: of the noise, on the device of the logits.
    """
    tokens = logits.argmax(dim=-1)
    if len(draws):
        noise = torch.empty(len(draws), logits.shape[1], device=logits.device).exponential_(generator=generator)
        tokens[draws] = (logits[draws].float() - noise.clamp_min_(1e-30).log_()).argmax(dim=-1)
    return tokens


def _cut(tokens: list[int], ends: set[int]) -> Continued:
    length = next((count for count, token in enumerate(tokens, start=1) if token in ends), None)
    return Continued(tokens[:length], length is not None)
