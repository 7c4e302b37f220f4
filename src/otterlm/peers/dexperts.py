"""Implements DExperts (arXiv 2105.03023): two language models, an expert and an anti-expert, steer the base."""

import copy
from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from otterlm.decoding.read_along import ReadAlongModel, TwoModelContrast
from otterlm.identity import Identity, of_weights
from otterlm.training.data.packing import Batch, followed_tokens
from otterlm.training.teachers.lora import insert_lora, merge_lora


class DExperts(TwoModelContrast):
    """The logits processor steers one call of a base's `generate`.

    Args:
        expert, anti_expert: language models with the base's vocabulary; each gets a KV cache.
        prompt: `[B, P]`, as for `generate`.
        attention_mask: `[B, P]`, 0 at padding.
        alpha, top_p: as for `ContrastGuidance`.
    """

    def __init__(
        self,
        expert: PreTrainedModel,
        anti_expert: PreTrainedModel,
        prompt: Tensor,
        attention_mask: Tensor | None = None,
        alpha: float = 2.0,
        top_p: float = 0.9,
    ) -> None:
        wanted, unwanted = (ReadAlongModel(side, prompt, attention_mask) for side in (expert, anti_expert))
        super().__init__(wanted, unwanted, prompt.shape[1], alpha, top_p)


class FineTunedExpert(nn.Module):
    """The objective trains one side of DExperts: a copy of the base, trained as a language model.

    Args:
        base: the start of training; it is copied, not changed.

    Attributes:
        identity: what its training depends on, see `otterlm.identity`.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(base).requires_grad_(True)
        self.identity: Identity = {"base": of_weights(base)}

    @classmethod
    def lora(cls, base: PreTrainedModel, rank: int = 16) -> Self:
        """Trains a copy by LoRA alone, see `otterlm.training.teachers.lora.insert_lora`. `merge` folds it in."""
        expert = cls(base)
        insert_lora(expert.model, rank)
        expert.identity |= {"lora": rank}
        return expert

    def merge(self) -> Self:
        """Folds LoRA into the weights, see `otterlm.training.teachers.lora.merge_lora`."""
        merge_lora(self.model)
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the language-model loss on packed texts."""
        logits = self.model(**batch.inputs(self.model.dtype)).logits
        return {"loss": next_token_loss(logits, batch)}


def next_token_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Returns the cross-entropy of the response tokens under `[B, T, V]` logits, the mean over tokens."""
    row, position, parent = followed_tokens(batch)
    return F.cross_entropy(logits[row, parent].float(), batch.input_ids[row, position])
