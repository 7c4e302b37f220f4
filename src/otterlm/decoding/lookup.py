"""Finds where the last tokens of a text stood before, and what followed them there.

Prompt lookup decoding (arXiv 2304.04487, LLMA) drafts nothing else. Here it is one more opinion beside the draft heads:
a text that quotes its prompt, lists or repeats itself goes on as it did before.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIGHT = (0.18, 0.49, 0.59, 0.72, 0.77, 0.77, 0.77, 0.94)
"""How often the token after a match of 1, 2, ... tokens was right in greedy and sampled texts of SmolLM2."""
LONGEST = len(RIGHT)
"""Longer matches count as so many tokens."""
PRIOR = 8
"""`RIGHT` counts as if so many matches of each length had been seen in this text."""


class Lookup:
    """The lookup reads one text token by token, and learns how often it would have been right.

    Args:
        prompt: the first tokens. It learns nothing from them: nobody drafted them.
    """

    def __init__(self, prompt: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._followed: dict[tuple[int, ...], int] = {}  # what came last after each run of tokens, by index
        self._right = [PRIOR * share for share in RIGHT]
        self._seen = [PRIOR] * LONGEST
        for token in prompt:
            self._add(token)

    def append(self, token: int) -> None:
        """Reads the next token, and learns whether the lookup had it right."""
        following, length = self._match()
        if length:
            self._right[length - 1] += self._tokens[following] == token
            self._seen[length - 1] += 1
        self._add(token)

    def following(self, count: int) -> list[tuple[int, float]]:
        """Returns what would follow if the text repeats itself: at most so many tokens, none without a match.

        Each has the chance that it is right where those before it were; a match grows with every right token. A match
        that reaches the end of the text goes on with what it has copied.
        """
        following, length = self._match()
        copied: list[tuple[int, float]] = []
        for offset in range(count if length else 0):
            index, reached = following + offset, min(length + offset, LONGEST) - 1
            token = self._tokens[index] if index < len(self._tokens) else copied[index - len(self._tokens)][0]
            copied.append((token, self._right[reached] / self._seen[reached]))
        return copied

    def _add(self, token: int) -> None:
        self._tokens.append(token)
        end = len(self._tokens) - 1
        for length in range(1, min(LONGEST, end) + 1):
            self._followed[tuple(self._tokens[end - length : end])] = end

    def _match(self) -> tuple[int, int]:
        """Returns the index after the latest match of the most last tokens, and how many they are; 0: none."""
        for length in range(min(LONGEST, len(self._tokens)), 0, -1):
            following = self._followed.get(tuple(self._tokens[-length:]))
            if following is not None:
                return following, length
        return 0, 0


@dataclass(frozen=True, slots=True)
class Copies:
    """The copies are what would follow in each row of a batch.

    Attributes:
        tokens: `[B, D]` int64.
        chances: `[B, D]` float32, of each token where those before it are right; 0 where nothing follows.
    """

    tokens: Tensor
    chances: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[tuple[int, float]]], count: int, device: torch.device) -> "Copies":
        """Makes copies from what `Lookup.following` returned for each row, of at most so many tokens."""
        padded = [[*row, *[(0, 0.0)] * (count - len(row))] for row in rows]
        tokens = torch.tensor([[token for token, _ in row] for row in padded], dtype=torch.long, device=device)
        chances = torch.tensor([[chance for _, chance in row] for row in padded], device=device)
        return cls(tokens.view(len(rows), count), chances.view(len(rows), count))
