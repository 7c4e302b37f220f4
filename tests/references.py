"""Defines interventions by passes over whole texts, without a cache, a tree or a stream of states."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria, StopStringCriteria

from otterlm.model import OtterModel

ACCELERATING = {
    "assistant_model",
    "prompt_lookup_num_tokens",
    "cache_implementation",
    "use_cache",
    "past_key_values",
    "prefill_chunk_size",
    "return_dict_in_generate",
}
"""Settings that change no token."""


@dataclass
class Texts:
    """Prompts and what follows them, as a plain pass reads them.

    Attributes:
        otter: reads.
        ids, mask: `[B, P]`, the prompts.
        positions: `[B, P]`, where they are not counted from 0.
        known: how many of the prompt's tokens `input_ids` hold: none where the prompt is given as embeddings.
    """

    otter: OtterModel
    ids: Tensor
    mask: Tensor
    positions: Tensor | None = None
    known: int | None = None

    @torch.no_grad()
    def read(self, input_ids: Tensor, model: Any = None, last: Tensor | None = None) -> Any:
        """A pass over the texts of `[N, T]` ids, `last` behind them; the rows are the prompts repeated."""
        times = len(input_ids) // len(self.ids)
        prompt, mask = (part.repeat_interleave(times, dim=0) for part in (self.ids, self.mask))
        start = self.ids.shape[1] if self.known is None else self.known
        whole = torch.cat((prompt, input_ids[:, start:], *([] if last is None else [last])), dim=-1)
        mask = torch.cat((mask, mask.new_ones(len(whole), whole.shape[1] - mask.shape[1])), dim=-1)
        positions = (mask.cumsum(dim=-1) - 1).clamp_min(0)
        if self.positions is not None:
            first, more = self.positions.repeat_interleave(times, dim=0), positions.shape[1] - self.positions.shape[1]
            positions = torch.cat((first, first[:, -1:] + 1 + torch.arange(more)), dim=-1)
        reader = self.otter if model is None else model
        return reader(input_ids=whole, attention_mask=mask, position_ids=positions, use_cache=False)

    @torch.no_grad()
    def rewards(self, input_ids: Tensor, last: Tensor | None = None) -> Tensor:
        """Returns the reward of every prefix that ends in a token after the prompt, `[N, T - P]`."""
        prefix: Tensor = self.read(input_ids, last=last).signals["reward"].prefix
        return prefix[:, self.ids.shape[1] :]


class Steered(LogitsProcessor):
    """scores -> steer(output of a pass over the whole text, scores)."""

    def __init__(self, texts: Texts, steer: Callable[[Any, Tensor], Tensor], model: Any = None) -> None:
        self.texts, self.steer, self.model = texts, steer, model

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.steer(self.texts.read(input_ids, self.model), scores)


class Stopped(StoppingCriteria):
    """Ends a row that has had a reward under the threshold, the latest token's aside."""

    def __init__(self, texts: Texts, threshold: float, ends: tuple[int, ...], padded: bool) -> None:
        self.texts, self.threshold, self.ends = texts, threshold, ends
        if padded:
            self.eos_token_id = None  # has Transformers pad what has ended
        self.stopped: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        start = self.texts.ids.shape[1] if self.texts.known is None else self.texts.known
        response = input_ids[:, start:-1]
        ended = torch.isin(response, torch.tensor(self.ends)).any(dim=1)
        low = (self.texts.rewards(input_ids)[:, :-1] < self.threshold).any(dim=1) & ~ended
        self.stopped = low if self.stopped is None else self.stopped | low
        return low


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns settings without those that only make generation faster, with stop strings as their criterion."""
    rest = {name: value for name, value in settings.items() if name not in ACCELERATING | {"tokenizer", "streamer"}}
    if strings := rest.pop("stop_strings", None):
        stop = StopStringCriteria(settings["tokenizer"], strings)
        rest["stopping_criteria"] = [*rest.get("stopping_criteria", []), stop]
    return rest


def _pad(config: Any) -> Tensor:
    return torch.tensor(0) if config._pad_token_tensor is None else config._pad_token_tensor


def search(texts: Texts, weight: float, top_k: int) -> Callable[..., Tensor]:
    """Makes a loop for the base's `generate`: it takes the best logit + weight * reward of the k likeliest tokens."""

    def loop(_: Any, input_ids: Tensor, *, generation_config: Any, **named: Any) -> Tensor:
        pad, unfinished = _pad(generation_config), torch.ones(len(input_ids)).bool()
        while unfinished.any():
            scores = named["logits_processor"](input_ids, texts.read(input_ids, texts.otter.base_model).logits[:, -1])
            likely, candidates = scores.topk(top_k, dim=-1)
            rewards = [texts.rewards(input_ids, last=candidates[:, n : n + 1])[:, -1] for n in range(top_k)]
            best = (likely + weight * torch.stack(rewards, dim=1)).argmax(dim=1, keepdim=True)
            token = torch.where(unfinished, candidates.gather(1, best)[:, 0], pad)
            input_ids = torch.cat((input_ids, token[:, None]), dim=-1)
            unfinished = unfinished & ~named["stopping_criteria"](input_ids, None)
        return input_ids

    return loop


def sampled_by_row(texts: Texts, coins: bool) -> Callable[..., Tensor]:
    """Makes a loop for the base's `generate` that samples row after row.

    With coins it is rejection sampling that takes every token, a segment each.
    """

    def loop(_: Any, input_ids: Tensor, *, generation_config: Any, **named: Any) -> Tensor:
        pad, unfinished = _pad(generation_config), torch.ones(len(input_ids)).bool()
        while unfinished.any():
            scores = named["logits_processor"](input_ids, texts.read(input_ids, texts.otter.base_model).logits[:, -1])
            tokens = [
                torch.multinomial(row.softmax(dim=-1), 1) if going else pad[None]
                for row, going in zip(scores, unfinished, strict=True)
            ]
            for _ in range(int(unfinished.sum()) if coins else 0):
                torch.rand(())
            input_ids = torch.cat((input_ids, torch.stack(tokens)), dim=-1)
            unfinished = unfinished & ~named["stopping_criteria"](input_ids, None)
        return input_ids

    return loop


