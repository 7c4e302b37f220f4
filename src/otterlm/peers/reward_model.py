"""The separate reward model of ARGS (arXiv 2402.01694): a second copy of the base, fully fine-tuned, with a scalar
head. Or LoRA beside the base's own weights: little space, but a second pass all the same."""

import copy
from typing import Any, Self

from torch import Tensor, nn
from transformers import PreTrainedModel

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

    @classmethod
    def lora(cls, base: PreTrainedModel, rank: int = 16) -> Self:
        """With LoRA (arXiv 2106.09685) on all linear layers of the copy, the only parameters trained beside the head.

        `merge` folds it into the weights.
        """
        from peft import LoraConfig, inject_adapter_in_model

        model = cls(base)
        model.backbone.requires_grad_(False)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        model.backbone = inject_adapter_in_model(config, model.backbone)
        return model

    def merge(self) -> Self:
        """Folds LoRA into the weights: the size and the speed of a full fine-tune."""
        from peft.tuners.lora import LoraLayer

        for path, module in list(self.backbone.named_modules()):
            if isinstance(module, LoraLayer):
                module.merge()
                parent, _, name = path.rpartition(".")
                setattr(self.backbone.get_submodule(parent), name, module.get_base_layer())
        return self

    def read(self, **inputs: Any) -> Tensor:
        """The reward of every prefix, `[B, T]` float32; arguments as the decoder's own."""
        return self.head(self.backbone(**inputs).last_hidden_state).squeeze(-1).float()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss and the accuracy on packed pairs."""
        rewards = self.read(**batch.inputs(self.backbone.dtype))
        return {
            "loss": bradley_terry(rewards, batch, prefixes=False),
            "accuracy": preference_accuracy(rewards.detach(), batch),
        }
