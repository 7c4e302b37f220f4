"""Streams tokens as an iterator of (token, text, signals)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteriaList

from otterlm.cache import forget_last
from otterlm.decoding.ends import judging
from otterlm.errors import OtterError
from otterlm.generation import Generation, Intervention, Request, Supports, bare
from otterlm.model import OtterModel
from otterlm.signals.base import Capability, Signal


@dataclass(frozen=True, slots=True)
class StreamedToken:
    """A streamed token is one generated token with its signals.

    Attributes:
        token: its id.
        text: what it adds to the text; empty while a character is incomplete.
        signals: by the name of the adapter, of those that are on: the reward of the prefix that ends in this token, a
            guard's probability that it is harmless, or a contrast's expert logit - anti-expert logit of this token. A
            draft has no number for it.
        labels: of each guard, by its name: the probability of every label.
    """

    token: int
    text: str
    signals: dict[str, float]
    labels: dict[str, dict[str, float]] = field(default_factory=dict)

    def verdict(self, adapter_name: str) -> tuple[str, float]:
        """Returns a guard's likeliest label, and its probability."""
        return max(self.labels[adapter_name].items(), key=lambda item: item[1])


class TokenTexts:
    """Says what each token of a response adds to its text.

    Args:
        tokenizer: the base's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._printed = ""

    def add(self, token: int) -> str:
        """Returns the text that the next token adds; empty while a character is incomplete."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        # A byte-level token may end inside a character: its text waits for the rest.
        new = "" if text.endswith("\ufffd") else text[len(self._printed) :]
        self._printed += new
        return new


def numbers_beside(
    model: OtterModel, token: int, after: Mapping[str, Signal], before: Mapping[str, Signal]
) -> dict[str, float]:
    """Returns the numbers beside a token of one text, by the name of the adapter.

    Args:
        model: with its adapters.
        token: its id.
        after: the signals that judge the text with it, see `otterlm.decoding.ends.judging`.
        before: those of the pass that chose it.
    """
    return {
        name: signal.beside(token, before[name])
        for name, signal in after.items()
        if Capability.BESIDE in model.adapter(name).config.signal.capabilities
    }


def labels_beside(model: OtterModel, signals: Mapping[str, Signal]) -> dict[str, dict[str, float]]:
    """Returns the probabilities of labels after the last token of one text, by the name of the adapter.

    Args:
        model: with its adapters.
        signals: that judge the text, see `otterlm.decoding.ends.judging`.
    """
    labels: dict[str, dict[str, float]] = {}
    for name, signal in signals.items():
        if Capability.CLASSES in model.adapter(name).config.signal.capabilities:
            classes: Any = signal
            labels[name] = dict(zip(classes.labels, classes.probabilities[0, -1].tolist(), strict=True))
    return labels


_Step = tuple[int, dict[str, float], dict[str, dict[str, float]]]


def stream_tokens(
    model: OtterModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    /,
    input_ids: Tensor | None = None,
    **generate_kwargs: Any,
) -> Iterator[StreamedToken]:
    """Generates from one prompt, yielding every token as soon as its signals are known.

    Streams do not mix: they can be read in turns, each from any thread.

    Args:
        model: with its adapters.
        tokenizer: the base's; it may also be passed by name, as to `generate`.
        input_ids: `[1, T]`; None where `inputs_embeds` are passed.
        generate_kwargs: as for `generate`, with `logits_processor` and `stopping_criteria` (but not `custom_generate`).

    Raises:
        OtterError: there is more than one prompt, or a setting of `generate` that a stream cannot honour.
    """
    model = bare(model)
    tokenizer = generate_kwargs.pop("tokenizer", tokenizer) if tokenizer is None else tokenizer
    if tokenizer is None:
        raise OtterError("streaming decodes tokens: give the tokenizer")
    input_ids = generate_kwargs.pop("inputs", None) if input_ids is None else input_ids
    prompt = generate_kwargs.get("inputs_embeds") if input_ids is None else input_ids
    if not isinstance(prompt, Tensor) or prompt.dim() < 2 or len(prompt) != 1:
        what = list(prompt.shape) if isinstance(prompt, Tensor) else type(prompt).__name__
        raise OtterError(f"streaming takes one prompt, [1, T] token ids, got {what}")
    if generate_kwargs.get("custom_generate") is not None:
        raise OtterError("streaming is a decoding loop itself: leave custom_generate out")
    arguments = {"tokenizer": tokenizer} | generate_kwargs | {"input_ids": input_ids, "custom_generate": _Stream()}
    texts = TokenTexts(tokenizer)
    for token, signals, labels in model.generate(**arguments):
        yield StreamedToken(token, texts.add(token), signals, labels)


class _Stream(Intervention):
    """Decodes as the base does, as a generator: it yields a token once the next pass has read it."""

    supports = Supports(
        beams=False,
        drafts=False,
        samples=False,
        fixed_past=False,
        scores=False,
        synced=False,
        streamer=False,
    )
    name = "stream_tokens"

    def prepare(self, request: Request) -> dict[str, Any]:
        """Makes room for the last token, which `generate` does not read, in a cache of a fixed size."""
        if request.config.cache_implementation is None:
            return {}
        return {"max_cache_len": max(request.longest, request.config.max_cache_len or 0)}

    def __call__(
        self,
        model: OtterModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **inputs: Any,
    ) -> Iterator[_Step]:
        """Returns the generator. `generate` calls this, and is over before the first step."""
        assert model.generation is not None
        return self._steps(
            model, model.generation, input_ids, logits_processor, stopping_criteria, generation_config, inputs
        )

    def _steps(
        self,
        model: OtterModel,
        generation: Generation,
        input_ids: Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        config: GenerationConfig,
        inputs: dict[str, Any],
    ) -> Iterator[_Step]:
        """Yields the tokens. Each step may run in another thread, between those of other streams."""
        with model.generating(generation), torch.no_grad():
            output, after = model._prefill(input_ids, config, inputs), model.signals
        unfinished = True
        try:
            while unfinished:
                before = after
                with model.generating(generation), model.show_signals(before), torch.no_grad():
                    inputs = model._update_model_kwargs_for_generation(output, inputs)
                    scores = processors(input_ids, output.logits[:, -1].float())
                    if config.do_sample:
                        token = torch.multinomial(scores.softmax(dim=-1), 1)
                    else:
                        token = scores.argmax(dim=-1, keepdim=True)  # [1, 1]
                    input_ids = torch.cat((input_ids, token), dim=-1)
                    unfinished = not bool(criteria(input_ids, None).all())
                    length = 1 if inputs["use_cache"] else None
                    new = model.prepare_inputs_for_generation(input_ids, next_sequence_length=length, **inputs)
                    output, after = model(**new), model.signals
                    judges = judging(model, int(token), after, before)
                    values = numbers_beside(model, int(token), judges, before)
                    labels = labels_beside(model, judges)
                yield int(token), values, labels
        finally:
            # As after `generate`, which does not read the last token: a text can go on, too.
            if (cache := inputs.get("past_key_values")) is not None:
                forget_last(cache)
