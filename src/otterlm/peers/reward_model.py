"""The separate reward model of ARGS (arXiv 2402.01694): a second copy of the base, fully fine-tuned, with a scalar
head."""

import copy

from torch import Tensor, nn
from transformers import PreTrainedModel

from otterlm.masks import branch_mask
from otterlm.training.losses import bradley_terry, preference_accuracy
from otterlm.training.packing import Batch


class SeparateRewardModel(nn.Module):
    """A reward model of the base's own size; as an objective, Bradley-Terry on the last token.

    Args:
        base: the language model to start from; it is copied, not changed.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(base.get_decoder()).requires_grad_(True)
        self.head = nn.Linear(base.config.hidden_size, 1, dtype=base.dtype, device=base.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def rewards(self, batch: Batch) -> Tensor:
        """The reward of every prefix in a packed batch, `[B, T]`."""
        hidden = self.backbone(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=branch_mask(batch.segments, self.backbone.dtype),
            use_cache=False,
        ).last_hidden_state  # [B, T, D]
        return self.head(hidden).squeeze(-1).float()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss and the accuracy on packed pairs."""
        rewards = self.rewards(batch)
        return {
            "loss": bradley_terry(rewards, batch, prefixes=False),
            "accuracy": preference_accuracy(rewards.detach(), batch),
        }