def best_of(texts: Texts, settings: dict[str, Any], n: int, ends: tuple[int, ...]) -> Tensor:
    """Samples n responses by the base; of each n the one whose reward at its end is highest."""
    settings = dict(settings)
    responses = n * settings.pop("num_return_sequences", 1)
    if (allowed := settings.get("prefix_allowed_tokens_fn")) is not None:
        settings["prefix_allowed_tokens_fn"] = lambda row, ids: allowed(row // n, ids)
    if (negative := settings.get("negative_prompt_ids")) is not None:
        settings["negative_prompt_ids"] = negative.repeat_interleave(responses, dim=0)
    sequences = texts.otter.base_model.generate(**settings, num_return_sequences=responses)
    response = sequences[:, texts.ids.shape[1] :]
    after = torch.isin(response, torch.tensor(ends)).long().cumsum(dim=1).roll(1, dims=1)
    after[:, 0] = 0
    last = (after == 0).sum(dim=1) - 1
    final = texts.rewards(sequences).gather(1, last[:, None]).view(-1, n)
    return sequences.view(-1, n, sequences.shape[1])[torch.arange(len(final)), final.argmax(dim=1)]


class Alarmed(StoppingCriteria):
    """Ends a row in which a label has reached the alarm, the latest token aside."""

    def __init__(self, texts: Texts, alarm: float, ends: tuple[int, ...], padded: bool) -> None:
        self.texts, self.alarm, self.ends = texts, alarm, ends
        if padded:
            self.eos_token_id = None  # has Transformers pad what has ended
        self.stopped: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        start = self.texts.ids.shape[1] if self.texts.known is None else self.texts.known
        ended = torch.isin(input_ids[:, start:-1], torch.tensor(self.ends)).any(dim=1)
        shares = self.texts.read(input_ids).signals["guard"].probabilities[:, self.texts.ids.shape[1] : -1]
        rings = (shares >= self.alarm).flatten(1).any(dim=1) & ~ended
        self.stopped = rings if self.stopped is None else self.stopped | rings
        return rings


def rolled_back(texts: Texts, alarm: float, back: int, attempts: int, weight: float) -> Callable[..., Tensor]:
    """A loop for the base's `generate` in which each row goes back from an alarm and steers against its label."""

    def loop(_: Any, input_ids: Tensor, *, generation_config: Any, **given: Any) -> Tensor:
        rows = [_Guarded(texts, index, input_ids) for index in range(len(input_ids))]
        while not all(row.ended for row in rows):
            for row in (row for row in rows if not row.ended):  # all of a step before the next
                row.tokens.append(row.next_token(weight, generation_config, given["logits_processor"], len(rows)))
            for row in (row for row in rows if not row.ended):
                row.judge(alarm, back, attempts, given["stopping_criteria"], len(rows))
        whole = [torch.cat((row.prompt, row.prompt.new_tensor(row.tokens))) for row in rows]
        padding = int(_pad(generation_config))
        return torch.nn.utils.rnn.pad_sequence(whole, batch_first=True, padding_value=padding)

    return loop


class _Guarded:
    def __init__(self, texts: Texts, index: int, input_ids: Tensor) -> None:
        row = index * len(texts.ids) // len(input_ids)  # the prompts may be repeated
        positions = None if texts.positions is None else texts.positions[row : row + 1]
        self.texts = Texts(texts.otter, texts.ids[row : row + 1], texts.mask[row : row + 1], positions)
        self.index, self.prompt, self.tokens = index, input_ids[index], list[int]()
        self.steered: dict[str, int] = {}
        self.rollbacks, self.final, self.ended = 0, 0, False

    def read(self, count: int) -> Any:
        whole = torch.cat((self.texts.ids[0], self.prompt.new_tensor(self.tokens[:count])))
        return self.texts.read(whole[None])

    def next_token(self, weight: float, config: Any, processors: Any, batch: int) -> int:
        output = self.read(len(self.tokens))
        scores = output.logits[0, -1]
        for label, times in self.steered.items():
            scores = scores + weight * 2 ** (times - 1) * output.signals["guard"].vocabulary(label=label)[0]
        whole = torch.cat((self.prompt, self.prompt.new_tensor(self.tokens)))
        scores = processors(whole.expand(batch, -1), scores.expand(batch, -1))[self.index]
        return int(torch.multinomial(scores.softmax(-1), 1)) if config.do_sample else int(scores.argmax())

    def judge(self, alarm: float, back: int, attempts: int, criteria: Any, batch: int) -> None:
        signal = self.read(len(self.tokens)).signals["guard"]
        shares = signal.probabilities[0, -1]
        if not bool((shares >= alarm).any()):
            self.final = max(self.final, len(self.tokens) - back)
            whole = torch.cat((self.prompt, self.prompt.new_tensor(self.tokens)))
            self.ended = bool(criteria(whole.expand(batch, -1), None)[self.index])
            return
        place = len(self.tokens) - 1
        if self.rollbacks == attempts:
            self.ended = True
        else:
            label = signal.labels[int((shares >= alarm).int().argmax())]
            self.rollbacks, self.steered[label] = self.rollbacks + 1, self.steered.get(label, 0) + 1
            place -= back
        del self.tokens[max(self.final, place) :]
