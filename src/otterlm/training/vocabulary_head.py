"""Fits vocabulary heads to what next tokens change in a signal's numbers: a reward, or the logits of a guard's labels.

In training a vocabulary head only meets tokens that the data goes on with. Guidance asks it about others. What it
should say of them the prefix head knows: so at some positions of every text the base's k likeliest next tokens are
read, side by side and unseen by each other, and the head is fitted to how much each changes the number, and to what the
text's own tokens change. The stream stays as it is, so its states are read once and the fit itself takes a minute.
"""

import mmap
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from otterlm.causal import decoder_of
from otterlm.decoding.ends import unread_ends
from otterlm.decoding.prompt import check_branches
from otterlm.files import temporary_writes
from otterlm.masks import additive, branch_mask
from otterlm.model import OtterModel
from otterlm.progress import track
from otterlm.signals.base import Capability
from otterlm.training.data.packing import Batch, Example, bucket_count, collate, followed_tokens, length_buckets


@dataclass(frozen=True, slots=True)
class Steps:
    """Holds what one more token changes in L numbers of a signal, such as the reward alone.

    Attributes:
        examples: `[n]` int64, whose position it is: an example's number.
        states: `[n, d + d']`, the widened states of the positions; they may be mapped from a file.
        tokens: `[n, k]` int64, next tokens there.
        log_probs: `[n, k]` float32, the base's.
        gains: `[n, k, L]` float32, the numbers after each token, less those of the position; of one number, `[n, k]`.
    """

    examples: Tensor
    states: Tensor
    tokens: Tensor
    log_probs: Tensor
    gains: Tensor

    def of(self, number: int) -> "Steps":
        """Returns the steps of one of the numbers, with gains `[n, k]`."""
        return replace(self, gains=self.gains[..., number])

    def to(self, device: torch.device) -> "Steps":
        """Returns the same steps on a device; on their own nothing is copied."""
        return Steps(*(getattr(self, field.name).to(device) for field in fields(self)))


@torch.no_grad()
def read_steps(
    model: OtterModel,
    examples: Sequence[Example],
    k: int = 8,
    count: int = 8,
    seed: int = 0,
    batch_size: int = 8,
    adapter_name: str | None = None,
) -> tuple[Steps, Steps]:
    """Reads the tokens that follow in packed examples, and candidates at random positions; two passes a batch.

    Args:
        model: with the trained adapter.
        examples: pairs or texts.
        k: candidates a position.
        count: positions of each example with candidates.
        seed: of the positions.
        batch_size: examples a pass.
        adapter_name: of the signal; may be left out where there is one.

    Returns:
        Of every response token, one step; of random positions, the base's k likeliest.

    Raises:
        OtterError: the base cannot read candidates side by side.
    """
    check_branches(model)
    reader = _Reader(model, model.adapter_name(adapter_name, Capability.ADDS), k, count, seed)
    buckets = length_buckets(examples, batch_size)
    for group in track(buckets, "reading candidates", bucket_count(examples, batch_size)):
        reader.read(collate(group).to(model.device))
    return reader.followed.steps(), reader.candidates.steps()


