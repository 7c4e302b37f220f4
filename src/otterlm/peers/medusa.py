"""Implements Medusa (arXiv 2401.10774): draft heads on the base's last hidden state, each with an unembedding."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from otterlm.decoding.draft_tree import DraftTree
from otterlm.decoding.speculative import SpeculativeDecoding
from otterlm.identity import of_weights
from otterlm.model import OtterModel
from otterlm.signals.draft.objective import draft_metrics
from otterlm.training.data.packing import Batch
from otterlm.training.sources import FinalState, Source


class MedusaHeads(nn.Module):
    """The heads have the original form: head i is unembedding_i(h + SiLU(W_i h)), at first the base's unembedding.

    Args:
        base: the frozen model.
        heads: how many tokens are drafted.
    """

    vocabulary: Tensor

    def __init__(self, base: PreTrainedModel, heads: int = 4) -> None:
        super().__init__()
        unembedding: Tensor = base.get_output_embeddings().weight
        vocabulary, width = unembedding.shape
        factory: dict[str, Any] = {"dtype": unembedding.dtype, "device": unembedding.device}
        self.blocks = nn.ModuleList([nn.Linear(width, width, **factory) for _ in range(heads)])
        self.unembeddings = nn.ModuleList([nn.Linear(width, vocabulary, bias=False, **factory) for _ in range(heads)])
        self.register_buffer("vocabulary", torch.arange(vocabulary, device=unembedding.device), persistent=False)
        with torch.no_grad():
            for block in self.blocks.parameters():
                block.zero_()
            for weight in self.unembeddings.parameters():
                weight.copy_(unembedding)

    def forward(self, state: Tensor) -> "MedusaDrafter":
        """Makes a drafter from the base's state after its final norm, `[B, T, d]`."""
        return MedusaDrafter(self, state)


class MedusaDrafter:
    """Is a `Drafter` over the whole vocabulary, whose heads do not see each other's guesses."""

    def __init__(self, medusa: MedusaHeads, state: Tensor) -> None:
        self.state = state
        self.heads = len(medusa.blocks)
        self.vocabulary = medusa.vocabulary
        self._medusa = medusa

    def code(self, head: int, state: Tensor, token: Tensor, previous: Tensor | None) -> Tensor:
        """Computes a code, see `Drafter`."""
        return state + F.silu(self._medusa.blocks[head](state))

    def scores(self, head: int, code: Tensor) -> Tensor:
        """Computes logits, see `Drafter`."""
        return self._medusa.unembeddings[head](code)


class MedusaObjective(nn.Module):
    """Trains the heads as `DraftObjective` does Otter's.

    Args:
        model: the base, without adapters.
        source: shows the base's intermediates.
        medusa: the heads that are trained.
    """

    def __init__(self, model: OtterModel, source: Source, medusa: MedusaHeads) -> None:
        super().__init__()
        self.medusa = medusa
        self._model = (model,)  # not a submodule: its parameters are not trained here
        self._source = source
        self.identity = {"base": of_weights(model.base_model)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns scalars, see `DraftObjective`."""
        reader = FinalState()
        with torch.no_grad():
            self._source.show(batch, reader)
        assert reader.normed is not None
        size = self._model[0].base_model.config.vocab_size
        state = reader.normed.to(next(self.medusa.parameters()).dtype)
        return draft_metrics(self.medusa(state), batch, size, measure=not self.training)


class MedusaDecoding(SpeculativeDecoding):
    """The loop decodes for `OtterModel(base).generate(..., custom_generate=MedusaDecoding(medusa, tree))`.

    Args:
        medusa: the trained heads.
        tree: the shape of the drafts.
        confidence: see `SpeculativeDecoding`.
    """

    pass_settings: ClassVar[dict[str, Any]] = {"output_hidden_states": True}

    def __init__(self, medusa: MedusaHeads, tree: DraftTree, confidence: float = 0.0) -> None:
        super().__init__(tree=tree, confidence=confidence)
        self.medusa = medusa

    def reads(self, model: OtterModel) -> None:
        """Returns None: no adapter is needed."""

    def _drafter(self, model: OtterModel, output: Any) -> MedusaDrafter:
        return self.medusa(output.hidden_states[-1])
