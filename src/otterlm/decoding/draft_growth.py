"""Grows a tree of drafts level by level, from the guesses of a drafter's heads and of a lookup, and their chances."""

from collections.abc import Sequence

import torch
from torch import Tensor

from otterlm.decoding.draft_tree import DraftTree
from otterlm.decoding.lookup import Copies
from otterlm.signals.draft.head import Drafter


class Growth:
    """The growth is a tree that is filled with guesses.

    A guess's chance is the head's probability. Where the path so far is what a lookup copied, it is a mixture: the copy
    has the lookup's chance, and what is left is the head's (a pointer beside a vocabulary, arXiv 1609.07843). Below the
    heads the copy alone goes on.

    Args:
        drafter: makes the guesses.
        state: `[B, d + d']`, of the token before the root.
        root: `[B]`, the token that is decided.
        tree: the shape to fill.
        copies: of the lookup; None: the heads guess alone.

    Attributes:
        chances: of each node so far, `[B]`: the product of the probabilities of it and of those before it.
        depth: how many levels there are below the root.
    """

    def __init__(
        self, drafter: Drafter, state: Tensor, root: Tensor, tree: DraftTree, copies: Copies | None = None
    ) -> None:
        self.tree = tree
        self.chances: dict[int, Tensor] = {0: torch.ones_like(root, dtype=torch.float)}
        self.depth = 0
        self._drafter = drafter
        self._state = state
        self._tokens = root[:, None].repeat(1, len(tree))
        self._codes: dict[int, Tensor] = {}
        self._copies = copies
        self._copied = {0: torch.ones_like(root, dtype=torch.bool)}  # whether a node's path is the lookup's, [B]

    @property
    def parents(self) -> list[int]:
        """Returns the nodes that the next level follows."""
        tree = self.tree
        if self.depth >= self._drafter.heads and not self._copy()[1].any():
            return []
        return [node for node in self.chances if tree.depths[node] == self.depth and tree.children[node]]

    def copied(self, node: int) -> float:
        """Returns the largest chance, over the rows, that the lookup gives a token after a node of the last level."""
        return float((self._copy()[1] * self._copied[node]).max())

    def grow(self, least: float = 0.0) -> None:
        """Adds a level, without the nodes that have this chance in no row."""
        parents, tree = self.parents, self.tree
        most = 1 + max(tree.ranks[child] for node in parents for child in tree.children[node])
        codes, shares = self._score(parents)
        shares, guesses = self._mix(parents, shares, most)
        copy, _ = self._copy()
        for column, node in enumerate(parents):
            for child in tree.children[node]:
                rank = tree.ranks[child]
                if rank >= shares.shape[2]:  # below the heads there is the copy alone
                    continue
                chance = self.chances[node] * shares[:, column, rank]
                if chance.max() >= least:
                    self._tokens[:, child] = token = guesses[:, column, rank]
                    self.chances[child] = chance
                    self._copied[child] = self._copied[node] & (token == copy)
                    if codes is not None:
                        self._codes[child] = codes[:, column]
        self.depth += 1

    def only(self, nodes: Sequence[int]) -> tuple[Tensor, DraftTree]:
        """Returns the tokens of some nodes, `[B, N]`, and the tree that they make."""
        ordered = sorted(nodes)
        return self._tokens[:, ordered], self.tree.only(ordered)

    def _copy(self) -> tuple[Tensor, Tensor]:
        """Returns what the lookup copies to the next level, `[B]` tokens and chances; 0 where it copies nothing."""
        if self._copies is None or self.depth >= self._copies.tokens.shape[1]:
            return self._tokens[:, 0], torch.zeros_like(self.chances[0])
        return self._copies.tokens[:, self.depth], self._copies.chances[:, self.depth]

    def _score(self, parents: list[int]) -> tuple[Tensor | None, Tensor]:
        """Returns a head's codes and probabilities after some nodes, `[B, P, rank]` and `[B, P, N]`; N is 0 below."""
        if self.depth >= self._drafter.heads:
            return None, self.chances[0].new_zeros(len(self._state), len(parents), 0)
        previous = None if self.depth == 0 else torch.stack([self._codes[node] for node in parents], dim=1)
        state = self._state[:, None].expand(-1, len(parents), -1)
        codes = self._drafter.code(self.depth, state, self._tokens[:, parents], previous)
        return codes, self._drafter.scores(self.depth, codes).float().softmax(dim=-1)

    def _mix(self, parents: list[int], shares: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Returns the best guesses of head and lookup after some nodes: chances and tokens, `[B, P, n]` each."""
        copy, chance = self._copy()
        vocabulary = self._drafter.vocabulary[: shares.shape[2]]
        if chance.any():
            on = torch.stack([self._copied[node] for node in parents], dim=1)
            weight = (chance[:, None] * on)[..., None]  # [B, P, 1]
            same = (vocabulary == copy[:, None])[:, None]  # [B, 1, N]
            shares = (1 - weight) * shares
            copied = weight + (shares * same).sum(dim=-1, keepdim=True)
            shares = torch.cat((shares * ~same, copied), dim=-1)
        shares, best = shares.topk(min(most, shares.shape[2]))
        tokens = torch.cat((vocabulary.expand(len(copy), -1), copy[:, None]), dim=1)  # [B, N + 1]
        return shares, tokens[torch.arange(len(copy), device=copy.device)[:, None, None], best]


def propose(
    drafter: Drafter, state: Tensor, root: Tensor, tree: DraftTree, confidence: float
) -> tuple[Tensor, DraftTree]:
    """Fills a tree with the heads' guesses.

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
