"""How rewards leave an engine as log probabilities; no engine is needed to try it."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from otterlm.engines.vllm.channels import LIMIT, choose_channels, decode, encode


@given(
    st.lists(st.floats(-30, LIMIT), min_size=1, max_size=4),
    st.integers(2, 300),
    st.sampled_from([0.1, 3.0, 30.0]),
    st.integers(0, 1000),
)
def test_a_reward_comes_out_as_it_went_in(rewards, vocabulary, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(len(rewards), vocabulary, generator=generator)
    others = logits[:, 1:].log_softmax(dim=-1)
    logits[:, 0] = -torch.inf
    logits[:, 0] = encode(torch.tensor(rewards), logits)
    told = logits.log_softmax(dim=-1)
    assert [decode(float(x)) for x in told[:, 0]] == pytest.approx(rewards, abs=1e-4)
    torch.testing.assert_close(told[:, 1:], others, atol=1e-5, rtol=1e-6)


def test_a_reward_beyond_the_limit_leaves_the_others_alone():
    logits = torch.zeros(1, 8)
    logits[0, 0] = -torch.inf
    logits[0, 0] = encode(torch.tensor([1e6]), logits)[0]
    assert decode(float(logits.log_softmax(dim=-1)[0, 0])) == pytest.approx(LIMIT)


def tokenizer(used: int, special: dict[int, str], template: str = "") -> SimpleNamespace:
    return SimpleNamespace(
        get_vocab=lambda: {f"t{token}": token for token in range(used)},
        chat_template=template,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
        unk_token_id=0,
        added_tokens_decoder={token: SimpleNamespace(content=text, special=True) for token, text in special.items()},
    )


@pytest.mark.parametrize(
    ("given_tokenizer", "expected"),
    [
        (tokenizer(8, {}), {"a": 9, "b": 8}),  # ids that it never makes
        (tokenizer(10, {2: "</s>", 4: "<file>", 6: "<|turn|>", 5: "<fim>"}, "{{ '<|turn|>' }}"), {"a": 5, "b": 4}),
        (tokenizer(10, {3: "<end>"}), {"a": 9, "b": 8}),  # <end> ends a response: the rarest words are left
        (None, {"a": 9, "b": 8}),
    ],
)
def test_channels_are_tokens_that_nobody_says(given_tokenizer, expected):
    assert choose_channels(["a", "b"], given_tokenizer, 10, {3}) == expected
