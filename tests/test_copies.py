"""A model, and the base inside it, can be copied, pickled, sent to a process and moved; copies are alive, hooks of a
copied base are not."""

import copy
import gc
import io
import multiprocessing
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from conftest import add_tiny_adapter, generate, refused, tiny_base, tiny_otter, tokens
from torch import nn
from transformers import DynamicCache

from otterlm.signals.reward.head import RewardSignal


def unpickled(thing):
    return pickle.loads(pickle.dumps(thing))


def reloaded(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": unpickled, "torch.save": reloaded}


@pytest.fixture(params=COPIES)
def copied(request):
    return COPIES[request.param]


def hooks(base):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in base.modules())


@torch.no_grad()
def is_alive(model):
    """Asserts that a model gives the logits and rewards of the one that all tests copy."""
    expected = tiny_otter(tiny_base())(tokens(2, 7))
    output = model(tokens(2, 7))
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.signals["reward"].prefix, expected.signals["reward"].prefix)


def test_a_copy_is_alive_and_apart(copied):
    otter = tiny_otter(tiny_base())
    otter(tokens(1, 4)).signals["reward"].vocabulary()
    twin = copied(copied(otter))
    is_alive(twin)
    assert hooks(twin.base_model) == hooks(otter.base_model)
    assert torch.equal(generate(twin), generate(otter))
    with torch.no_grad():
        twin.adapter().head.prefix.weight.zero_()
    is_alive(otter)
    add_tiny_adapter(twin, "other", seed=2, layers=(1,))
    assert set(twin(tokens(1, 4)).signals) == {"reward", "other"}
    base = twin.base_model
    del twin
    gc.collect()
    assert hooks(base) == 0


@torch.no_grad()
def test_a_copied_base_is_inert_and_can_be_wrapped(copied):
    otter, calls = tiny_otter(tiny_base()), []
    base = copied(otter.base_model)
    otter.adapter().stream.layers["1"].register_forward_hook(lambda *_: calls.append(1))
    nobody: Any = object()
    with otter.visit(nobody):  # nobody could be shown anything
        output = base(tokens(2, 7))
    assert not calls
    assert not hasattr(output, "signals")
    assert torch.equal(output.logits, tiny_base()(tokens(2, 7)).logits)
    again = tiny_otter(base)
    assert hooks(base) == hooks(otter.base_model)
    is_alive(again)


def test_a_pickled_base_does_not_need_otter(tmp_path):
    (tmp_path / "base").write_bytes(pickle.dumps(tiny_otter(tiny_base()).base_model))
    code = "import pickle, sys, torch; sys.modules['otterlm'] = None; base = pickle.load(open(sys.argv[1], 'rb'))"
    code += "; print(base(torch.tensor([[5, 6]])).logits.shape)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "base"], capture_output=True, text=True)
    assert "[1, 2, 97]" in done.stdout, done.stderr


def test_two_models_on_one_base(copied):
    base = tiny_base()
    first, second = tiny_otter(base), tiny_otter(base)
    for model in (copied(second), first, second):
        is_alive(model)
    del first
    gc.collect()
    is_alive(second)


def test_a_base_is_wrapped_again():
    base = tiny_base()
    otter = tiny_otter(base)
    del otter
    gc.collect()
    assert hooks(base) == 0
    is_alive(tiny_otter(base))
    assert tiny_otter(base).unload() is base


def _rewards(model, base, queue):
    queue.put((model(tokens(2, 7)).signals["reward"].prefix.tolist(), base(tokens(2, 7)).logits.tolist()))


def test_spawn():
    otter, context = tiny_otter(tiny_base()), multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_rewards, args=(otter, otter.base_model, queue))
    process.start()
    results = queue.get(timeout=120)
    process.join()
    output = otter(tokens(2, 7))
    assert results == (output.signals["reward"].prefix.tolist(), output.logits.tolist())


