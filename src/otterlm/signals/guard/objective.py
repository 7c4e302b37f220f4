"""Computes what labels and marked passages teach a guard."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from otterlm.errors import OtterError
from otterlm.identity import Identity
from otterlm.model import OtterModel
from otterlm.settings import check_settings, setting
from otterlm.signals.base import Capability
from otterlm.signals.guard.config import GuardConfig
from otterlm.signals.guard.head import GuardSignal
from otterlm.signals.guard.losses import Weights, class_weights, label_loss, span_loss
from otterlm.training.data.packing import Batch, followed_tokens
from otterlm.training.data.targets import Targets
from otterlm.training.sources import Source, of_adapter, read_batch


@dataclass(frozen=True, slots=True)
class GuardTrainingConfig:
    """Says what a guard is trained to do.

    Attributes:
        span_weight: of the loss of passages beside that of texts.
        vocabulary_weight: of the vocabulary heads' squared error to the labels' logits one token later; where they are
            not fitted to candidates afterwards.
        balance: see `otterlm.signals.guard.losses.class_weights`.
        candidates, positions: as for a reward, see `otterlm.training.vocabulary_head`.
    """

    span_weight: float = setting(1.0, "Weight of the loss of marked passages.")
    vocabulary_weight: float = setting(0.1, "Weight of the vocabulary heads' loss.")
    balance: float = setting(0.5, "How much rare labels count: 0 as often as they are, 1 as much as the others.")
    candidates: int = setting(
        6, "Likeliest next tokens a position that the vocabulary heads are fitted to; 0: not.", minimum=0
    )
    positions: int = setting(8, "Positions of each example with candidates.", minimum=1)

    def __post_init__(self) -> None:
        check_settings(self)
        for name in ("span_weight", "vocabulary_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise OtterError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.balance <= 1:
            raise OtterError(f"balance must be from 0 to 1, got {self.balance}")


class GuardObjective(nn.Module):
    """Computes the loss of one guard on packed texts.

    Every prefix learns what the labels say of it, see `otterlm.training.data.targets`: the label that the text has at
    its end, so that the output is the expected label, or the truth of the prefix itself where passages are marked.

    Args:
        model: the base with the adapter.
        source: shows the base's intermediates.
        config: which losses.
        targets: of every example, by its row.
        adapter_name: may be left out where there is one.
    """

    def __init__(
        self,
        model: OtterModel,
        source: Source,
        config: GuardTrainingConfig,
        targets: Mapping[int, Targets],
        adapter_name: str | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.source = source
        self.config = config
        self.targets = targets
        self.name = model.adapter_name(adapter_name, Capability.CLASSES)
        signal: Any = model.adapter(self.name).config.signal
        self._signal: GuardConfig = signal
        self._weights = _weights(targets, "labels", config.balance, signal.exclusive)
        self._span_weights = _weights(targets, "spans", config.balance, False)
        heads = model.adapter(self.name).head.vocabulary
        self._learns_vocabulary = len(heads) > 0 and not (config.candidates and model.family.branches)
        heads.requires_grad_(self._learns_vocabulary)
        losses = {name: value for name, value in asdict(config).items() if name not in ("candidates", "positions")}
        learned = {"vocabulary": self._learns_vocabulary, "labels": _digest(targets)}
        self.identity = of_adapter(model, self.name) | losses | learned

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns scalars, means over the batch: `loss`, `labels`, and, where they are learned, `spans` and
        `vocabulary`."""
        signal: GuardSignal = read_batch(self.model, self.source, batch, self.name)
        logits = signal.logits  # [B, T, L]
        targets = [self.targets[row] for row in batch.rows.tolist()]
        wanted = _padded([each.labels for each in targets], batch)
        metrics = {"labels": label_loss(logits, wanted, self._weights, self._signal.exclusive)}
        loss = metrics["labels"]
        if self._signal.spans:
            wanted = _padded([each.spans for each in targets], batch)  # [B, T, S]
            metrics["spans"] = span_loss(signal.span_logits, wanted, self._span_weights)
            loss = loss + self.config.span_weight * metrics["spans"]
        if self._learns_vocabulary:
            metrics["vocabulary"] = _vocabulary_loss(signal, logits.detach(), batch)
            loss = loss + self.config.vocabulary_weight * metrics["vocabulary"]
        return {"loss": loss} | {name: value.detach() for name, value in metrics.items()}


def _padded(targets: Sequence[Tensor], batch: Batch) -> Tensor:
    """Returns what the texts of a batch teach, `[T, L]` each, as `[B, T, L]`, NaN at padding."""
    wanted = torch.full((*batch.input_ids.shape, targets[0].shape[-1]), torch.nan)
    for row, each in zip(wanted, targets, strict=True):
        row[: len(each)] = each
    return wanted.to(batch.input_ids.device)


def _vocabulary_loss(signal: GuardSignal, logits: Tensor, batch: Batch) -> Tensor:
    """Computes the squared error of what each response token was expected to do to the logits."""
    row, position, parent = followed_tokens(batch)
    gains = signal.gains(signal.state[row, parent], batch.input_ids[row, position])  # [n, L]
    error = logits[row, parent] + gains - logits[row, position]
    return error.square().sum() / max(1, error.numel())


def _weights(targets: Mapping[int, Targets], part: str, balance: float, exclusive: bool) -> Weights:
    """Makes the weights: texts count by their shares of prefixes with a label, passages by their shares of tokens."""
    shares = torch.stack([getattr(targets[row], part).nanmean(dim=0) for row in targets])  # [N, L]
    known = ~shares.isnan()
    positive = shares.nan_to_num().sum(dim=0)
    return class_weights(positive, known.sum(dim=0) - positive, balance, exclusive)


def _digest(targets: Mapping[int, Targets]) -> Identity:
    """Returns what a checkpoint must agree with."""
    digest = hashlib.sha256()
    for row in sorted(targets):
        each = targets[row]
        for part in (each.labels, each.spans):
            digest.update(f"{row} {tuple(part.shape)}".encode() + part.numpy().tobytes())
    return {"count": len(targets), "sha256": digest.hexdigest()}
