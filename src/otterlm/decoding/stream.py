"""Streaming: an iterator of (token, text, signals), each token with the rewards of the pass that read it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.signals import RewardSignal


@dataclass(frozen=True, slots=True)
class StreamedToken:
    """One generated token.

    Attributes:
        token: its id.
        text: what it adds to the text; empty while a character is incomplete.
        signals: the prefix reward of every reward adapter that is on, by name.
    """

    token: int
    text: str
    signals: dict[str, float]


def stream_tokens(
    model: OtterModel, tokenizer: PreTrainedTokenizerBase, input_ids: Tensor, **generate_kwargs: Any
) -> Iterator[StreamedToken]:
    """Generates from one prompt, yielding every token as soon as its reward is known.

    Args:
        model: with its adapters.
        tokenizer: the base's.
        input_ids: `[1, T]`.
        generate_kwargs: as for `generate`, with `logits_processor` and `stopping_criteria` (but not `custom_generate`).

    Raises:
        OtterError: there is more than one prompt.
    """
    if input_ids.dim() != 2 or len(input_ids) != 1:
        raise OtterError(f"streaming takes one prompt, [1, T] token ids, got shape {list(input_ids.shape)}")
    steps = model.generate(input_ids, custom_generate=_tokens, **generate_kwargs)
    generated: list[int] = []
    printed = ""
    for token, signals in steps:
        generated.append(token)
        text = tokenizer.decode(generated, skip_special_tokens=True)
        # A byte-level token may end inside a character: its text waits for the rest.
        new = "" if text.endswith("\ufffd") else text[len(printed) :]
        printed += new
        yield StreamedToken(token, new, signals)


def _tokens(
    model: OtterModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> Iterator[tuple[int, dict[str, float]]]:
    """The plain decoding loop as a generator: a token is given once the pass after it has read it."""
    cache = DynamicCache(config=model.config)
    inputs, unfinished = input_ids, True
    with torch.no_grad():
        logits = model(input_ids=inputs, past_key_values=cache, logits_to_keep=1).logits[:, -1]
    while unfinished:
        with torch.no_grad():
            scores = logits_processor(input_ids, logits.float())
            if generation_config.do_sample:
                token = torch.multinomial(scores.softmax(dim=-1), 1)
            else:
                token = scores.argmax(dim=-1, keepdim=True)  # [1, 1]
            input_ids = torch.cat((input_ids, token), dim=-1)
            output = model(input_ids=token, past_key_values=cache)
            logits = output.logits[:, -1]
            unfinished = not bool(stopping_criteria(input_ids, scores).all())
            rewards = {
                name: float(signal.prefix[0, -1])
                for name, signal in output.signals.items()
                if isinstance(signal, RewardSignal)
            }
        yield int(token), rewards
