"""Guards the promise: whatever is inserted, the base's logits and generations are its own, bit for bit."""

from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES, LAYERS, add_tiny_adapter, tiny_base, tiny_otter, tokens
from transformers import DynamicCache

KINDS = [
    pytest.param((model_type, dtype, attention), id=f"{model_type}-{str(dtype)[6:]}-{attention}")
    for model_type in ARCHITECTURES
    for dtype in (torch.float32, torch.bfloat16)
    for attention in ("eager", "sdpa")
]


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest):
    """Makes a base that never carried a hook, and its twin with two adapters."""
    plain, base = tiny_base(*request.param), tiny_base(*request.param)
    otter = tiny_otter(base)
    add_tiny_adapter(otter, "other", seed=2, hidden_size=16, layers=(1, 3), embedding="table")
    return plain, otter.eval()


def left_padded(padding: int = 4):
    ids, mask = tokens(3, 12), torch.ones(3, 12, dtype=torch.long)
    ids[1, :padding], mask[1, :padding] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def test_full_pass(pair) -> None:
    plain, otter = pair
    ids = tokens(3, 12)
    output = otter(ids)
    assert torch.equal(output.logits, plain(ids).logits)
    assert set(output.signals) == {"reward", "other"}
    assert all(signal.prefix.isfinite().all() and signal.prefix.std() > 0 for signal in output.signals.values())


@torch.no_grad()
def test_left_padded_batch(pair) -> None:
    plain, otter = pair
    assert torch.equal(otter(**left_padded()).logits, plain(**left_padded()).logits)


@torch.no_grad()
@pytest.mark.parametrize("configured", [True, False])
def test_cache_in_steps(pair, configured) -> None:
    plain, otter = pair
    ids = tokens(2, 12)
    caches = [DynamicCache(config=plain.config) if configured else DynamicCache() for _ in range(2)]
    for chunk in ids.split([5, 1, 1, 3, 2], dim=1):
        ours, theirs = otter(chunk, past_key_values=caches[0]), plain(chunk, past_key_values=caches[1])
        assert torch.equal(ours.logits, theirs.logits)
    for layer in range(LAYERS):
        assert torch.equal(caches[0].layers[layer].keys, caches[1].layers[layer].keys)


GENERATIONS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3},
    "sampling": {"do_sample": True, "temperature": 1.5, "top_k": 0},
    "static": {"do_sample": False, "cache_implementation": "static"},
}


@torch.no_grad()
@pytest.mark.parametrize("how", GENERATIONS)
def test_generate(pair, how) -> None:
    plain, otter = pair
    outputs = []
    for model in (otter, plain):
        torch.manual_seed(7)
        outputs.append(
            model.generate(
                **left_padded(), **GENERATIONS[how], max_new_tokens=8, output_logits=True, return_dict_in_generate=True
            )
        )
    ours, theirs = outputs
    assert torch.equal(ours.sequences, theirs.sequences)
    assert all(torch.equal(left, right) for left, right in zip(ours.logits, theirs.logits, strict=True))
    assert otter.signal("reward").prefix.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
def test_poisoned_adapter(pair, poison) -> None:
    plain, otter = pair
    saved = {name: tensor.clone() for name, tensor in otter.adapters.state_dict().items()}
    for parameter in otter.adapters.parameters():
        parameter.fill_(poison)
    try:
        output = otter(**left_padded())
        assert not output.signals["reward"].prefix.isfinite().any()
        assert torch.equal(output.logits, plain(**left_padded()).logits)
        ids = otter.generate(**left_padded(), max_new_tokens=4, do_sample=False)
        assert torch.equal(ids, plain.generate(**left_padded(), max_new_tokens=4, do_sample=False))
    finally:
        otter.adapters.load_state_dict(saved)


@torch.no_grad()
def test_logits_with_adapters_off(pair) -> None:
    plain, otter = pair
    with otter.disable_adapter():
        output = otter(tokens(2, 9))
    assert output.signals == {}
    assert torch.equal(output.logits, plain(tokens(2, 9)).logits)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_gradients_stay_out_of_the_base(model_type) -> None:
    plain, otter = tiny_base(model_type), tiny_otter(tiny_base(model_type)).train()
    optimizer = torch.optim.AdamW([p for p in otter.parameters() if p.requires_grad], lr=0.1)
    output = otter(tokens(2, 9))
    assert not output.logits.requires_grad
    signal = output.signals["reward"]
    (signal.prefix.square().mean() + signal.vocabulary(tokens(2, 5)).square().mean()).backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in otter.base_model.parameters())
    gradients = [parameter.grad for parameter in otter.adapters.parameters()]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
    expected = plain.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in otter.base_model.state_dict().items())
