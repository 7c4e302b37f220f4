"""An image in the prompt changes rewards and no logit, and rewards while decoding are those of one pass."""

import pytest
import torch
from conftest import tiny_otter
from torch import Tensor
from vision_models import KINDS, make, pixels, prompt, read

from otterlm.signals.reward.head import RewardSignal

NEW = 5
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}


@torch.no_grad()
@pytest.mark.parametrize("taps", ["inside", "edge"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_with_an_image(kind, taps):
    if (kind, taps) == ("llama4", "inside"):
        pytest.skip("its blocks are read at their edge alone")
    plain, otter, ids = make(kind), tiny_otter(make(kind), taps=taps), prompt(kind)
    inputs, image = read(kind, ids, ids.shape[1]), pixels(kind, 0)

    assert torch.equal(otter(**inputs, **image).logits, plain(**inputs, **image).logits)
    rewards = otter(**inputs, **image).signals["reward"].prefix
    assert not torch.equal(otter(**inputs, **pixels(kind, 1)).signals["reward"].prefix, rewards)

    seen = []

    def look(_: Tensor, scores: Tensor) -> Tensor:
        signal = otter.signals["reward"]
        assert isinstance(signal, RewardSignal)
        seen.append(signal.prefix[:, -1].clone())
        return scores

    answered = otter.generate(**inputs, **image, **GREEDY, logits_processor=[look])
    assert torch.equal(answered, plain.generate(**inputs, **image, **GREEDY))
    whole = otter(**read(kind, answered, ids.shape[1]), **image).signals["reward"].prefix
    torch.testing.assert_close(torch.stack(seen, dim=1), whole[:, -NEW - 1 : -1], rtol=1e-4, atol=1e-4)
