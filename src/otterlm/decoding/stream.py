"""Streaming: an iterator of (token, text, signals), each token with what the adapters say of it."""

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
from otterlm.signals.base import Capability


@dataclass(frozen=True, slots=True)
class StreamedToken:
    """One generated token.

    Attributes:
        token: its id.
        text: what it adds to the text; empty while a character is incomplete.
        signals: by the name of the adapter, of those that are on: the reward of the prefix that ends in this token, or
            a contrast's expert logit - anti-expert logit of this token. A draft has no number for it.
    """

    token: int
    text: str
    signals: dict[str, float]


def stream_tokens(
    model: OtterModel, tokenizer: PreTrainedTokenizerBase, input_ids: Tensor, **generate_kwargs: Any
) -> Iterator[StreamedToken]:
    """Generates from one prompt, yielding every token as soon as its signals are known.

    Streams do not mix: they can be read in turns, each from any thread.

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
    with torch.no_grad():
        output = model(input_ids=input_ids, past_key_values=cache, logits_to_keep=1)
    unfinished = True
    while unfinished:
        with torch.no_grad():
            # Processors read the latest signals, and since ours another stream's pass may have been made.
            before = model.read_signals({name: signal.state for name, signal in output.signals.items()})
            scores = logits_processor(input_ids, output.logits[:, -1].float())
            if generation_config.do_sample:
                token = torch.multinomial(scores.softmax(dim=-1), 1)
            else:
                token = scores.argmax(dim=-1, keepdim=True)  # [1, 1]
            input_ids = torch.cat((input_ids, token), dim=-1)
            output = model(input_ids=token, past_key_values=cache)
            unfinished = not bool(stopping_criteria(input_ids, scores).all())
            values = {
                name: signal.beside(int(token), before[name])
                for name, signal in output.signals.items()
                if Capability.BESIDE in model.adapter(name).config.signal.capabilities
            }
        yield int(token), values
