"""Trains the separate moderator that a guard replaces: a second copy of the base, fully fine-tuned, with a logit for
every prefix."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from otterlm.signals.guard.config import GuardConfig
from otterlm.signals.guard.losses import Weights, label_loss
from otterlm.training.data.packing import Batch
from otterlm.training.data.targets import Targets
from otterlm.training.teachers.reward_model import SeparateRewardModel


class SeparateClassifier(nn.Module):
    """A causal classifier has the base's own size; as an objective, cross-entropy of an offence at every prefix, as a
    guard has it.

    Args:
        model: a copy of the base whose score is the logit of an offence, see `SeparateRewardModel.of`.
        targets: of every example, by its row, see `offence_targets`.

    Attributes:
        identity: what its training depends on, see `otterlm.identity`.
    """

    def __init__(self, model: SeparateRewardModel, targets: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.model = model
        self.targets = targets
        digest = hashlib.sha256()
        for row, each in sorted(targets.items()):
            digest.update(f"{row}".encode() + each.numpy().tobytes())
        self.identity = model.identity | {"labels": {"count": len(targets), "sha256": digest.hexdigest()}}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss on packed texts."""
        logits = self.model.read(**batch.inputs(self.model.classifier.dtype))[..., None]  # [B, T, 1]
        wanted = torch.full(logits.shape, torch.nan)
        for row, targets in zip(wanted, (self.targets[row] for row in batch.rows.tolist()), strict=True):
            row[: len(targets), 0] = targets
        return {"loss": label_loss(logits, wanted.to(logits.device), Weights(torch.ones(1), torch.ones(1)), False)}


def offence_targets(targets: Mapping[int, Targets], config: GuardConfig) -> dict[int, Tensor]:
    """Returns whether every prefix has any offence, `[T]` from 0 to 1, NaN where that is not known, by row."""
    columns = [config.labels.index(name) for name in config.offences]
    return {
        row: each.labels[:, columns].sum(dim=-1) if config.exclusive else each.labels[:, columns].amax(dim=-1)
        for row, each in targets.items()
    }