def test_what_a_thread_was_doing_is_not_copied(copied):
    otter = tiny_otter(tiny_base())
    with otter.disable_adapter():
        assert copied(otter).active_adapters == ["reward"]
    otter.disable_adapters()
    assert copied(otter).active_adapters == []


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_that_is_converted_is_as_one_that_was_loaded_so(dtype, tmp_path):
    otter = tiny_otter(tiny_base())
    otter.save_pretrained(tmp_path)
    loaded = type(otter).from_pretrained(tiny_base(dtype=dtype), tmp_path)
    assert otter.to(dtype) is otter
    assert otter.adapter().stream.final_norm.eps.dtype == torch.float32
    ours, theirs = otter(tokens(2, 7)), loaded(tokens(2, 7))
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.signals["reward"].state, theirs.signals["reward"].state)


@torch.no_grad()
def test_tensors_that_are_assigned_stay_tied():
    otter, other = (tiny_otter(tiny_base(seed=seed, tie_word_embeddings=True), seed=seed + 1) for seed in (0, 4))
    other.load_state_dict({name: tensor.clone() for name, tensor in otter.state_dict().items()}, assign=True)
    assert other.base_model.lm_head.weight is other.base_model.model.embed_tokens.weight
    assert not other.base_model.lm_head.weight.requires_grad
    assert torch.equal(other(tokens(2, 7)).logits, otter(tokens(2, 7)).logits)
    assert torch.equal(other.signal().vocabulary(), otter.signal().vocabulary())


@torch.no_grad()
@pytest.mark.parametrize("assign", [False, True])
def test_a_module_around_a_tied_model_loads_what_it_saved(assign):
    around, again = (
        nn.ModuleDict({"otter": tiny_otter(tiny_base(seed=n, tie_word_embeddings=True), n)}) for n in (0, 4)
    )
    again.load_state_dict({name: tensor.clone() for name, tensor in around.state_dict().items()}, assign=assign)
    expected, output = around["otter"](tokens(2, 7)), again["otter"](tokens(2, 7))
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.signals["reward"].prefix, expected.signals["reward"].prefix)


@torch.no_grad()
def test_there_and_back_forgets_what_was_folded():
    otter = tiny_otter(tiny_base())
    otter(tokens(1, 4)).signals["reward"].vocabulary()
    expected = tiny_otter(tiny_base()).half().float()(tokens(1, 4)).signals["reward"].vocabulary()
    assert torch.equal(otter.half().float()(tokens(1, 4)).signals["reward"].vocabulary(), expected)


@torch.no_grad()
def test_a_cache_of_other_adapters_is_refused():
    base, cache = tiny_base(), DynamicCache()
    first, second = tiny_otter(base), tiny_otter(base, seed=2)
    first(tokens(1, 5), past_key_values=cache)
    twin = copy.deepcopy(first)(tokens(1, 1), past_key_values=copy.deepcopy(cache))
    refused(lambda: second(tokens(1, 1), past_key_values=copy.deepcopy(cache)), "other adapters")
    assert torch.equal(twin.logits, first(tokens(1, 1), past_key_values=cache).logits)


@torch.no_grad()
@pytest.mark.parametrize("fullgraph", [False, True])
def test_compiled_passes_give_their_signals(fullgraph):
    otter, plain = tiny_otter(tiny_base()), tiny_otter(tiny_base())
    compiled = torch.compile(otter, backend="eager", fullgraph=fullgraph)
    for seed in (0, 1):
        output, expected = compiled(tokens(2, 7, seed=seed)), plain(tokens(2, 7, seed=seed))
        for signals in (output.signals, otter.signals):
            signal = signals["reward"]
            assert isinstance(signal, RewardSignal)
            torch.testing.assert_close(signal.prefix, expected.signals["reward"].prefix)
        assert torch.equal(output.logits, expected.logits)
    with otter.disable_adapter():
        assert compiled(tokens(2, 7)).signals == {}
