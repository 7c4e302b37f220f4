"""The reward signal's objective says what a batch of pairs or scored texts teaches an adapter."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from otterlm.errors import OtterError
from otterlm.families.facts import decoder_config
from otterlm.model import OtterModel
from otterlm.progress import track
from otterlm.settings import check_settings, setting
from otterlm.signals.base import Capability
from otterlm.signals.reward.head import RewardSignal
from otterlm.signals.reward.losses import bradley_terry, final_rewards, preference_accuracy, regression
from otterlm.training.data.packing import (
    CHOSEN,
    REJECTED,
    Batch,
    Example,
    bucket_count,
    collate,
    followed_tokens,
    length_buckets,
)
from otterlm.training.data.stored_examples import take
from otterlm.training.probe import fit_probe
from otterlm.training.sources import FinalState, Source, of_adapter, read_batch

Compare = Literal["prefixes", "last"]


@dataclass(frozen=True, slots=True)
class RewardTrainingConfig:
    """Says what the reward is trained to do.

    Attributes:
        compare: `prefixes`: the reward of every prefix of a response is trained (PARGS, arXiv 2406.07780); `last`: only
            that of the whole response.
        vocabulary_weight: of the vocabulary head's squared error to the prefix head at the next token; where it is not
            fitted to candidates afterwards.
        probe_start: whether the head starts from a linear probe on the base's last hidden state.
        trace: lambda of TD(lambda), for given scores on prefixes, see `otterlm.signals.reward.losses.regression`.
        candidates, positions: after training, the vocabulary head is fitted to so many of the base's likeliest next
            tokens at so many positions of each example, see `otterlm.training.vocabulary_head`; 0 candidates leave it
            as trained.
        fit_tokens: the head is fitted to so many response tokens at most.
    """

    compare: Compare = setting("prefixes", "Train the reward of all prefixes, or of the last token only.")
    vocabulary_weight: float = setting(0.5, "Weight of the vocabulary head's loss.")
    probe_start: bool = setting(True, "Start the head from a linear probe (pairs only).")
    trace: float = setting(
        1.0, "Lambda of TD(lambda), for scores on prefixes; 1 is plain regression.", option="--lambda"
    )
    candidates: int = setting(
        6, "Likeliest next tokens a position that the vocabulary head is fitted to; 0: not.", minimum=0
    )
    positions: int = setting(16, "Positions of each example with candidates.", minimum=1, formerly="--places")
    fit_tokens: int = setting(200_000, "Response tokens that the vocabulary head is fitted to, at most.", minimum=1)

    def __post_init__(self) -> None:
        if self.compare not in get_args(Compare):
            raise OtterError(f"compare must be {' or '.join(get_args(Compare))}, got {self.compare!r}")
        check_settings(self)
        if not 0 <= self.trace <= 1:
            raise OtterError(f"lambda must be from 0 to 1, got {self.trace}")


class RewardObjective(nn.Module):
    """Computes loss and metrics of one adapter on packed batches.

    Args:
        model: the base with the adapter.
        source: shows the base's intermediates.
        config: which losses.
        adapter_name: may be left out where there is one.
    """

    def __init__(
        self, model: OtterModel, source: Source, config: RewardTrainingConfig, adapter_name: str | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.source = source
        self.config = config
        self.name = model.adapter_name(adapter_name, Capability.PREFIX)
        head = model.adapter(self.name).head.vocabulary
        self._learns_vocabulary = head is not None and not (config.candidates and model.family.branches)
        if head is not None:
            head.requires_grad_(self._learns_vocabulary)
        # What the vocabulary head is fitted to after training changes nothing before.
        after = ("candidates", "positions", "fit_tokens")
        losses = {name: value for name, value in asdict(config).items() if name not in after}
        self.identity = of_adapter(model, self.name) | losses | {"vocabulary": self._learns_vocabulary}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns scalars, means over the batch: `loss`, `preference` or `regression`, `vocabulary`, and `accuracy` for
        pairs."""
        signal = read_batch(self.model, self.source, batch, self.name)
        rewards = signal.prefix  # [B, T]
        prefixes = self.config.compare == "prefixes"
        metrics: dict[str, Tensor] = {}
        if batch.pairs:
            loss = metrics["preference"] = bradley_terry(rewards, batch, prefixes)
            metrics["accuracy"] = preference_accuracy(rewards.detach(), batch)
        else:
            loss = metrics["regression"] = regression(rewards, batch, prefixes, self.config.trace)
        if self._learns_vocabulary:
            metrics["vocabulary"] = self._vocabulary_loss(signal, rewards.detach(), batch)
            loss = loss + self.config.vocabulary_weight * metrics["vocabulary"]
        return {"loss": loss} | {name: value.detach() for name, value in metrics.items()}

    def _vocabulary_loss(self, signal: RewardSignal, rewards: Tensor, batch: Batch) -> Tensor:
        """Computes the squared error between score(token | its prefix) and the prefix reward after the token, on
        response tokens."""
        row, position, parent = followed_tokens(batch)
        gain = signal.gain(signal.state[row, parent], batch.input_ids[row, position])
        return (rewards[row, parent] + gain - rewards[row, position]).square().sum() / max(1, len(row))


PROBE_PAIRS, PROBE_NUMBERS = 1 << 14, 1 << 26
"""A probe is fitted to at most so many pairs, and to states of at most so many numbers. The states lie in memory."""


@torch.no_grad()
def start_from_probe(objective: RewardObjective, examples: Sequence[Example], batch_size: int = 8) -> None:
    """Sets the part of the head that reads the base's state to a linear probe fitted on pairs; h' starts unread.

    Of more pairs than a probe needs, random ones are read, always the same.
    """
    width = decoder_config(objective.model.base_model).hidden_size
    most = min(PROBE_PAIRS, PROBE_NUMBERS // width)
    if len(examples) > most:
        examples = take(examples, sorted(random.Random(0).sample(range(len(examples)), most)))
    chosen, rejected = last_states(objective, examples, batch_size)
    head = objective.model.adapter(objective.name).head.prefix
    head.weight.zero_()
    head.weight[0, : chosen.shape[1]] = fit_probe(chosen, rejected).to(head.weight)


@torch.no_grad()
def last_states(objective: RewardObjective, examples: Sequence[Example], batch_size: int = 8) -> tuple[Tensor, Tensor]:
    """Reads the base's last hidden state (after the final norm) at the end of each response of each pair, `[N, d]`
    twice.

    The pairs come in the order of `examples`.
    """
    index_of = {example.row: index for index, example in enumerate(examples)}
    states: Tensor | None = None  # [2, N, d]
    device = objective.model.device
    buckets = length_buckets(examples, batch_size)
    for group in track(buckets, "reading hidden states", bucket_count(examples, batch_size)):
        batch = collate(group).to(device)
        reader = FinalState()
        objective.source.show(batch, reader)
        assert reader.normed is not None
        ends = [_ends(batch, segment) for segment in (CHOSEN, REJECTED)]
        rows = torch.arange(len(group))
        if states is None:
            states = torch.empty(2, len(examples), reader.normed.shape[-1])
        states[:, [index_of[example.row] for example in group]] = torch.stack(
            [reader.normed[rows, end].float().cpu() for end in ends]
        )
    assert states is not None
    return states[0], states[1]


def _ends(batch: Batch, segment: int) -> Tensor:
    positions = torch.arange(batch.segments.shape[1], device=batch.segments.device)
    return final_rewards(positions.expand_as(batch.segments), batch.segments, segment)
