"""Defines the tree of drafts that are verified together (Medusa, arXiv 2401.10774).

A path from its root is one guess at the next tokens.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from otterlm.errors import OtterError


@dataclass(frozen=True)
class DraftTree:
    """The tree has a node for each draft. Node 0 is the root, the decided token, and parents come before children.

    Attributes:
        parents: of each node, the node before it; -1 for the root.
        ranks: of each node, which guess it is after its parent: 0 the best, 1 the second, ...
    """

    parents: tuple[int, ...]
    ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.parents or self.parents[0] != -1 or len(self.parents) != len(self.ranks):
            raise OtterError("a draft tree starts with its root (parent -1) and has a rank for every node")
        if any(not 0 <= parent < node for node, parent in enumerate(self.parents) if node):
            raise OtterError("in a draft tree every parent comes before its children")

    @classmethod
    def chain(cls, length: int) -> "DraftTree":
        """Makes the tree of the best guess after the best guess, `length` times."""
        return cls(tuple(range(-1, length)), (0,) * (length + 1))

    @classmethod
    def best(cls, accuracy: Sequence[Sequence[float]], drafts: int) -> "DraftTree":
        """Makes the tree of so many drafts with the longest expected accepted path.

        A node is accepted when its guess and all before it are right, so the tree has the likeliest nodes (Medusa,
        section 2.3.2).

        Args:
            accuracy: of each head, how often its best, second best, ... guess is right when all before it were.
            drafts: how many nodes to take beside the root.
        """
        parents, ranks, depths = [-1], [0], [0]
        # Nodes that may come next, the likeliest first: (-probability, parent, rank).
        open_nodes = [(-accuracy[0][0], 0, 0)]
        chances = [1.0]
        while len(parents) <= drafts and open_nodes:
            chance, parent, rank = heapq.heappop(open_nodes)
            depth = depths[parent] + 1
            node = len(parents)
            parents.append(parent)
            ranks.append(rank)
            depths.append(depth)
            chances.append(-chance)
            guesses = accuracy[depth - 1]
            if rank + 1 < len(guesses):
                heapq.heappush(open_nodes, (-chances[parent] * guesses[rank + 1], parent, rank + 1))
            if depth < len(accuracy):
                heapq.heappush(open_nodes, (chance * accuracy[depth][0], node, 0))
        return cls(tuple(parents), tuple(ranks))

    def longer(self, depth: int) -> "DraftTree":
        """Returns the tree with its chain of best guesses continued to this depth, if it is shorter."""
        end = 0
        while best := [child for child in self.children[end] if self.ranks[child] == 0]:
            end = best[0]
        more = range(max(0, depth - self.depths[end]))
        parents = [end if not index else len(self) + index - 1 for index in more]
        return DraftTree((*self.parents, *parents), (*self.ranks, *(0 for _ in more)))

    def only(self, nodes: Sequence[int]) -> "DraftTree":
        """Returns the tree of some of its nodes, in their order: the root, and no node without its parent."""
        if len(nodes) == len(self):
            return self  # its derived properties are cached
        index_of = {node: index for index, node in enumerate(nodes)} | {-1: -1}
        parents = tuple(index_of[self.parents[node]] for node in nodes)
        return DraftTree(parents, tuple(self.ranks[node] for node in nodes))

    def __len__(self) -> int:
        return len(self.parents)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Returns how many tokens each node is after the root."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Returns the children of each node."""
        children: list[list[int]] = [[] for _ in self.parents]
        for node, parent in enumerate(self.parents[1:], start=1):
            children[parent].append(node)
        return tuple(map(tuple, children))

    @cached_property
    def ancestors(self) -> Tensor:
        """Returns what each node sees of the tree, `[N, N]` bool, see `otterlm.masks.tree_mask`."""
        seen = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents[1:], start=1):
            seen[node] |= seen[parent]
        return seen
