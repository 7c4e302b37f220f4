"""Trains the draft signal: each head learns what the base itself generates a little later."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otterlm.checks import check_chance
from otterlm.families.facts import decoder_config, logit_transform
from otterlm.families.parts import weight_of
from otterlm.identity import of_data
from otterlm.model import OtterModel
from otterlm.settings import check_settings, setting
from otterlm.signals.base import Capability
from otterlm.signals.draft.config import MAX_GUESSES
from otterlm.signals.draft.head import Drafter
from otterlm.training.data.packing import CHOSEN, Batch, Example, followed_tokens
from otterlm.training.sources import Source, of_adapter, read_batch

DISCOUNT = 0.8
"""A head's loss has this share of the weight of the head before (Medusa, arXiv 2401.10774, section 2.2.1)."""


@dataclass(frozen=True, slots=True)
class DraftTrainingConfig:
    """Says what drafts learn.

    Attributes:
        distribution: the weight of the base's distribution of each token beside the token in the text, from 0 to 1:
            the Kullback-Leibler divergence of a head's distribution from the base's on the draft vocabulary, beside the
            cross-entropy.
    """

    distribution: float = setting(
        0.0, "Weight of the base's distribution in the loss, beside its choice.", check=check_chance, advanced=True
    )

    def __post_init__(self) -> None:
        check_settings(self)


