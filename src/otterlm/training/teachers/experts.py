"""Records the next-token logits of an expert and an anti-expert of DExperts (arXiv 2105.03023) on some texts.

They are recorded once, and a contrast is trained to predict them.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from otterlm.errors import OtterError
from otterlm.identity import identity, of_data, of_weights
from otterlm.training.data.packing import Batch, Example, collate
from otterlm.training.token_file import TokenFile

CANDIDATES = 256
"""The three models are compared over so many of the base's likeliest next tokens."""


class ExpertOpinions:
    """Stores the three models' opinions on the base's likeliest next tokens, at every token of some texts.

    They are the log-probabilities of the base, and the logits of the expert less those of the anti-expert. The file has
    3 KiB a token.

    Args:
        base: the model that is to be steered.
        expert, anti_expert: language models with its vocabulary.
        examples: the texts.
        path: of the file.
        batch_size: texts a pass.

    Attributes:
        models: a digest of the three, see `otterlm.identity`.

    Raises:
        OtterError: the three have different vocabularies, the file is of other models or texts, or does not fit on the
            disk.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        expert: PreTrainedModel,
        anti_expert: PreTrainedModel,
        examples: Sequence[Example],
        path: Path,
        batch_size: int = 16,
    ) -> None:
        check_vocabularies(base, expert, anti_expert)
        candidates = min(CANDIDATES, base.config.get_text_config().vocab_size)
        models = base, expert, anti_expert
        self.models = of_weights(*models)
        this = identity("opinions of experts", models=self.models, data=of_data(examples))

        def compared(group: Sequence[Example]) -> Tensor:
            return _compare(*models, collate(group).to(base.device), candidates)

        self._file = TokenFile(
            path, examples, 3 * candidates, torch.float32, this, compared, batch_size, "asking the experts"
        )

    def read(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Reads the opinions on a packed batch, `[B, T, K]` each.

        Returns:
            Tokens, likeliest first, the base's log-probabilities of them, and expert logits - anti-expert logits.
        """
        tokens, likely, difference = self._file.read(batch).to(batch.input_ids.device).chunk(3, dim=-1)
        return tokens.long(), likely, difference


def check_vocabularies(base: PreTrainedModel, expert: PreTrainedModel, anti_expert: PreTrainedModel) -> None:
    """Checks that the three have one vocabulary.

    Raises:
        OtterError: they have different ones.
    """
    sizes = [model.config.get_text_config().vocab_size for model in (base, expert, anti_expert)]
    if len(set(sizes)) > 1:
        raise OtterError(f"base, expert and anti-expert need one vocabulary; theirs have {sizes} tokens")


@torch.no_grad()
def _compare(
    base: PreTrainedModel, expert: PreTrainedModel, anti_expert: PreTrainedModel, batch: Batch, candidates: int
) -> Tensor:
    def logits(model: PreTrainedModel) -> Tensor:
        return model(**batch.inputs(model.dtype)).logits.float()  # [B, T, V]

    likely, tokens = logits(base).log_softmax(dim=-1).topk(candidates, dim=-1)  # [B, T, K]
    difference = logits(expert).gather(-1, tokens) - logits(anti_expert).gather(-1, tokens)
    return torch.cat((tokens.float(), likely, difference), dim=-1)  # as floats, ids up to 2^24 are exact
