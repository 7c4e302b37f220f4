"""Generates continuations of the base once, and stores them in a file.

They are greedy for prompts, which a draft learns from (self-distillation), and sampled for plain texts.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.decoding.ends import end_tokens
from otterlm.identity import Identity, identity, of_data, of_weights
from otterlm.resumable import run_resumable
from otterlm.training.data.conversations import Prompt
from otterlm.training.data.packing import Example
from otterlm.training.data.tokens import encode_prompts


@torch.no_grad()
def continue_prompts(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    path: Path,
    max_prompt_tokens: int = 256,
    max_new_tokens: int = 96,
    batch_size: int = 64,
) -> list[Example]:
    """Continues prompts greedily, in batches, and stores the results in a file, from which a later call resumes.

    Args:
        base: the model.
        tokenizer: its tokenizer, padding on the left.
        prompts: as chat turns.
        path: a JSON lines file.
        max_prompt_tokens: a longer prompt keeps its end.
        max_new_tokens: length of a continuation; it ends with its end-of-sequence token, if there is one.
        batch_size: prompts a batch.

    Returns:
        Examples: the prompt, and the continuation as its branch.

    Raises:
        OtterError: the file is of other prompts, another base or other lengths.
    """
    encoded = encode_prompts(prompts, tokenizer, max_prompt_tokens)
    settings = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}

    def greedily(group: list[list[int]], number: int) -> list[list[int]]:
        return continue_greedily(base, tokenizer, group, max_new_tokens)

    done = _continued(base, encoded, greedily, path, "greedy continuations", settings)
    return [Example(index, tuple(prompt), (tuple(done[index]),)) for index, prompt in enumerate(encoded)]


def continue_texts(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    path: Path,
    max_text_tokens: int = 64,
    max_new_tokens: int = 20,
    top_p: float = 0.9,
    batch_size: int = 64,
    seed: int = 0,
) -> list[Example]:
    """Samples one continuation of each plain text from the base's nucleus, in batches, as `continue_prompts` does.

    Args:
        base: the model.
        tokenizer: its tokenizer, padding on the left.
        texts: the texts to continue; a longer one keeps its start.
        path: a JSON lines file.
        max_text_tokens: of a text.
        max_new_tokens: length of a continuation, unless it ends before.
        top_p: of the nucleus (arXiv 1904.09751).
        batch_size: texts a batch.
        seed: of the samples.

    Returns:
        Examples: text and continuation as one branch.

    Raises:
        OtterError: the file is of other texts, another base or other settings.
    """
    encoded = [tokenizer.encode(text)[:max_text_tokens] for text in texts]
    settings = {"max_new_tokens": max_new_tokens, "top_p": top_p, "batch_size": batch_size, "seed": seed}

    def sampled(group: list[list[int]], number: int) -> list[list[int]]:
        ids, mask = pad_left(group, tokenizer.pad_token_id or 0, base.device)
        torch.manual_seed(seed * 1_000_003 + number)
        output = base.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=top_p,
            pad_token_id=tokenizer.pad_token_id or 0,
        )
        return responses_of(output, ids.shape[1], base)

    done = _continued(base, encoded, sampled, path, "sampled continuations", settings)
    return [Example(index, (), ((*text, *done[index]),)) for index, text in enumerate(encoded)]


def _continued(
    base: PreTrainedModel,
    encoded: list[list[int]],
    continue_group: Callable[[list[list[int]], int], list[list[int]]],
    path: Path,
    kind: str,
    settings: dict[str, Any],
) -> dict[int, list[int]]:
    """Returns the continuation of each text, by its row index.

    A line of the file holds a batch, because the padding of its texts changes how its numbers round. `continue_group`
    takes a batch, and its number.
    """
    this = identity(kind, **of_generation(base), prompts=of_data(encoded), **settings)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    size = settings["batch_size"]
    batches = [order[start : start + size] for start in range(0, len(order), size)]

    def one(batch: tuple[int, list[int]]) -> list[list[int]]:
        number, rows = batch
        return continue_group([encoded[index] for index in rows], number)

    results = run_resumable(list(enumerate(batches)), one, path, this, "continuing")
    return {
        index: tokens
        for rows, continuations in zip(batches, results, strict=True)
        for index, tokens in zip(rows, continuations, strict=True)
    }


def of_generation(base: PreTrainedModel) -> Identity:
    """Returns what a base's continuations depend on: weights and generation settings. See `otterlm.identity`."""
    settings = base.generation_config.to_diff_dict()
    changed = {
        name: value for name, value in settings.items() if name not in ("transformers_version", "_from_model_config")
    }
    return {"base": of_weights(base), "generation_config": changed}


def continue_greedily(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[list[int]]:
    """Generates the base's continuation of each prompt, all in one batch; see `responses_of`."""
    pad = tokenizer.pad_token_id or 0
    ids, mask = pad_left(prompts, pad, base.device)
    output = base.generate(ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad)
    return responses_of(output, ids.shape[1], base)


def pad_left(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pads prompts on the left to one batch, and returns it and its attention mask, `[B, P]` each."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def responses_of(sequences: Tensor, prompt_length: int, base: PreTrainedModel) -> list[list[int]]:
    """Returns the responses in generated sequences, `[B, T]`, after prompts of one length.

    Each has the tokens up to and with the first that ends the base's responses.
    """
    ends, responses = end_tokens(base.generation_config), []
    for tokens in sequences[:, prompt_length:].tolist():
        length = next((count for count, token in enumerate(tokens, start=1) if token in ends), len(tokens))
        responses.append(tokens[:length])
    return responses
