"""Trains the contrast to steer as an existing expert and anti-expert do."""

import torch
from torch import Tensor, nn

from otterlm.model import OtterModel
from otterlm.signals.base import Capability
from otterlm.training.data.packing import Batch
from otterlm.training.sources import Source, of_adapter, read_batch
from otterlm.training.teachers.experts import ExpertOpinions


class ExpertsObjective(nn.Module):
    """The objective is a KL divergence from the contrast's distribution to that of DExperts, at every token.

    Both are restricted to the base's nucleus. In this direction (MiniLLM's, arXiv 2306.08543) a token that is unlikely
    to the experts costs the more, the likelier it is to the contrast. One that is likely to them and unlikely to the
    contrast costs little. A contrast is small beside the experts and cannot follow them everywhere: it should rather
    miss some of their tokens than add others.

    Args:
        model: the base with the adapter.
        source: shows the base's intermediates.
        opinions: of the experts on all texts.
        alpha: how far both steer.
        top_p: of the nucleus.
        temperature: of the experts' distribution. What the contrast cannot learn makes it less certain than they are;
            a target that is a little more certain compensates for that.
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
        """Returns scalars: `loss`, a mean over tokens, and in evaluation `base`, that of the base without steering."""
        state = read_batch(self.model, self.source, batch, self.name).state
        inside = batch.segments >= 0
        states = state[inside]  # [n, d + d']
        tokens, likely, wanted = (part[inside] for part in self.opinions.read(batch))  # [n, K]
        head, unembedding = self.model.adapter(self.name).head, self.model.base_model.get_output_embeddings().weight
        direction = head.expert.direction(states) - head.anti_expert.direction(states)  # [n, d]
        predicted = torch.bmm(unembedding[tokens].to(direction.dtype), direction[:, :, None])[:, :, 0].float()
        share = likely.exp()
        likely = likely.masked_fill(share.cumsum(dim=-1) - share >= self.top_p, -torch.inf)
        target = ((likely + self.alpha * wanted) / self.temperature).log_softmax(dim=-1)
        metrics = {"loss": _divergence((likely + self.alpha * predicted).log_softmax(dim=-1), target)}
        return metrics if self.training else metrics | {"base": _divergence(likely.log_softmax(dim=-1), target)}


def _divergence(predicted: Tensor, target: Tensor) -> Tensor:
    """Returns the mean KL of `[n, K]` log-probabilities, minus infinity at the same positions, over n."""
    possible = predicted.isfinite()
    predicted, target = (part.masked_fill(~possible, 0.0) for part in (predicted, target))
    return (possible * predicted.exp() * (predicted - target)).sum(dim=-1).mean()
