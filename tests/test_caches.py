"""The extra heads' cache layers are of the kind and settings of the base's, whatever that is, and wait for no GPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import LAYERS, add_tiny_adapter, close, refused, since, tiny_base, tiny_otter, tokens
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache, QuantizedCache, StaticCache
from transformers.cache_utils import DynamicLayer, QuantizedLayer

SLIDING: dict[str, Any] = {"model_type": "mistral", "sliding_window": 4}
HYBRID: dict[str, Any] = {
    "model_type": "gemma3_text",
    "head_dim": 16,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
GPT2 = {"model_type": "gpt2", "n_inner": 48}


class Rounded(QuantizedLayer):
    """Is a quantised layer that loses hardly anything."""

    def _quantize(self, tensor, axis):
        assert self.nbits == 3
        return (tensor * 2**20).round().long(), axis

    def _dequantize(self, quantised):
        return quantised[0].float() / 2**20


class Scaled(DynamicLayer):
    """Keeps its setting under another name than that of the argument."""

    def __init__(self, scale):
        super().__init__()
        self._halves = scale / 2

    def update(self, key, value, *args, **kwargs):
        assert self._halves == 1.5
        return super().update(key, value)


CACHES: dict[str, tuple[Callable[[Any], Cache], dict[str, Any]]] = {
    "dynamic": (lambda config: DynamicCache(config=config), {}),
    "dynamic without a configuration": (lambda config: DynamicCache(), {}),
    "dynamic sliding": (lambda config: DynamicCache(config=config), SLIDING),
    "static": (lambda config: StaticCache(config=config, max_cache_len=16), {}),
    "static sliding": (lambda config: StaticCache(config=config, max_cache_len=16), SLIDING),
    "static hybrid": (lambda config: StaticCache(config=config, max_cache_len=16), HYBRID),
    "quantised": (lambda config: Cache(layers=[Rounded(nbits=3, residual_length=3) for _ in range(LAYERS)]), {}),
    "a layer of one's own": (lambda config: Cache(layers=[Scaled(3) for _ in range(LAYERS)]), {}),
    "encoder-decoder": (lambda config: EncoderDecoderCache(DynamicCache(), DynamicCache()), GPT2),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CACHES)
def test_steps_over_a_cache_are_the_whole_pass(name):
    make, settings = CACHES[name]
    otter, plain = tiny_otter(tiny_base(**settings), layers=(0, 1, 3)), tiny_base(**settings)
    add_tiny_adapter(otter, "other", seed=2, layers=(1, 2))
    ids, ours, theirs = tokens(2, 10), make(plain.config), make(plain.config)
    steps: dict[str, list[Tensor]] = {"reward": [], "other": []}
    for chunk in ids.split([5, 1, 1, 3], dim=1):
        output = otter(chunk, past_key_values=ours, use_cache=True)
        assert torch.equal(output.logits, plain(chunk, past_key_values=theirs, use_cache=True).logits)
        for signal, states in steps.items():
            states.append(output.signals[signal].state)
    whole = otter(ids).signals
    for signal, states in steps.items():
        close(torch.cat(states, dim=1), whole[signal].state, 1e-4)


@torch.no_grad()
def test_extra_layers_have_the_settings_of_the_bases():
    otter = tiny_otter(tiny_base(), layers=(1, 2))
    cache = Cache(layers=[Rounded(nbits=3, q_group_size=n + 1, residual_length=n + 5) for n in range(LAYERS)])
    otter(tokens(2, 4), past_key_values=cache)
    for ours, base in ((LAYERS, 1), (LAYERS + 1, 2)):
        for name in ("nbits", "axis_key", "axis_value", "q_group_size", "residual_length"):
            assert getattr(cache.layers[ours], name) == getattr(cache.layers[base], name)


@torch.no_grad()
@since("5.21")
def test_fp8():
    otter, plain = tiny_otter(tiny_base()), tiny_base()
    ours, theirs = (QuantizedCache("fp8", config=plain.config) for _ in range(2))
    for chunk in tokens(2, 8).split([5, 1, 2], dim=1):
        output = otter(chunk, past_key_values=ours)
        assert torch.equal(output.logits, plain(chunk, past_key_values=theirs).logits)
    assert output.signals["reward"].state.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["dynamic", "static", "quantised"])
def test_reset_and_reorder_follow_the_base(name):
    otter, ids = tiny_otter(tiny_base()), tokens(2, 6)
    cache = CACHES[name][0](otter.config)
    otter(tokens(2, 3, seed=4), past_key_values=cache)
    cache.reset()
    close(otter(ids, past_key_values=cache).signals["reward"].state, otter(ids).signals["reward"].state, 1e-4)
    cache.reorder_cache(torch.tensor([1, 0]))
    last = otter(ids[:, :1], past_key_values=cache).signals["reward"].state
    close(last, otter(torch.cat((ids[[1, 0]], ids[:, :1]), dim=1)).signals["reward"].state[:, -1:], 1e-4)


@torch.no_grad()
def test_repeat_select_and_crop_follow_the_base():
    otter, cache, ids = tiny_otter(tiny_base()), DynamicCache(), tokens(2, 6)
    otter(ids, past_key_values=cache)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([2, 1]))
    cache.crop(-2)
    rows = torch.cat((ids[[1, 0], :4], ids[:, :1]), dim=1)
    last = otter(ids[:, :1], past_key_values=cache).signals["reward"].state
    close(last, otter(rows).signals["reward"].state[:, -1:], 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["dynamic", "static", "static sliding"])
def test_a_cache_that_was_filled_while_off_is_refused(name):
    make, settings = CACHES[name]
    otter = tiny_otter(tiny_base(**settings))
    first, between = make(otter.config), make(otter.config)
    with otter.disable_adapter():
        otter(tokens(1, 5), past_key_values=first)
    refused(lambda: otter(tokens(1, 1), past_key_values=first), "filled while the adapter was off")
    otter(tokens(1, 3), past_key_values=between)
    otter.base_model(tokens(1, 2), past_key_values=between)
    refused(lambda: otter(tokens(1, 1), past_key_values=between), "filled while the adapter was off")


@torch.no_grad()
def test_the_layers_of_an_adapter_that_was_off_are_of_its_own_blocks_kinds():
    otter = tiny_otter(tiny_base(**HYBRID), layers=(1,))
    add_tiny_adapter(otter, "sliding", layers=(2,))
    cache = StaticCache(config=otter.config, max_cache_len=16)
    with otter.use_adapters(["sliding"]):
        otter(tokens(1, 5), past_key_values=cache)
    cache.reset()
    with otter.use_adapters(["reward"]):
        otter(tokens(1, 9), past_key_values=cache)
    assert [type(layer) for layer in cache.layers[LAYERS:]] == [type(cache.layers[1]), type(cache.layers[2])]
    assert type(cache.layers[1]) is not type(cache.layers[2])


@torch.no_grad()
def test_a_static_cache_that_was_reset_may_be_used():
    otter = tiny_otter(tiny_base())
    cache = StaticCache(config=otter.config, max_cache_len=16)
    with otter.disable_adapter():
        otter(tokens(1, 5), past_key_values=cache)
    cache.reset()
    expected = otter(tokens(1, 4)).signals["reward"].state
    close(otter(tokens(1, 4), past_key_values=cache).signals["reward"].state, expected)


@torch.no_grad()
@pytest.mark.parametrize("taps", ["inside", "edge"])
@pytest.mark.parametrize("name", ["dynamic", "static"])
def test_steps_are_compiled_whole(name, taps):
    """A branch on the length of a static cache would not be, and would wait for a GPU."""
    otter, other = (tiny_otter(tiny_base(), taps=taps, head_dim=8) for _ in range(2))
    ours, theirs = (CACHES[name][0](otter.config) for _ in range(2))
    for model, cache in ((otter, ours), (other, theirs)):
        model(tokens(1, 5), past_key_values=cache)
    step = torch.compile(otter, backend="eager", fullgraph=True)
    for token in tokens(1, 3, seed=1).split(1, dim=1):
        state = step(token, past_key_values=ours).signals["reward"].state
        close(state, other(token, past_key_values=theirs).signals["reward"].state)


@torch.no_grad()
@pytest.mark.parametrize("taps", ["inside", "edge"])
def test_a_compiled_step_over_a_cache_that_was_filled_while_off_gives_no_numbers(taps):
    """It cannot raise an error, as it does not read the lengths."""
    otter = tiny_otter(tiny_base(), taps=taps, head_dim=8)
    cache, whole = (StaticCache(config=otter.config, max_cache_len=16) for _ in range(2))
    step = torch.compile(otter, backend="eager", fullgraph=True)
    with otter.disable_adapter():
        otter(tokens(1, 5), past_key_values=cache)
    otter.base_model(tokens(1, 5), past_key_values=whole)
    output = step(tokens(1, 1), past_key_values=cache)
    assert output.signals["reward"].prefix.isnan().all()
    # A compiled base attends with a mask where the base alone needs none, which rounds in another way.
    base = torch.compile(otter.base_model, backend="eager", fullgraph=True)
    assert torch.equal(output.logits, base(tokens(1, 1), past_key_values=whole).logits)