class DraftObjective(nn.Module):
    """The objective is the cross-entropy of each head on the base's continuations.

    Every head sees the right tokens before its guess, as it does where its guess matters, and the code that the head
    before has made of them.

    Args:
        model: the base with the adapter.
        source: shows the base's intermediates.
        config: what is learned.
        adapter_name: may be left out where there is one.

    Raises:
        OtterError: the base's distribution is to be learned, and what it does to its logits is not known.
    """

    def __init__(
        self,
        model: OtterModel,
        source: Source,
        config: DraftTrainingConfig = DraftTrainingConfig(),
        adapter_name: str | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.source = source
        self.config = config
        self.name = model.adapter_name(adapter_name, Capability.DRAFTS)
        vocabulary = of_data(model.adapter(self.name).head.vocabulary.tolist())
        self.identity = of_adapter(model, self.name) | {"vocabulary": vocabulary}
        if config.distribution:
            self.identity |= asdict(config)
            logit_transform(decoder_config(model.base_model), model.family)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns scalars: `loss`, and in evaluation `accuracy_I_R`.

        That is how often guess R of head I is right, both counted from 0.
        """
        drafter = read_batch(self.model, self.source, batch, self.name)
        size = decoder_config(self.model.base_model).vocab_size
        weight = self.config.distribution
        teacher = Teacher(self.model, drafter, batch, weight) if weight else None
        return draft_metrics(drafter, batch, size, not self.training, teacher)


class Teacher:
    """Computes the base's distribution of the tokens of a batch, on the draft vocabulary.

    Args:
        model: the base.
        drafter: of the batch; the base's state is the first part of its state.
        batch: continuations.
        weight: of the divergence in the loss, from 0 to 1.
    """

    @torch.no_grad()
    def __init__(self, model: OtterModel, drafter: Drafter, batch: Batch, weight: float) -> None:
        self.weight = weight
        config = decoder_config(model.base_model)
        factor, cap = logit_transform(config, model.family)
        row, position, parent = followed_tokens(batch)
        output = model.base_model.get_output_embeddings()
        rows = weight_of(output)[drafter.vocabulary].to(drafter.state.dtype)  # [N, d]
        logits = F.linear(drafter.state[row, parent, : rows.shape[1]], rows).float()  # [n, N]
        if getattr(output, "bias", None) is not None:
            logits += output.bias[drafter.vocabulary]
        logits = logits if factor is None else factor * logits
        logits = logits if cap is None else cap * (logits / cap).tanh()
        self._chances = logits.softmax(dim=-1)
        self._index = torch.full(batch.input_ids.shape, -1, device=row.device)
        self._index[row, position] = torch.arange(len(row), device=row.device)

    def divergence(self, row: Tensor, position: Tensor, scores: Tensor) -> Tensor:
        """Returns the mean Kullback-Leibler divergence of a head's distributions from the base's, a scalar.

        Args:
            row, position: `[n]`, the guessed tokens.
            scores: `[n, N]`, the head's logits.
        """
        if not len(row):
            return scores.sum()
        return F.kl_div(scores.log_softmax(dim=-1), self._chances[self._index[row, position]], reduction="batchmean")


def draft_metrics(
    drafter: Drafter, batch: Batch, vocabulary_size: int, measure: bool, teacher: Teacher | None = None
) -> dict[str, Tensor]:
    """Measures drafts on packed continuations, where every head sees the right tokens before its guess.

    Args:
        drafter: of the same batch.
        batch: continuations.
        vocabulary_size: the base's.
        measure: whether to measure the accuracy of the first guesses, too.
        teacher: of the base's distributions, beside the tokens; None: of the tokens alone.

    Returns:
        Scalars, see `DraftObjective`.
    """
    index = torch.full((vocabulary_size,), -1, device=batch.input_ids.device)
    index[drafter.vocabulary] = torch.arange(len(drafter.vocabulary), device=index.device)
    guesses = min(MAX_GUESSES, len(drafter.vocabulary))
    losses: list[Tensor] = []
    metrics: dict[str, Tensor] = {}
    code: Tensor | None = None
    row, _, first = followed_tokens(batch)
    for head in range(drafter.heads):
        # The state at `first` gave the token after it; this head sees one more and guesses the next.
        after = first + 2 + head
        last = batch.segments.shape[1] - 1
        inside = (after <= last) & (batch.segments[row, after.clamp_max(last)] == CHOSEN)
        row, first, after = row[inside], first[inside], after[inside]
        previous = None if code is None else code[inside]
        code = drafter.code(head, drafter.state[row, first], batch.input_ids[row, after - 1], previous)
        scores = drafter.scores(head, code).float()  # [n, N]
        target = index[batch.input_ids[row, after]]
        known = target >= 0
        # Not `scores[known]`: the copy is large, and a GPU would be waited for to count it.
        loss = F.cross_entropy(scores, target, ignore_index=-1, reduction="sum") / known.sum().clamp_min(1)
        if teacher is not None:
            loss = (1 - teacher.weight) * loss + teacher.weight * teacher.divergence(row, after, scores)
        losses.append(DISCOUNT**head * loss)
        if measure:
            right = scores.topk(guesses, dim=-1).indices == target[:, None]  # [n, guesses]
            shares = right.double().sum(dim=0) / max(1, len(right))
            metrics |= {f"accuracy_{head}_{rank}": share for rank, share in enumerate(shares)}
    return {"loss": torch.stack(losses).sum() / sum(DISCOUNT**head for head in range(drafter.heads))} | metrics


def frequent_tokens(examples: Sequence[Example], size: int, vocabulary_size: int) -> Tensor:
    """Returns the most frequent tokens of a base's continuations, `[size]` ids in ascending order.

    Where there are fewer than `size`, the lowest other ids (in most tokenizers the commonest pieces) fill up.
    """
    counts = Counter(token for example in examples for branch in example.branches for token in branch)
    chosen = [token for token, _ in counts.most_common(size)]
    others = (token for token in range(vocabulary_size) if token not in counts)
    return torch.tensor(sorted([*chosen, *islice(others, size - len(chosen))]))


def measured_accuracy(metrics: dict[str, float], heads: int) -> tuple[tuple[float, ...], ...]:
    """Returns the metrics `accuracy_I_R` as rows, for `DraftConfig.accuracy`."""
    rows = []
    for head in range(heads):
        names = [f"accuracy_{head}_{rank}" for rank in range(MAX_GUESSES)]
        rows.append(tuple(round(metrics[name], 4) for name in names if name in metrics))
    return tuple(rows)
