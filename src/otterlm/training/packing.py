"""Rows to tensors: a pair becomes ONE sequence, [shared prefix | chosen | rejected], so its prompt is computed once."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from otterlm.errors import OtterError
from otterlm.masks import SHARED, branch_mask
from otterlm.settings import setting
from otterlm.training.chat import chat_tokens, plain_tokens, raw_content, split_rendered, without_end
from otterlm.training.conversations import Dialogue, Prompt, clean
from otterlm.training.rows import PairRow, Row


@dataclass(frozen=True, slots=True)
class Limits:
    """How many tokens of a prompt (its end is kept) and of a response (its start is kept) are used."""

    prompt: int = setting(256, "A longer prompt keeps its end.", minimum=1, option="--max-prompt-tokens")
    response: int = setting(256, "A longer response keeps its start.", minimum=1, option="--max-response-tokens")

    def __post_init__(self) -> None:
        if self.prompt < 1 or self.response < 1:
            raise OtterError(f"token limits must be at least 1, got prompt={self.prompt}, response={self.response}")


@dataclass(frozen=True, slots=True)
class Example:
    """A row as tokens: a shared prefix and one branch (a scored text) or two (chosen, rejected).

    `row` is its place in the data it came from. `prompts` holds, for each text, how many tokens come before its
    response: the prefix may end inside the responses, where they begin alike. Empty: as many as the prefix has.
    """

    row: int
    prefix: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    score: float = 0.0
    prompts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.prefix) + sum(map(len, self.branches))

    @property
    def longest(self) -> int:
        """The tokens of its longest text."""
        return len(self.prefix) + max(map(len, self.branches))

    @property
    def starts(self) -> tuple[int, ...]:
        """Where the response of each text, prefix + branch, begins."""
        return self.prompts or (len(self.prefix),) * len(self.branches)

    @property
    def responses(self) -> tuple[tuple[int, ...], ...]:
        """The whole response of each text."""
        return tuple((self.prefix + own)[start:] for own, start in zip(self.branches, self.starts, strict=True))


@dataclass(slots=True)
class Batch:
    """Right-padded packed sequences. All tensors are `[B, T]` but the last two.

    Attributes:
        input_ids: int64.
        position_ids: int64; every branch continues where the shared prefix ends.
        segments: int64, see `otterlm.masks.branch_mask`.
        parents: int64, the index of the token before each token in its own text (a text's first token is its own
            parent).
        scores: `[B]` float32, the given score of a scored text, 0 for pairs.
        rows: `[B]` int64, the examples' places in the data.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Tensor
    parents: Tensor
    scores: Tensor
    rows: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))

    def inputs(self, dtype: torch.dtype) -> dict[str, Any]:
        """What a model of this dtype is called with, so that branches do not see each other."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": branch_mask(self.segments, dtype),
            "use_cache": False,
        }


def dialogue_tokens(
    dialogue: Dialogue, tokenizer: PreTrainedTokenizerBase, limits: Limits, where: str = "the dialogue"
) -> tuple[list[int], list[int]]:
    """The tokens of a prompt and of its response, apart, as generation would see them.

    Uses the tokenizer's chat template; without one, the HH format. A raw text that the chat template wrote is the
    dialogue it shows. The response ends with the end-of-sequence token, once, unless it was cut. Special tokens that
    somebody says are plain text.

    Returns:
        The last `limits.prompt` tokens of the prompt and the first `limits.response` of the response.

    Raises:
        OtterError: the chat template refuses the prompt; the message begins with `where`.
    """
    rendered = split_rendered(dialogue.response, tokenizer) if dialogue.prompt is None else None
    if rendered is not None:
        prompt, text = tokenizer.encode(rendered[0], add_special_tokens=False), rendered[1]
    elif dialogue.prompt is None:
        prompt, text = prompt_tokens(None, tokenizer), raw_content(dialogue.response, tokenizer)
    else:
        prompt, text = prompt_tokens(dialogue.prompt, tokenizer, where), without_end(dialogue.response, tokenizer)
        text = text if tokenizer.chat_template else f" {text}"
    response = plain_tokens(text, tokenizer, where)
    if tokenizer.eos_token_id is not None:
        response.append(tokenizer.eos_token_id)
    return prompt[-limits.prompt :], response[: limits.response]


def prompt_tokens(prompt: Prompt | None, tokenizer: PreTrainedTokenizerBase, where: str = "the prompt") -> list[int]:
    """The tokens of a prompt given as (role, content) turns, up to where the assistant begins to speak.

    None, a raw text without a dialogue, is the beginning-of-sequence token (or nothing, where there is none).

    Raises:
        OtterError: the chat template refuses the prompt; the message begins with `where`.
    """
    if prompt is None:
        return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    said = ((role, clean(text, where)) for role, text in prompt)
    turns = [(role, without_end(text, tokenizer) if role == "assistant" else text) for role, text in said]
    if tokenizer.chat_template:
        return chat_tokens(turns, tokenizer, where)
    names = {"user": "Human", "assistant": "Assistant", "system": "System"}
    text = "".join(f"\n\n{names.get(role, role)}: {content}" for role, content in turns) + "\n\nAssistant:"
    return plain_tokens(text, tokenizer, where, add_special_tokens=True)


def encode_prompts(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[list[int]]:
    """The last `max_tokens` of each prompt's `prompt_tokens`."""
    names = (getattr(prompt, "where", f"prompt {number}") for number, prompt in enumerate(prompts, start=1))
    return [prompt_tokens(prompt, tokenizer, where)[-max_tokens:] for prompt, where in zip(prompts, names, strict=True)]


