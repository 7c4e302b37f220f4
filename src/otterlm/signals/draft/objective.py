"""Trains the draft signal: each head learns what the base itself generates a little later."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otterlm.families.facts import decoder_config
from otterlm.identity import of_data
from otterlm.model import OtterModel
from otterlm.signals.base import Capability
from otterlm.signals.draft.config import MAX_GUESSES
from otterlm.signals.draft.head import Drafter
from otterlm.training.data.packing import CHOSEN, Batch, Example, followed_tokens
from otterlm.training.sources import Source, of_adapter, read_batch

DISCOUNT = 0.8
"""A head's loss has this share of the weight of the head before (Medusa, arXiv 2401.10774, section 2.2.1)."""


class DraftObjective(nn.Module):
    """The objective is the cross-entropy of each head on the base's continuations.

    Args:
        model: the base with the adapter.
        source: shows the base's intermediates.
        adapter_name: may be left out where there is one.
    """

    def __init__(self, model: OtterModel, source: Source, adapter_name: str | None = None) -> None:
        super().__init__()
        self.model = model
        self.source = source
        self.name = model.adapter_name(adapter_name, Capability.DRAFTS)
        vocabulary = of_data(model.adapter(self.name).head.vocabulary.tolist())
        self.identity = of_adapter(model, self.name) | {"vocabulary": vocabulary}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns scalars: `loss`, and in evaluation `accuracy_I_R`.

        That is how often guess R of head I is right, both counted from 0.
        """
        drafter = read_batch(self.model, self.source, batch, self.name)
        return draft_metrics(
            drafter, batch, decoder_config(self.model.base_model).vocab_size, measure=not self.training
        )


def draft_metrics(drafter: Drafter, batch: Batch, vocabulary_size: int, measure: bool) -> dict[str, Tensor]:
    """Measures drafts on packed continuations, where every head sees the right tokens before its guess.

    Args:
        drafter: of the same batch.
        batch: continuations.
        vocabulary_size: the base's.
        measure: whether to measure the accuracy of the first guesses, too.

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
        loss = F.cross_entropy(scores[known], target[known], reduction="sum") / max(1, int(known.sum()))
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