class _Reader:
    """Reads batches, and collects the steps."""

    def __init__(self, model: OtterModel, name: str, k: int, count: int, seed: int) -> None:
        self.followed, self.candidates = _Collected(), _Collected()
        self._model, self._name, self._k, self._count = model, name, k, count
        self._generator = torch.Generator().manual_seed(seed)
        self._ends = torch.tensor(sorted(unread_ends(model, name)), dtype=torch.long, device=model.device)

    def read(self, batch: Batch) -> None:
        """Reads the texts, then the candidates behind some of their positions."""
        cache, mask = DynamicCache(), branch_mask(batch.segments, self._model.base_model.dtype)
        hidden, state, numbers = self._pass(batch.input_ids, batch.position_ids, mask, cache)
        row, position, parent = followed_tokens(batch)
        gains = numbers[row, position] - numbers[row, parent]  # [n, L]
        tokens = batch.input_ids[row, position]
        self.followed.add(
            batch.rows[row], state[row, parent], tokens[:, None], torch.zeros_like(gains[:, :1]), gains[:, None]
        )
        chosen = _choose(batch, self._count, self._generator)  # [B, count]
        rows, k = torch.arange(len(chosen), device=chosen.device)[:, None], self._k
        logits = self._model.base_model.get_output_embeddings()(hidden[rows, chosen])
        log_probs, likely = logits.float().log_softmax(dim=-1).topk(k, dim=-1)  # [B, count, k]
        # Each candidate sees what its position sees, and itself.
        seen = mask[rows, 0, chosen].repeat_interleave(k, dim=1)[:, None]  # [B, 1, count k, T]
        itself = additive(torch.eye(likely[0].numel(), dtype=torch.bool, device=mask.device), mask.dtype)
        after = (batch.position_ids[rows, chosen] + 1).repeat_interleave(k, dim=1)
        mask = torch.cat((seen, itself.expand(len(chosen), 1, -1, -1)), dim=-1)
        _, _, rivals = self._pass(likely.flatten(1), after, mask, cache)
        gains = rivals.view(*likely.shape, -1) - numbers[rows, chosen][:, :, None]  # [B, count, k, L]
        gains = gains.masked_fill(torch.isin(likely, self._ends)[..., None], 0.0)  # an end changes nothing
        self.candidates.add(
            batch.rows[:, None].expand(chosen.shape).flatten(),
            state[rows, chosen].flatten(0, 1),
            likely.flatten(0, 1),
            log_probs.flatten(0, 1),
            gains.flatten(0, 1),
        )

    def _pass(
        self, input_ids: Tensor, positions: Tensor, mask: Tensor, cache: DynamicCache
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the base's states, `[B, T, d]`, the widened ones and the numbers, `[B, T, L]` float32."""
        model, stream = self._model, self._model.stream_passes([self._name])[self._name]
        with model.visit(stream):
            hidden = decoder_of(model.base_model)(
                input_ids=input_ids, position_ids=positions, attention_mask=mask, past_key_values=cache
            ).last_hidden_state
        assert stream.state is not None
        signal: Any = model.read_signals({self._name: stream.state})[self._name]
        return hidden, stream.state, signal.numbers


class _Collected:
    """Steps are collected: their states, which are nearly all of them, in a temporary file that goes with them."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it is mapped when all is written
        self._width = 0
        self._parts: list[tuple[Tensor, ...]] = []

    def add(self, examples: Tensor, states: Tensor, *parts: Tensor) -> None:
        """Takes some steps: what `Steps` holds of them, in its order."""
        self._width = states.shape[-1]
        small = states.to("cpu", torch.bfloat16).contiguous()  # a fit needs no more digits
        with temporary_writes("states"):
            self._file.write(small.view(torch.uint8).numpy().tobytes())
        self._parts.append((examples.cpu(), *(part.cpu() for part in parts)))

    def steps(self) -> Steps:
        """Returns all of them."""
        examples, *parts = (torch.cat(each) for each in zip(*self._parts, strict=True))
        self._file.flush()
        count = self._file.tell()
        states = torch.frombuffer(mmap.mmap(self._file.fileno(), count), dtype=torch.bfloat16) if count else _NONE
        return Steps(examples, states.view(-1, self._width), *parts)


_NONE = torch.empty(0, dtype=torch.bfloat16)


def _choose(batch: Batch, count: int, generator: torch.Generator) -> Tensor:
    """Chooses random tokens that a response token follows, `[B, count]`; with repeats where there are fewer."""
    row, _, parent = followed_tokens(batch)
    chosen = []
    for index in range(len(batch.rows)):
        positions = parent[row == index].unique().cpu()
        if not len(positions):
            positions = torch.zeros(1, dtype=torch.long)
        order = torch.randperm(len(positions), generator=generator)
        chosen.append(positions[order.repeat(-(-count // len(positions)))[:count]])
    return torch.stack(chosen).to(batch.input_ids.device)
