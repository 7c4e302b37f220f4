"""Makes the heads that score every token of the vocabulary."""

from typing import Any

from otterlm.signals.low_rank import LowRankHead
from otterlm.signals.two_towers import TwoTowerHead

VocabularyHead = LowRankHead | TwoTowerHead


def vocabulary_head(width: int, rank: int, hidden: int, base_width: int, **factory: Any) -> VocabularyHead | None:
    """Makes a head of two small networks, or of linear maps.

    Args:
        width: of the state, d + d'.
        rank: of the head; 0 for none.
        hidden: width of both networks' middles; 0 for linear maps.
        base_width: d, the width of the unembedding's rows.
        factory: dtype and device of the parameters.
    """
    if not rank:
        return None
    if hidden:
        return TwoTowerHead(width, hidden, rank, base_width, **factory)
    return LowRankHead(width, rank, base_width, **factory)
