"""Guards what OtterModel does around a pass: adapters on and off, threads that do not mix, hooks that go away."""

import copy
import gc
import threading

import pytest
import torch
from conftest import add_tiny_adapter, close, tiny_base, tiny_config, tiny_otter, tokens

from otterlm.model import OtterModel


class Stop(Exception):
    """Is raised by the tests."""


@pytest.fixture
def otter():
    model = tiny_otter(tiny_base())
    add_tiny_adapter(model, "other", seed=2, layers=(1, 3))
    return model.eval()


def fail():
    raise Stop


@torch.no_grad()
def test_use_adapters(otter) -> None:
    both = otter(tokens(2, 7)).signals
    with otter.use_adapters(["other"]):
        one = otter(tokens(2, 7)).signals
        assert otter.active_adapters == ["other"]
    assert set(one) == {"other"}
    assert torch.equal(one["other"].prefix, both["other"].prefix)
    assert otter.active_adapters == ["reward", "other"]


def test_disable_adapter_is_undone_by_an_exception(otter) -> None:
    seen = []
    with pytest.raises(Stop), otter.use_adapters(["reward"]), otter.disable_adapter():  # noqa: PT012
        seen.append(otter.active_adapters)
        fail()
    assert seen == [[]]
    assert otter.active_adapters == ["reward", "other"]


@torch.no_grad()
def test_a_pass_that_fails_leaves_nothing_behind(otter) -> None:
    expected = otter(tokens(2, 7)).signals["reward"].prefix
    handle = otter.adapter("other").stream.layers["3"].register_forward_pre_hook(lambda *_: fail())
    with pytest.raises(Stop):
        otter(tokens(2, 5))
    handle.remove()
    assert torch.equal(otter(tokens(2, 7)).signals["reward"].prefix, expected)


@torch.no_grad()
def test_the_base_alone_does_not_run_the_adapters(otter) -> None:
    otter(tokens(1, 4))
    before, calls = otter.signals, []
    for adapter in otter.adapters.values():
        adapter.stream.layers["1"].register_forward_pre_hook(lambda *_: calls.append(1))
    output = otter.base_model(tokens(2, 7))
    assert not calls
    assert not hasattr(output, "signals")
    assert otter.signals is before


def test_the_base_stays_in_evaluation_mode(otter) -> None:
    otter.train()
    assert otter.adapters.training
    assert not otter.base_model.training


def test_a_base_in_training_mode_is_put_into_evaluation_mode() -> None:
    assert not OtterModel(tiny_base().train(), tiny_config()).base_model.training


def hooks(base):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in base.modules())


@torch.no_grad()
def test_hooks_vanish_with_the_model() -> None:
    base = tiny_base()
    before = hooks(base)
    otter = tiny_otter(base)
    add_tiny_adapter(otter, "other", layers=(1,))
    otter(tokens(1, 5))
    otter.generate(tokens(1, 5), max_new_tokens=2)
    assert hooks(base) > before
    del otter
    gc.collect()
    assert hooks(base) == before


def test_hooks_are_not_added_twice() -> None:
    base = tiny_base()
    otter = tiny_otter(base)
    once = hooks(base)
    add_tiny_adapter(otter, "other")
    assert hooks(base) == once


@torch.no_grad()
def test_threads_do_not_mix(otter) -> None:
    expected = {name: otter(tokens(2, 7)).signals[name].prefix for name in ("reward", "other")}
    start, wrong = threading.Barrier(2), []

    def run(name):
        start.wait()
        with otter.use_adapters([name]), torch.no_grad():
            for _ in range(40):
                otter(tokens(2, 7))
                signals = otter.signals
                if set(signals) != {name} or not torch.allclose(signals[name].prefix, expected[name], atol=1e-5):
                    wrong.append((name, set(signals)))

    threads = [threading.Thread(target=run, args=(name,)) for name in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert set(otter.signals) == {"reward", "other"}


@torch.no_grad()
def test_a_base_with_hooks_can_be_copied(otter) -> None:
    twin = copy.deepcopy(otter.base_model.get_decoder())
    ids = tokens(1, 5)
    close(twin(ids).last_hidden_state, otter.base_model.get_decoder()(ids).last_hidden_state)


@torch.no_grad()
def test_generate_hands_this_model_to_a_custom_loop(otter) -> None:
    seen = []

    def loop(model, input_ids, *_, **__):
        seen.append(model)
        model(input_ids)
        return input_ids

    ids = tokens(2, 4)
    assert torch.equal(otter.generate(ids, custom_generate=loop, max_new_tokens=2), ids)
    assert seen == [otter]
    assert otter.signals["reward"].prefix.shape == (2, 4)


def test_what_the_base_has_can_be_asked_of_the_model(otter) -> None:
    assert otter.config is otter.base_model.config
    assert otter.device == torch.device("cpu")
    with pytest.raises(AttributeError):
        _ = otter.nothing
