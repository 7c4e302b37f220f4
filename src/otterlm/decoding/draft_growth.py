"""Grows a tree of drafts level by level, from the guesses of a drafter's heads and their chances."""

from collections.abc import Sequence

import torch
from torch import Tensor

from otterlm.decoding.draft_tree import DraftTree
from otterlm.signals.draft.head import Drafter


class Growth:
    """The growth is a tree that is filled with guesses.

    Args:
        drafter: makes the guesses.
        state: `[B, d + d']`, of the token before the root.
        root: `[B]`, the token that is decided.
        tree: the shape to fill.

    Attributes:
        chances: of each node so far, `[B]`: the product of the heads' probabilities of it and of those before it.
        depth: how many levels there are below the root.
    """

    def __init__(self, drafter: Drafter, state: Tensor, root: Tensor, tree: DraftTree) -> None:
        self.tree = tree
        self.chances: dict[int, Tensor] = {0: torch.ones_like(root, dtype=torch.float)}
        self.depth = 0
        self._drafter = drafter
        self._state = state
        self._tokens = root[:, None].repeat(1, len(tree))
        self._codes: dict[int, Tensor] = {}

    @property
    def parents(self) -> list[int]:
        """Returns the nodes that the next level follows."""
        tree = self.tree
        return [node for node in self.chances if tree.depths[node] == self.depth and tree.children[node]]

    def grow(self, confidence: float = 0.0) -> None:
        """Adds a level, without the nodes that have this chance in no row."""
        parents, tree, depth = self.parents, self.tree, self.depth
        previous = None if depth == 0 else torch.stack([self._codes[node] for node in parents], dim=1)
        state = self._state[:, None].expand(-1, len(parents), -1)
        code = self._drafter.code(depth, state, self._tokens[:, parents], previous)
        most = 1 + max(tree.ranks[child] for node in parents for child in tree.children[node])
        shares, best = self._drafter.scores(depth, code).float().softmax(dim=-1).topk(most)  # [B, parents, most]
        guesses = self._drafter.vocabulary[best]
        for column, node in enumerate(parents):
            for child in tree.children[node]:
                chance = self.chances[node] * shares[:, column, tree.ranks[child]]
                if chance.max() >= confidence:
                    self._tokens[:, child] = guesses[:, column, tree.ranks[child]]
                    self.chances[child] = chance
                    self._codes[child] = code[:, column]
        self.depth += 1

    def only(self, nodes: Sequence[int]) -> tuple[Tensor, DraftTree]:
        """Returns the tokens of some nodes, `[B, N]`, and the tree that they make."""
        ordered = sorted(nodes)
        return self._tokens[:, ordered], self.tree.only(ordered)


def propose(
    drafter: Drafter, state: Tensor, root: Tensor, tree: DraftTree, confidence: float
) -> tuple[Tensor, DraftTree]:
    """Fills a tree with guesses.

    Args:
        drafter, state, root, tree: see `Growth`.
        confidence: a node that in no row has this chance is left out, and so are all nodes after it.

    Returns:
        `[B, N]` token ids, and the tree of these N nodes.
    """
    growth = Growth(drafter, state, root, tree)
    while growth.parents:
        growth.grow(confidence)
    return growth.only(list(growth.chances))
