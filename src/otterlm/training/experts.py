"""A contrast out of two models that exist already: what DExperts' expert and anti-expert (arXiv 2105.03023) say beside
every token of some texts, written down once, and the objective that has the inserted stream say the same."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from otterlm.errors import OtterError
from otterlm.identity import identity, of_data, of_weights
from otterlm.model import OtterModel
from otterlm.signals.base import Capability
from otterlm.training.packing import Batch, Example, collate
from otterlm.training.sources import Source, of_adapter, read_batch
from otterlm.training.token_file import TokenFile

CANDIDATES = 256
"""How many of the base's likeliest next tokens the three models are compared over."""


class ExpertOpinions:
    """Over the base's likeliest next tokens, beside every token of some texts: the log-probabilities of the base, and
    the logits of the expert less those of the anti-expert. Kept in a file, 3 KiB a token.

    Args:
        base: the model that is to be steered.
        expert, anti_expert: language models with its vocabulary.
        examples: the texts.
        path: of the file.
        batch_size: texts a pass.

    Attributes:
        models: a digest of the three, see `otterlm.identity`.

    Raises:
        OtterError: the three have different vocabularies, the file is of other models or texts, or it does not fit on
            the disk.
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
        """Of a packed batch: tokens, likeliest first, the base's log-probabilities of them, and expert logits -
        anti-expert logits, `[B, T, K]` each."""
        tokens, likely, difference = self._file.read(batch).to(batch.input_ids.device).chunk(3, dim=-1)
        return tokens.long(), likely, difference


def check_vocabularies(base: PreTrainedModel, expert: PreTrainedModel, anti_expert: PreTrainedModel) -> None:
    """That the three have one vocabulary.

    Raises:
        OtterError: they have not.
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


class ExpertsObjective(nn.Module):
    """KL divergence of what the contrast samples from to what DExperts does, inside the base's nucleus, beside every
    token.

    In this direction (MiniLLM's, arXiv 2306.08543) a token that the experts would not say costs the more, the likelier
    the contrast says it, and one that they would say and the contrast does not costs little: what is small beside the
    experts cannot follow them everywhere, and should rather miss words of theirs than add some of its own.

    Args:
        model: the base with the adapter.
        source: shows the base's intermediates.
        opinions: of the experts on all texts.
        alpha: how far both steer.
        top_p: of the nucleus.
        temperature: of what the experts say. What the contrast cannot learn makes it less certain than they are; a
            target that is a little more certain makes up for that.
        adapter_name: may be left out where there is one.
    """

    def __init__(
        self,
        model: OtterModel,
        source: Source,
        opinions: ExpertOpinions,
        alpha: float = 2.0,
        top_p: float = 0.9,
        temperature: float = 0.94,
        adapter_name: str | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.source = source
        self.opinions = opinions
        self.alpha = alpha
        self.top_p = top_p
        self.temperature = temperature
        self.name = model.adapter_name(adapter_name, Capability.REPLACES)
        settings = {"alpha": alpha, "top_p": top_p, "temperature": temperature, "experts": opinions.models}
        self.identity = of_adapter(model, self.name) | settings

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars: `loss`, a mean over tokens. In evaluation also `base`, that of the base without steering."""
        state = read_batch(self.model, self.source, batch, self.name).state
        inside = batch.segments >= 0
        seen = state[inside]  # [n, d + d']
        tokens, likely, wanted = (part[inside] for part in self.opinions.read(batch))  # [n, K]
        head, unembedding = self.model.adapter(self.name).head, self.model.base_model.get_output_embeddings().weight
        direction = head.expert.direction(seen) - head.anti_expert.direction(seen)  # [n, d]
        given = torch.bmm(unembedding[tokens].to(direction.dtype), direction[:, :, None])[:, :, 0].float()
        share = likely.exp()
        likely = likely.masked_fill(share.cumsum(dim=-1) - share >= self.top_p, -torch.inf)
        target = ((likely + self.alpha * wanted) / self.temperature).log_softmax(dim=-1)
        metrics = {"loss": _divergence((likely + self.alpha * given).log_softmax(dim=-1), target)}
        return metrics if self.training else metrics | {"base": _divergence(likely.log_softmax(dim=-1), target)}


def _divergence(given: Tensor, target: Tensor) -> Tensor:
    """KL of `[n, K]` log-probabilities, minus infinity in the same places, the mean over n."""
    possible = given.isfinite()
    given, target = (part.masked_fill(~possible, 0.0) for part in (given, target))
    return (possible * given.exp() * (given - target)).sum(dim=-1).mean()