def tokenize(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limits: Limits) -> list[Example]:
    """Turns rows into examples. A pair whose two responses are the same within the limits teaches nothing and is left
    out.

    Raises:
        OtterError: no row is left.
    """
    tried = (_tokenize_row(index, row, tokenizer, limits) for index, row in enumerate(rows))
    examples = [example for example in tried if example is not None]
    if not examples:
        raise OtterError("no usable rows: every response is empty or, within the token limits, the same as its rival")
    return examples


def _tokenize_row(index: int, row: Row, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> Example | None:
    if not isinstance(row, PairRow):
        prompt, response = dialogue_tokens(row.text, tokenizer, limits, row.where)
        if not response:
            return None
        return Example(index, tuple(prompt), (tuple(response),), row.score)
    raw = [side.response for side in (row.chosen, row.rejected) if side.prompt is None]
    if len({split_rendered(text, tokenizer) is None for text in raw}) > 1:
        raise OtterError(f"{row.where}: one text was put through the chat template and the other was not")
    prompt, chosen = dialogue_tokens(row.chosen, tokenizer, limits, row.where)
    other_prompt, rejected = dialogue_tokens(row.rejected, tokenizer, limits, row.where)
    if (chosen == rejected and prompt == other_prompt) or not chosen or not rejected:
        return None
    first, second = prompt + chosen, other_prompt + rejected
    # Both branches keep at least one token, the one whose reward is compared.
    limit = min(len(first), len(second)) - 1
    shared = next((i for i in range(limit) if first[i] != second[i]), limit)
    branches = tuple(first[shared:]), tuple(second[shared:])
    return Example(index, tuple(first[:shared]), branches, prompts=(len(prompt), len(other_prompt)))


def collate(examples: Sequence[Example], pad_token_id: int = 0) -> Batch:
    """Packs and right-pads examples into one `Batch`."""
    longest = max(map(len, examples))
    shape = (len(examples), longest)
    batch = Batch(
        input_ids=torch.full(shape, pad_token_id),
        position_ids=torch.zeros(shape, dtype=torch.long),
        segments=torch.full(shape, -1),
        parents=torch.zeros(shape, dtype=torch.long),
        scores=torch.tensor([example.score for example in examples]),
        rows=torch.tensor([example.row for example in examples]),
    )
    for row, example in enumerate(examples):
        start, prefix = 0, len(example.prefix)
        for segment, tokens in enumerate((example.prefix, *example.branches), start=SHARED):
            part = slice(start, start + len(tokens))
            first = 0 if segment == SHARED else prefix
            batch.input_ids[row, part] = torch.tensor(tokens, dtype=torch.long)
            batch.position_ids[row, part] = torch.arange(first, first + len(tokens))
            batch.segments[row, part] = segment
            batch.parents[row, part] = torch.arange(start - 1, start + len(tokens) - 1)
            if tokens:
                batch.parents[row, start] = first - 1 if first else start
            start += len(tokens)
    return batch


def length_buckets(
    examples: Sequence[Example], batch_size: int, seed: int | None = None, pool: int = 16
) -> Iterator[list[Example]]:
    """Batches of examples of like length, so that little is spent on padding.

    Args:
        examples: what to batch.
        batch_size: examples a batch; the last may be smaller.
        seed: shuffles examples and batches, the same way for the same seed; None keeps the given order's buckets.
        pool: lengths are sorted within pools of this many batches, so that shuffled batches still differ by epoch.
    """
    order = list(range(len(examples)))
    if seed is None:
        order.sort(key=lambda index: len(examples[index]))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    else:
        shuffle = random.Random(seed)
        shuffle.shuffle(order)
        span = batch_size * pool
        batches = []
        for begin in range(0, len(order), span):
            group = sorted(order[begin : begin + span], key=lambda index: len(examples[index]))
            batches += [group[start : start + batch_size] for start in range(0, len(group), batch_size)]
        shuffle.shuffle(batches)
    for batch in batches:
        yield [examples[index] for index in batch]
