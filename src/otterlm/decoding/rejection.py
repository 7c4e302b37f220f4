"""Samples segments, judges them by their reward, and samples again if it is too low (CARDS, arXiv 2406.16306).

A segment ends where the base's next token is uncertain. CARDS runs a second model for its reward. Here the pass that
read the segment's last token has given it already.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from otterlm.checks import check_chance, check_count, check_number, check_positive
from otterlm.decoding.ends import unread_ends
from otterlm.decoding.loop import Loop, Run
from otterlm.decoding.prompt import read_prompt
from otterlm.decoding.rows import Reading, join_rows, process_row, row_ends
from otterlm.errors import OtterError
from otterlm.generation import Request
from otterlm.interventions import InterventionSettings
from otterlm.masks import additive
from otterlm.model import OtterModel
from otterlm.signals.base import Capability


@dataclass
class RejectionOutput(ModelOutput):
    """The output holds sequences, and how many attempts they took.

    Attributes:
        sequences: `[B, T]` tokens, the prompt included.
        segments: of each row, how many segments it has.
        attempts: of each row, how many segments were sampled for it.
    """

    sequences: Tensor | None = None
    segments: list[int] | None = None
    attempts: list[int] | None = None


class RejectionSampling(Loop):
    """The loop decodes for `model.generate(..., do_sample=True, custom_generate=RejectionSampling(threshold))`.

    A segment with reward r that would end at token t of at most n is taken with probability min(1, exp((r - r(t)) /
    beta)), where r(t) rises linearly to the threshold from (1 - alpha) * reward of the prompt + alpha * threshold.

    Args:
        threshold: the reward that a whole response should have; minus infinity is the base's sampling.
        alpha, beta: see above.
        entropy: a segment ends where the next token's distribution has at least this entropy, in nats.
        shortest, longest: tokens of a segment (a response may end earlier).
        attempts: after so many rejections the best segment so far is taken.
        adapter_name: of the reward; may be left out where there is one.

    Raises:
        OtterError: a setting is out of range.
    """

    supports = replace(Loop.supports, following=False, embeddings=False, batch_streamer=False, guard=False)
    output = RejectionOutput

    def __init__(
        self,
        threshold: float,
        alpha: float = 0.5,
        beta: float = 0.7,
        entropy: float = 3.0,
        shortest: int = 4,
        longest: int = 64,
        attempts: int = 20,
        adapter_name: str | None = None,
    ) -> None:
        self.threshold = threshold if threshold == -math.inf else check_number("threshold", threshold)
        self.alpha = check_chance("alpha", alpha)
        self.beta = check_positive("beta", beta)
        self.entropy = entropy
        self.shortest = check_count("shortest", shortest)
        self.longest = check_count("longest", longest)
        self.attempts = check_count("attempts", attempts)
        self.adapter_name = adapter_name
        self.off = self.threshold == -math.inf

    def reads(self, model: OtterModel) -> str | None:
        """Returns the name of its adapter."""
        return model.adapter_name(self.adapter_name, Capability.PREFIX)

    def check(self, model: OtterModel, request: Request) -> None:
        """Checks the call, see `Intervention`."""
        super().check(model, request)
        if not request.config.do_sample and not self.off:
            raise OtterError("rejection sampling needs do_sample=True, or a rejected segment would come again")

    def decode(self, run: Run) -> RejectionOutput:
        """Decodes segment by segment, see `Loop`."""
        model, input_ids = run.model, run.input_ids
        prompt = read_prompt(run)
        seen = prompt.seen.bool()  # a rejected segment stays in the cache, unseen
        rows = [Segments(ids[seen[index]], Reading.of(prompt.output, index, -1)) for index, ids in enumerate(input_ids)]
        everyone = list(range(len(rows)))
        first = [
            (1 - self.alpha) * reward + self.alpha * self.threshold
            for reward in self._rewards(model, prompt.output, rows, everyone)
        ]
        while not all(row.ended for row in rows):
            token = torch.stack([self._sample(run, rows[index], index) for index in everyone])  # [B, 1]
            slot = seen.shape[1]
            seen = torch.cat((seen, seen.new_ones(len(rows), 1)), dim=-1)
            read = torch.tensor([[len(row.response)] for row in rows], device=token.device)
            output = model(
                input_ids=token,
                attention_mask=additive(seen[:, None, None, :], model.base_model.dtype),
                position_ids=prompt.position[:, None] + read,
                past_key_values=prompt.cache,
            )
            judged = []
            for index, row in enumerate(rows):
                if row.ended:
                    continue
                row.read(token[index], Reading.of(output, index, -1), slot)
                whole = torch.cat((input_ids[index], row.response))
                row.ends = row_ends(run, whole, index)
                if row.ends or self._segment_ends(row):
                    judged.append(index)
            for index, reward in zip(judged, self._rewards(model, output, rows, judged) if judged else [], strict=True):
                row = rows[index]
                share = len(row.response) / run.new_tokens
                wanted = min(self.threshold, first[index] + share * (self.threshold - first[index]))
                accepted = float(torch.rand(())) < math.exp(min(0.0, (reward - wanted) / self.beta))
                hidden, shown = row.judge(reward, accepted, self.attempts)
                seen[index, hidden] = False
                seen[index, shown] = True
        run.show_all(rows[0].response[None])
        whole_rows = [torch.cat((ids, row.response)) for ids, row in zip(input_ids, rows, strict=True)]
        return RejectionOutput(
            sequences=join_rows(whole_rows, run.config),
            segments=[row.taken for row in rows],
            attempts=[row.sampled for row in rows],
        )

    def _segment_ends(self, row: "Segments") -> bool:
        if len(row.slots) >= self.longest:
            return True
        chances = row.reading.logits.float().log_softmax(dim=-1)
        return len(row.slots) >= self.shortest and float(-(chances.exp() * chances).sum()) >= self.entropy

    def _sample(self, run: Run, row: "Segments", index: int) -> Tensor:
        """Samples the next token of a row, `[1]`; a row that has ended gets any token."""
        if row.ended:
            return row.tokens[-1:]
        whole = torch.cat((run.input_ids[index], row.response))
        return torch.multinomial(process_row(run, whole, row.reading, index).softmax(dim=-1), 1)

    def _rewards(self, model: OtterModel, output: Any, rows: list["Segments"], judged: list[int]) -> list[float]:
        """Returns the rewards of some rows as they are now, from the latest pass."""
        name = model.adapter_name(self.adapter_name, Capability.PREFIX)
        rewards: list[float] = output.signals[name].prefix[judged, -1].tolist()
        ends = unread_ends(model, name)
        for number, row in enumerate(rows[index] for index in judged):
            if row.before is not None and ends and int(row.tokens[-1]) in ends:
                signal: Any = model.heads({name: row.before.states[name][None, None]})[name]  # [1, 1, d + d']
                rewards[number] = float(signal.prefix)
        return rewards


@dataclass
class _Candidate:
    """A candidate is a segment that was sampled, with the state after it."""

    reward: float
    tokens: Tensor
    reading: Reading
    slots: list[int]
    ends: bool


class Segments:
    """The object holds one row: the tokens so far, and the segment that is being sampled.

    Attributes:
        tokens: prompt (without padding), segments taken and the one being sampled.
        reading: of the pass that read the last of them.
        before: of the pass before that one; None at the prompt's end.
        slots: where the segment being sampled is in the KV cache.
        ends: whether the response would end with it.
        ended: whether the response has ended.
        taken, sampled: how many segments.
    """

    def __init__(self, prompt: Tensor, reading: Reading) -> None:
        self.tokens = prompt
        self.reading = reading
        self.before: Reading | None = None
        self.slots: list[int] = []
        self.ends = self.ended = False
        self.taken = self.sampled = 0
        self._prompt = len(prompt)
        self._start = (prompt, reading)
        self._rejected: list[_Candidate] = []

    @property
    def response(self) -> Tensor:
        """Returns the tokens after the prompt."""
        return self.tokens[self._prompt :]

    def read(self, token: Tensor, reading: Reading, slot: int) -> None:
        """Adds a token that a pass has read into a slot of the cache."""
        self.tokens = torch.cat((self.tokens, token))
        self.before, self.reading = self.reading, reading
        self.slots.append(slot)

    def judge(self, reward: float, accepted: bool, attempts: int) -> tuple[list[int], list[int]]:
        """Takes the segment, or returns to its start. After so many attempts the best one is taken.

        Returns:
            The slots of the cache to hide and those to show again.
        """
        current = _Candidate(reward, self.tokens, self.reading, self.slots, self.ends)
        self.sampled += 1
        taken = current
        if not accepted:
            self._rejected.append(current)
            if len(self._rejected) < attempts:
                self.tokens, self.reading = self._start
                self.slots = []
                return current.slots, []
            taken = max(self._rejected, key=lambda candidate: candidate.reward)
        self.tokens, self.reading, self.ended = taken.tokens, taken.reading, taken.ends
        self._start, self._rejected, self.slots = (taken.tokens, taken.reading), [], []
        self.taken += 1
        return (current.slots, taken.slots) if taken is not current else ([], [])


def make(model: OtterModel, adapter_name: str, settings: InterventionSettings) -> RejectionSampling:
    """Makes the rejection of the registry, see `otterlm.interventions`."""
    return RejectionSampling(settings.threshold, adapter_name=adapter_name)
