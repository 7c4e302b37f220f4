"""A text that repeats itself is drafted as it went on before, and the lookup knows how often that is right."""

from typing import Any

import pytest
import torch
from conftest import close, randomize, tiny_base, tiny_config
from hypothesis import given
from hypothesis import strategies as st

from otterlm.decoding import DraftTree, SpeculativeDecoding
from otterlm.decoding.draft_growth import Growth
from otterlm.decoding.draft_policy import LikeliestDrafts
from otterlm.decoding.lookup import LONGEST, PRIOR, RIGHT, Copies, Lookup
from otterlm.model import OtterModel
from otterlm.signals.draft.config import DraftConfig


def matched(text: list[int]) -> tuple[int, int]:
    """Searches the text itself: the index after the latest match of the most last tokens, and how many they are."""
    for length in range(min(LONGEST, len(text) - 1), 0, -1):
        for start in range(len(text) - length - 1, -1, -1):
            if text[start : start + length] == text[-length:]:
                return start + length, length
    return 0, 0


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 40), st.integers(0, 9))
def test_it_copies_what_followed_the_longest_latest_match(text, prompt, count) -> None:
    lookup = Lookup(text[:prompt])
    right, seen = [PRIOR * share for share in RIGHT], [PRIOR] * LONGEST
    for index in range(prompt, len(text)):
        after, length = matched(text[:index])
        if length:
            right[length - 1] += text[after] == text[index]
            seen[length - 1] += 1
        lookup.append(text[index])
    after, length = matched(text)
    longer = list(text)  # a copy of a copy, where the match reaches the end
    for offset in range(count):
        longer.append(longer[after + offset] if length else 0)
    expected = [
        (longer[len(text) + offset], right[min(length + offset, LONGEST) - 1] / seen[min(length + offset, LONGEST) - 1])
        for offset in range(count if length else 0)
    ]
    assert lookup.following(count) == expected


class Even:
    """Finds the six tokens of its vocabulary equally likely, whatever came before."""

    heads = 2
    vocabulary = torch.tensor([3, 4, 5, 6, 7, 8])
    state = torch.zeros(2, 1, 4)

    def code(self, head: int, state: Any, token: Any, previous: Any) -> Any:
        return state

    def scores(self, head: int, code: Any) -> Any:
        return torch.zeros(*code.shape[:-1], 6)


def copies() -> Copies:
    """The first row goes on with 7, 90, 5; of the second nothing is known."""
    return Copies.of([[(7, 0.4), (90, 0.5), (5, 0.75)], []], 3, torch.device("cpu"))


def test_a_copy_shares_the_chance_with_the_heads() -> None:
    tree = DraftTree((-1, 0, 0, 1, 2, 3), (0, 0, 1, 0, 0, 0))
    growth = Growth(Even(), torch.zeros(2, 4), torch.tensor([1, 2]), tree, copies())
    growth.grow()
    assert int(growth.only([0, 1])[0][0, 1]) == 7
    close(growth.chances[1], torch.tensor([0.4 + 0.6 / 6, 1 / 6]))
    close(growth.chances[2], torch.tensor([0.6 / 6, 1 / 6]))
    growth.grow()
    close(growth.chances[3], torch.tensor([0.5 * 0.5, 1 / 36]))  # 90 is no token of the heads'
    close(growth.chances[4], torch.tensor([0.6 / 6 / 6, 1 / 36]))  # it does not follow the copy
    growth.grow()  # below the heads the copy is alone
    close(growth.chances[5], torch.tensor([0.25 * 0.75, 0.0]))
    assert growth.only([0, 1, 3, 5])[0][0].tolist() == [1, 7, 90, 5]
    assert not growth.parents


def test_without_copies_the_growth_ends_with_the_heads() -> None:
    growth = Growth(Even(), torch.zeros(2, 4), torch.tensor([1, 2]), DraftTree.chain(5))
    while growth.parents:
        growth.grow()
    assert growth.depth == Even.heads


@pytest.mark.parametrize("drafts", [1, 3, 4])
def test_the_likeliest_drafts_are_chosen(drafts) -> None:
    policy = LikeliestDrafts(drafts, ((0.3, 0.2, 0.1),) * 2, 2, 6)
    running = torch.tensor([True, False])
    chosen, tree = policy.propose(Even(), torch.zeros(2, 4), torch.tensor([1, 2]), running, copies())
    assert len(tree) == drafts + 1
    assert {7, 90, 5} & set(chosen[0].tolist()) == set([7, 90, 5][:drafts])


def test_a_text_that_repeats_itself_is_drafted_without_learned_heads() -> None:
    torch.manual_seed(0)
    otter = OtterModel(tiny_base(), tiny_config(signal=DraftConfig(heads=2, width=24, rank=8, vocabulary_size=60)))
    randomize(otter.adapter().head, 3)
    otter.eval()
    ids = torch.tensor([[5, 6, 7, 8] * 3])
    settings: dict[str, Any] = {"max_new_tokens": 60, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = otter.base_model.generate(ids, **settings)
    lengths = {}
    for lookup in (True, False):
        loop = SpeculativeDecoding(4, lookup=lookup)
        output = otter.generate(ids, custom_generate=loop, return_dict_in_generate=True, **settings)
        assert torch.equal(output.sequences, plain)
        lengths[lookup] = output.acceptance_length
    assert lengths[True] > 1.2 * lengths[False]
