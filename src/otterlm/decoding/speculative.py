"""Drafts several next tokens, verifies them in one pass, and takes the longest right path (speculative decoding).

The tokens are chosen by the base alone (after the logits processors), one after the other along the tree: greedily, or
by sampling. A draft only decides whether the pass that gives the next choice has been made already. So greedy output
is the base's, and samples have the base's distribution: to take a token from p and look it up among the drafts is
rejection sampling (arXiv 2211.17192) with a proposal that is certain of its drafts.
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from otterlm.cache import keep_path
from otterlm.checks import check_chance, check_count
from otterlm.decoding.deferred_stream import DeferredStream
from otterlm.decoding.draft_policy import DraftPolicy, DraftsThatPay, FixedDrafts, LikeliestDrafts
from otterlm.decoding.draft_tree import DraftTree
from otterlm.decoding.experience import experience
from otterlm.decoding.lookup import Copies, Lookup
from otterlm.decoding.loop import Loop, Run
from otterlm.decoding.pass_costs import pass_costs
from otterlm.decoding.prompt import Prompt, check_branches, read_prompt
from otterlm.decoding.rows import Reading, join_rows, process_row, row_ends
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
        drafts: how many drafts a pass verifies at most. None: in each step those that pay, by what passes cost on this
            machine (measured in seconds at the first use, see `otterlm.decoding.pass_costs`) and by how sure the heads
            are; where none pays, a step is a pass of the base alone.
        tree: their shape, the same in every step; None: the best for `drafts` by the accuracy that the adapter's
            configuration records, or a chain.
        adapter_name: of the drafts; may be left out where there is one.
        confidence: drafts whose chance of being right is smaller by the heads' estimate, in every row, are not
            verified, so that an unsure step is a pass of one token (as in EAGLE-2, arXiv 2406.16858).
        lookup: whether a text that repeats itself is drafted, too, see `otterlm.decoding.lookup`. A given `tree` has
            the heads' guesses alone.

    Raises:
        OtterError: a setting is out of range.
    """

    supports = replace(Loop.supports, following=False, batch_streamer=False)
    output = SpeculativeOutput
    pass_settings: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        drafts: int | None = None,
        tree: DraftTree | None = None,
        adapter_name: str | None = None,
        confidence: float = 0.0,
        lookup: bool = True,
    ) -> None:
        self.drafts = None if drafts is None else check_count("drafts", drafts)
        self.tree = tree
        self.adapter_name = adapter_name
        self.confidence = check_chance("confidence", confidence)
        self.lookup = lookup and tree is None

    def reads(self, model: OtterModel) -> str | None:
        """Returns the name of its adapter."""
        return model.adapter_name(self.adapter_name, Capability.DRAFTS)

    def check(self, model: OtterModel, request: Request) -> None:
        """Checks the call, see `Intervention`."""
        super().check(model, request)
        check_branches(model)  # before costs are measured
        if request.guarded and request.responses > 1:
            raise OtterError(
                f"rows of a batch grow at their own pace here, and {request.guarded} counts them together: one row"
            )

    def decode(self, run: Run) -> SpeculativeOutput:
        """Drafts and verifies, see `Loop`."""
        model = run.model
        name = self.reads(model)
        policy = self._policy(model, len(run.input_ids))
        rows = [_Row(run, index, self.lookup) for index in range(len(run.input_ids))]
        prompt = read_prompt(run, len(policy.tree), **self.pass_settings)
        drafter = self._drafter(model, prompt.output)
        if self.tree and (max(self.tree.depths) > drafter.heads or max(self.tree.ranks) >= len(drafter.vocabulary)):
            raise OtterError(f"the draft tree asks for more than {drafter.heads} heads or than the draft vocabulary")
        for row in rows:
            row.choose(prompt.output, -1)
        # A stream that others do not need can wait until there are drafts again.
        alone = DeferredStream(model, name) if name is not None and model.active_adapters == [name] else None
        passes = _Passes(model, prompt, alone, self.pass_settings)
        state = drafter.state[:, -1]  # [B, d + d']
        accepted: list[list[int]] = [[] for _ in rows]
        while not all(row.ended for row in rows):
            rows[0].show()
            started = time.perf_counter()
            root = torch.stack([row.tokens[-1] for row in rows])
            running = ~torch.tensor([row.ended for row in rows], device=root.device)
            if policy.rests:
                drafts, tree = root[:, None], DraftTree.chain(0)
                output = passes.plain(drafts)
            else:
                if alone:
                    state = alone.catch_up(passes.seen)
                copies = self._copies(rows, max(policy.tree.depths))
                drafts, tree = policy.propose(drafter, state, root, running, copies)  # [B, N]
                output = passes.verify(drafts, tree)
            paths = []
            for index, row in enumerate(rows):
                if row.ended:
                    paths.append([0])
                    continue
                paths.append(row.follow(output, drafts[index].tolist(), tree))
                accepted[index].append(len(paths[-1]) - 1)
            passes.keep(paths, len(tree))
            right = [len(path) - 1 for path, on in zip(paths, running.tolist(), strict=True) if on]
            policy.learn(right, time.perf_counter() - started)
            if not alone:
                drafter = self._drafter(model, output)
                state = drafter.state[torch.arange(len(rows)), [path[-1] for path in paths]]
        rows[0].show()
        count = sum(map(len, accepted))
        return SpeculativeOutput(
            sequences=join_rows([row.tokens for row in rows], run.config),
            accepted=accepted,
            acceptance_length=1 + sum(map(sum, accepted)) / count if count else None,
        )

    def _policy(self, model: OtterModel, rows: int) -> DraftPolicy:
        if self.tree is not None:
            return FixedDrafts(self.tree, self.confidence)
        name = model.adapter_name(self.adapter_name, Capability.DRAFTS)
        signal: Any = model.adapter(name).config.signal
        if self.drafts is None:
            costs = pass_costs(model, name, rows)
            if model.active_adapters != [name]:  # no step does without the streams of the others
                costs = replace(costs, plain=costs.passes[0])
            earlier, size = experience(model, costs), signal.vocabulary_size
            return DraftsThatPay(signal.accuracy, signal.heads, size, costs, earlier, self.confidence)
        return LikeliestDrafts(self.drafts, signal.accuracy, signal.heads, signal.vocabulary_size, self.confidence)

    def _copies(self, rows: Sequence["_Row"], count: int) -> Copies | None:
        if not self.lookup:
            return None
        return Copies.of([row.following(count) for row in rows], count, rows[0].tokens.device)

    def _drafter(self, model: OtterModel, output: Any) -> Drafter:
        return output.signals[model.adapter_name(self.adapter_name, Capability.DRAFTS)]


