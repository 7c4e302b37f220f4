"""Drafts several next tokens, verifies them in one pass, and takes the longest right path (speculative decoding).

The tokens are chosen by the base alone (after the logits processors), one after the other along the tree: greedily, or
by sampling. A draft only decides whether the pass that gives the next choice has been made already. So greedy output
is the base's, and samples have the base's distribution: to take a token from p and look it up among the drafts is
rejection sampling (arXiv 2211.17192) with a proposal that is certain of its drafts.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from otterlm.cache import keep_path
from otterlm.checks import check_chance, check_count
from otterlm.decoding.draft_tree import DraftTree
from otterlm.decoding.loop import Loop, Run
from otterlm.decoding.prompt import read_prompt
from otterlm.decoding.rows import Reading, join_rows, process_row
from otterlm.decoding.transposed_linear import TransposedLinear
from otterlm.errors import OtterError
from otterlm.families.facts import context_length
from otterlm.generation import Request
from otterlm.interventions import InterventionSettings
from otterlm.masks import tree_mask
from otterlm.model import OtterModel
from otterlm.signals.base import Capability
from otterlm.signals.draft.head import Drafter


@dataclass
class SpeculativeOutput(ModelOutput):
    """The output holds sequences, and how many drafts were right.

    Attributes:
        sequences: `[B, T]` tokens, the prompt included.
        accepted: for each verified tree of each row, how many drafts were accepted.
        acceptance_length: mean tokens a pass, including the one that the base adds; the pass over the prompt is not
            counted.
    """

    sequences: Tensor | None = None
    accepted: list[list[int]] | None = None
    acceptance_length: float | None = None


class SpeculativeDecoding(Loop):
    """The loop decodes for `model.generate(..., custom_generate=SpeculativeDecoding())`, greedily or by sampling.

    It takes batches. Logits processors see each row by itself, and steer what is verified: drafts follow a guided
    distribution, too. Stopping criteria are called after every token of a row.

    Args:
        drafts: how many drafts a pass verifies at most; three is right for a CPU, more may be where passes are free.
        tree: their shape; by default the best for the accuracy that the adapter's configuration records, or a chain.
        adapter_name: of the drafts; may be left out where there is one.
        confidence: drafts whose chance of being right is smaller by the heads' estimate, in every row, are not
            verified, so that an unsure step is a pass of one token (as in EAGLE-2, arXiv 2406.16858). 0 verifies all:
            right where a pass of a few tokens costs what a pass of one does.

    Raises:
        OtterError: a setting is out of range.
    """

    supports = replace(Loop.supports, unconditional=False, batch_streamer=False)
    output = SpeculativeOutput
    pass_settings: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        drafts: int = 3,
        tree: DraftTree | None = None,
        adapter_name: str | None = None,
        confidence: float = 0.0,
    ) -> None:
        self.drafts = check_count("drafts", drafts)
        self.tree = tree
        self.adapter_name = adapter_name
        self.confidence = check_chance("confidence", confidence)

    def reads(self, model: OtterModel) -> str | None:
        """Returns the name of its adapter."""
        return model.adapter_name(self.adapter_name, Capability.DRAFTS)

    def check(self, model: OtterModel, request: Request) -> None:
        """Checks the call, see `Intervention`."""
        super().check(model, request)
        if request.guarded and request.responses > 1:
            raise OtterError(
                f"rows of a batch grow at their own pace here, and {request.guarded} counts them together: one row"
            )

    def decode(self, run: Run) -> SpeculativeOutput:
        """Drafts and verifies, see `Loop`."""
        model = run.model
        whole = self.tree or self._tree(model)
        rows = [_Row(run, index) for index in range(len(run.input_ids))]
        prompt = read_prompt(run, len(whole), **self.pass_settings)
        drafter = self._drafter(model, prompt.output)
        if max(whole.depths) > drafter.heads or max(whole.ranks) >= len(drafter.vocabulary):
            raise OtterError(f"the draft tree asks for more than {drafter.heads} heads or than the draft vocabulary")
        for row in rows:
            row.choose(prompt.output, -1)
        seen, state, position = prompt.seen, drafter.state[:, -1], prompt.position  # [B, P], [B, d + d'], [B]
        longest = context_length(model.config) or torch.iinfo(torch.long).max
        accepted: list[list[int]] = [[] for _ in rows]
        while not all(row.ended for row in rows):
            rows[0].show()
            root = torch.stack([row.tokens[-1] for row in rows])
            drafts, tree = propose(drafter, state, root, whole, self.confidence)  # [B, N]
            depths = torch.tensor(tree.depths, device=drafts.device)
            with TransposedLinear() if len(tree) > 1 else nullcontext():
                output = model(
                    input_ids=drafts,
                    attention_mask=tree_mask(seen.bool(), tree.ancestors, model.base_model.dtype),
                    # A draft beyond the context's end is never accepted, but learned positions must have it.
                    position_ids=(position[:, None] + depths).clamp_max(longest - 1),
                    past_key_values=prompt.cache,
                    **self.pass_settings,
                )
            drafter = self._drafter(model, output)
            paths = []
            for index, row in enumerate(rows):
                if row.ended:
                    paths.append([0])
                    continue
                paths.append(row.follow(output, drafts[index].tolist(), tree))
                accepted[index].append(len(paths[-1]) - 1)
            path, mask = _pad(paths, drafts.device)  # [B, n] each
            keep_path(prompt.cache, path, len(tree))
            seen = torch.cat((seen, mask.to(seen)), dim=-1)
            state = drafter.state[torch.arange(len(rows)), [path[-1] for path in paths]]
            position = position + mask.sum(dim=-1)
        rows[0].show()
        passes = sum(map(len, accepted))
        return SpeculativeOutput(
            sequences=join_rows([row.tokens for row in rows], run.config),
            accepted=accepted,
            acceptance_length=1 + sum(map(sum, accepted)) / passes if passes else None,
        )

    def _tree(self, model: OtterModel) -> DraftTree:
        signal: Any = model.adapter(model.adapter_name(self.adapter_name, Capability.DRAFTS)).config.signal
        if signal.accuracy:
            return DraftTree.best(signal.accuracy, self.drafts)
        return DraftTree.chain(min(self.drafts, signal.heads))

    def _drafter(self, model: OtterModel, output: Any) -> Drafter:
        return output.signals[model.adapter_name(self.adapter_name, Capability.DRAFTS)]


def propose(
    drafter: Drafter, state: Tensor, root: Tensor, tree: DraftTree, confidence: float
) -> tuple[Tensor, DraftTree]:
    """Fills a tree with guesses, level by level.

    Args:
        drafter: makes the guesses.
        state: `[B, d + d']`, of the token before the root.
        root: `[B]`, the token that is decided.
        tree: the tree to fill.
        confidence: a node that in no row has this chance, the product of the heads' probabilities of it and of those
            before it, is left out, and so are all nodes after it.

    Returns:
        `[B, N]` token ids, and the tree of these N nodes.
    """
    tokens = root[:, None].repeat(1, len(tree))
    chances: dict[int, Tensor] = {0: torch.ones_like(root, dtype=torch.float)}  # of each node, [B]
    codes: dict[int, Tensor] = {}
    for depth in range(max(tree.depths)):
        parents = [node for node in chances if tree.depths[node] == depth and tree.children[node]]
        if not parents:
            break
        previous = None if depth == 0 else torch.stack([codes[node] for node in parents], dim=1)
        code = drafter.code(depth, state[:, None].expand(-1, len(parents), -1), tokens[:, parents], previous)
        most = 1 + max(tree.ranks[child] for node in parents for child in tree.children[node])
        shares, best = drafter.scores(depth, code).float().softmax(dim=-1).topk(most)  # [B, parents, most]
        guesses = drafter.vocabulary[best]
        for column, node in enumerate(parents):
            for child in tree.children[node]:
                chance = chances[node] * shares[:, column, tree.ranks[child]]
                if chance.max() >= confidence:
                    tokens[:, child] = guesses[:, column, tree.ranks[child]]
                    chances[child] = chance
                    codes[child] = code[:, column]
    nodes = sorted(chances)
    return tokens[:, nodes], tree.only(nodes)


class _Row:
    """A row is one sequence of the batch, which grows independently of the others."""

    def __init__(self, run: Run, index: int) -> None:
        self.tokens = run.input_ids[index]
        self.ended = False
        self._run = run
        self._index = index
        self._shown = len(self.tokens)

    def choose(self, output: Any, position: int) -> int:
        """Appends the next token, chosen from the output of a pass at a position of this row."""
        scores = process_row(self._run, self.tokens, Reading.of(output, self._index, position), self._index)[None]
        sample = self._run.config.do_sample
        token = torch.multinomial(scores.softmax(dim=-1), 1)[0] if sample else scores.argmax(dim=-1)  # [1]
        self.tokens = torch.cat((self.tokens, token))
        self.ended = bool(self._run.criteria(self.tokens[None], scores).all())
        return int(token)

    def follow(self, output: Any, drafts: Sequence[int], tree: DraftTree) -> list[int]:
        """Chooses tokens from the root on, as long as each choice was drafted. Returns the accepted nodes."""
        path = [0]
        while True:
            token = self.choose(output, path[-1])
            following = [child for child in tree.children[path[-1]] if drafts[child] == token]
            if not following or self.ended:
                return path
            path.append(following[0])

    def show(self) -> None:
        """Gives the streamer the new tokens."""
        for token in self.tokens[self._shown :]:
            self._run.show(token[None])
        self._shown = len(self.tokens)


def _pad(paths: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pads paths of several lengths with node 0 to one tensor. Returns it, and a mask of the paths."""
    longest = max(map(len, paths))
    path = torch.tensor([path + [0] * (longest - len(path)) for path in paths], device=device)
    mask = torch.tensor([[1] * len(path) + [0] * (longest - len(path)) for path in paths], device=device)
    return path, mask


def make(model: OtterModel, adapter_name: str, settings: InterventionSettings) -> SpeculativeDecoding:
    """Makes the drafts of the registry, see `otterlm.interventions`."""
    return SpeculativeDecoding(settings.drafts, adapter_name=adapter_name, confidence=settings.confidence)
