"""Defines trees of drafts, and texts that drafters memorise."""

from conftest import tokens
from transformers import PreTrainedModel

from otterlm.decoding import DraftTree
from otterlm.training.data.packing import Example

TREES = {
    "chain": DraftTree.chain(3),
    "one": DraftTree.chain(1),
    "bush": DraftTree((-1, 0, 0, 0, 1, 1, 2, 4), (0, 0, 1, 2, 0, 1, 0, 0)),
}


def continued(base: PreTrainedModel, count: int = 24, length: int = 16) -> list[Example]:
    """Returns random prompts and the base's greedy continuations of them."""
    prompts = tokens(count, 5, seed=9)
    responses = base.generate(prompts, max_new_tokens=length, do_sample=False, eos_token_id=None)[:, 5:]
    pairs = zip(prompts.tolist(), responses.tolist(), strict=True)
    return [Example(row, tuple(prompt), (tuple(new),)) for row, (prompt, new) in enumerate(pairs)]