class _Passes:
    """Runs the passes of a call over its KV cache.

    Args:
        model: the model that generates.
        prompt: has been read.
        deferred: runs the base without the streams; None: they are in every pass.
        settings: more arguments of a pass.

    Attributes:
        seen: `[B, T]`, 1 for the tokens of the text so far and 0 for padding.
    """

    def __init__(
        self, model: OtterModel, prompt: Prompt, deferred: DeferredStream | None, settings: dict[str, Any]
    ) -> None:
        self.seen = prompt.seen
        self._model = model
        self._cache = prompt.cache
        self._position = prompt.position
        self._longest = context_length(model.config) or torch.iinfo(torch.long).max
        self._deferred = deferred
        self._settings = settings
        self._turned = TransposedLinear(model, model.base_model)

    def plain(self, tokens: Tensor) -> Any:
        """Reads one token of each row, `[B, 1]`, as the base does it."""
        run = self._model if self._deferred is None else self._deferred.run
        return run(
            input_ids=tokens,
            attention_mask=torch.cat((self.seen, torch.ones_like(tokens)), dim=-1),
            position_ids=self._position[:, None],
            past_key_values=self._cache,
            **self._settings,
        )

    def verify(self, drafts: Tensor, tree: DraftTree) -> Any:
        """Reads a tree of tokens, `[B, N]`."""
        depths = torch.tensor(tree.depths, device=drafts.device)
        with self._turned if len(tree) > 1 else nullcontext():
            return self._model(
                input_ids=drafts,
                attention_mask=tree_mask(self.seen.bool(), tree.ancestors, self._model.base_model.dtype),
                # A draft beyond the context's end is never accepted, but learned positions must have it.
                position_ids=(self._position[:, None] + depths).clamp_max(self._longest - 1),
                past_key_values=self._cache,
                **self._settings,
            )

    def keep(self, paths: list[list[int]], size: int) -> None:
        """Keeps the accepted path of each row, of a tree of so many tokens."""
        path, mask = _pad(paths, self.seen.device)  # [B, n] each
        keep_path(self._cache, path, size)
        self.seen = torch.cat((self.seen, mask.to(self.seen)), dim=-1)
        self._position = self._position + mask.sum(dim=-1)


class _Row:
    """A row is one sequence of the batch, which grows independently of the others."""

    def __init__(self, run: Run, index: int, lookup: bool) -> None:
        self.tokens = run.input_ids[index]
        self.ended = False
        read = run.prompt_mask[index, : len(self.tokens)].bool()  # without padding; embedded prompts have no tokens
        self._lookup = Lookup(self.tokens[read].tolist()) if lookup else None
        self._run = run
        self._index = index
        self._shown = len(self.tokens)

    def choose(self, output: Any, position: int) -> int:
        """Appends the next token, chosen from the output of a pass at a position of this row."""
        scores = process_row(self._run, self.tokens, Reading.of(output, self._index, position), self._index)[None]
        sample = self._run.config.do_sample
        token = torch.multinomial(scores.softmax(dim=-1), 1)[0] if sample else scores.argmax(dim=-1)  # [1]
        self.tokens = torch.cat((self.tokens, token))
        self.ended = row_ends(self._run, self.tokens, self._index)
        if self._lookup is not None:
            self._lookup.append(int(token))
        return int(token)

    def following(self, count: int) -> list[tuple[int, float]]:
        """Returns what would follow if the text repeats itself, see `Lookup`."""
        return [] if self._lookup is None else self._lookup.following(count)

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
