"""Signals are the same whatever context a model was made or first used in, and what is set on it is heard."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest
import torch
from conftest import batch, tiny_base, tiny_config, tiny_otter, tokens
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig

from otterlm.decoding import RewardGuidance, RewardStop
from otterlm.model import OtterModel

Context = Callable[[], AbstractContextManager[object]]
CONTEXTS: dict[str, Context] = {
    "inference": torch.inference_mode,
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
}


def vocabulary(otter: OtterModel) -> Tensor:
    return otter(tokens(1, 5)).signals["reward"].vocabulary()


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_a_first_use_in_a_context_leaves_no_trace(context: Context) -> None:
    otter, other = tiny_otter(tiny_base()), tiny_otter(tiny_base())
    with context():
        vocabulary(otter)
    assert torch.equal(vocabulary(otter), vocabulary(other))
    vocabulary(otter.train()).sum().backward()
    assert otter.adapter().stream.final_norm.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_defaults_of_the_process_do_not_matter(dtype: torch.dtype) -> None:
    base, config = tiny_base(), tiny_config(initialization="copy")
    expected = OtterModel(tiny_base(), config).eval()(tokens(1, 5)).signals["reward"].state
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            otter = OtterModel(base, config).eval()
        state = otter(tokens(1, 5)).signals["reward"].state
        assert torch.equal(otter.to(torch.float32)(tokens(1, 5)).signals["reward"].state, expected)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(state, expected)


def test_a_model_made_in_inference_mode_sees_its_weights_change() -> None:
    with torch.inference_mode():
        otter, other = tiny_otter(tiny_base()), tiny_otter(tiny_base())
        before = vocabulary(otter)
        for model in (otter, other):
            model.base_model.lm_head.weight.neg_()
        assert torch.equal(vocabulary(otter), vocabulary(other))
        assert not torch.equal(vocabulary(otter), before)


def test_memory_made_by_to_empty_is_filled_by_load_state_dict() -> None:
    otter = tiny_otter(tiny_base())
    with torch.device("meta"):
        empty = OtterModel(AutoModelForCausalLM.from_config(otter.config), otter.adapter().config, "reward")
    empty.to_empty(device="cpu").load_state_dict(otter.state_dict())
    rotary = otter.get_decoder().rotary_emb
    empty.get_decoder().rotary_emb.inv_freq.copy_(rotary.inv_freq)  # the base's own buffer, in no state dict
    assert torch.equal(
        empty.eval()(tokens(1, 5)).signals["reward"].prefix, otter(tokens(1, 5)).signals["reward"].prefix
    )


def test_settings_are_set_on_the_base() -> None:
    otter = tiny_otter(tiny_base())
    otter.generation_config = GenerationConfig(max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert otter.generate(**batch()).shape[1] == batch()["input_ids"].shape[1] + 2
    assert otter.base_model.generation_config is otter.generation_config


def test_a_module_set_on_the_model_is_frozen_and_read() -> None:
    otter = tiny_otter(tiny_base())
    head = nn.Linear(otter.config.hidden_size, otter.config.vocab_size, bias=False)
    otter.lm_head = head
    assert otter.base_model.lm_head is head
    assert not head.weight.requires_grad
    other = tiny_otter(tiny_base())
    other.base_model.lm_head.weight.data = head.weight.data.clone()
    assert torch.equal(vocabulary(otter), vocabulary(other))


def test_an_attribute_of_nobody_stays_on_the_model() -> None:
    otter = tiny_otter(tiny_base())
    otter.note = "mine"
    assert otter.note == "mine"
    assert not hasattr(otter.base_model, "note")


def test_one_adapter_is_used_by_its_name() -> None:
    otter = tiny_otter(tiny_base())
    otter.add_adapter(otter.adapter().config, "other")
    with otter.use_adapters("other"):
        assert list(otter(tokens(1, 5)).signals) == ["other"]


def test_a_compiled_or_parallel_model_may_be_named_by_an_intervention() -> None:
    otter = tiny_otter(tiny_base())
    compiled: Any = torch.compile(otter, backend="eager")
    parallel: Any = nn.DataParallel(otter)
    settings = batch() | {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    guided, stopped = (
        {"logits_processor": [RewardGuidance(otter, 2.0)]},
        {"stopping_criteria": [RewardStop(otter, -0.1)]},
    )
    for model in (compiled, parallel):
        again = otter.generate(**settings, logits_processor=[RewardGuidance(model, 2.0)])
        assert torch.equal(again, otter.generate(**settings, **guided))
        again = otter.generate(**settings, stopping_criteria=[RewardStop(model, -0.1)])
        assert torch.equal(again, otter.generate(**settings, **stopped))
    assert torch.equal(
        compiled.generate(**settings, logits_processor=[RewardGuidance(compiled, 2.0)]),
        otter.generate(**settings, **guided),
    )
