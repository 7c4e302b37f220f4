"""A base that is not what its name says, or not what was wrapped any more, is tried, or refused in one line."""

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from conftest import WIDTH, add_tiny_adapter, close, refused, tiny_base, tiny_config, tiny_otter, tokens
from families import unlisted
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama import modeling_llama

from otterlm.families.facts import logit_transform
from otterlm.model import OtterModel
from otterlm.plan import plan

IDS = tokens(2, 9)


class HalfLayer(modeling_llama.LlamaDecoderLayer):
    """Adds half of what Llama's layer adds."""

    def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        return hidden_states + 0.5 * (super().forward(hidden_states, *args, **kwargs) - hidden_states)


class DoubleMLP(modeling_llama.LlamaMLP):
    def forward(self, x: Any) -> Any:
        return 2 * super().forward(x)


class HalfModel(LlamaModel):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(HalfLayer(config, index) for index in range(config.num_hidden_layers))


class HalfLlama(LlamaForCausalLM):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model = HalfModel(config)


class NamedLlama(LlamaForCausalLM):
    """Has one more method, and acts as Llama."""

    def about(self) -> str:
        return "a Llama"


class CappedLlama(LlamaForCausalLM):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.tanh()
        return output


def made(kind: type[LlamaForCausalLM]) -> LlamaForCausalLM:
    """Makes a model of a class with the weights of `tiny_base`."""
    plain = tiny_base()
    model = kind(plain.config)
    model.load_state_dict(plain.state_dict())
    return model.eval()


def slice_error(otter: OtterModel) -> float:
    state = otter(IDS).signals["reward"].state
    return float((state[..., WIDTH:] - state[..., :8]).abs().max() / state.abs().max())


@torch.no_grad()
def test_a_class_of_ones_own_is_tried_although_its_type_is_listed():
    otter = OtterModel(made(HalfLlama), tiny_config())
    assert otter.adapter().config.taps == "edge"
    assert torch.equal(otter(IDS).logits, made(HalfLlama)(IDS).logits)
    refused(lambda: OtterModel(made(HalfLlama), tiny_config(taps="inside")), "has its own HalfLayer", "act otherwise")
    named = OtterModel(made(NamedLlama), tiny_config(initialization="copy"))
    assert named.adapter().config.taps == "inside"
    assert slice_error(named) < 1e-5


def test_what_a_class_of_ones_own_does_to_its_logits():
    otter = OtterModel(made(CappedLlama))
    refused(lambda: logit_transform(otter.config, otter.family), "does to its logits is not known")


def test_a_part_that_was_put_into_a_base():
    base = tiny_base()
    part = DoubleMLP(base.config)
    part.load_state_dict(base.model.layers[1].mlp.state_dict())
    base.model.layers[1].mlp = part
    refused(lambda: OtterModel(base, tiny_config(taps="inside")), "DoubleMLP was put into it after it was made")
    assert OtterModel(base, tiny_config()).adapter().config.taps == "edge"


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"is_causal": False}),
        ("gpt2", {"is_causal": False, "n_inner": 48}),
        ("smollm3", {"is_causal": False}),
        ("gemma3_text", {"use_bidirectional_attention": True, "head_dim": 16}),
    ],
)
def test_a_decoder_that_reads_later_tokens(kind, settings):
    base = unlisted(kind, **settings)
    refused(lambda: OtterModel(base), f"this {kind} reads later tokens, as encoders do")
    refused(lambda: plan(base.config, tiny_config()), "reads later tokens, as encoders do")


def scaled(factor: float) -> LlamaForCausalLM:
    """Makes a model of a type of its own. Its classes are called as those of other factors are."""

    class Layer(modeling_llama.LlamaDecoderLayer):
        def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            return hidden_states + factor * (super().forward(hidden_states, *args, **kwargs) - hidden_states)

    class Own(LlamaConfig):
        model_type = "own_llama"

    class Model(LlamaModel):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_hidden_layers))

    class CausalLM(LlamaForCausalLM):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model = Model(config)

    plain = tiny_base()
    model = CausalLM(Own(**{name: value for name, value in plain.config.to_dict().items() if name != "model_type"}))
    model.load_state_dict(plain.state_dict())
    return model.eval()


@torch.no_grad()
def test_classes_of_one_name_are_recognised_apart():
    as_llama = OtterModel(scaled(1.0), tiny_config(initialization="copy"))
    assert as_llama.adapter().config.taps == "inside"
    assert slice_error(as_llama) < 1e-5
    assert OtterModel(scaled(0.5), tiny_config()).adapter().config.taps == "edge"


def other_decoder(base: Any) -> None:
    base.model = tiny_base(seed=5).model


def other_block(base: Any) -> None:
    base.model.layers[2] = tiny_base(seed=5).model.layers[2]


def other_part(base: Any) -> None:
    base.model.layers[2].mlp.down_proj = tiny_base(seed=5).model.layers[2].mlp.down_proj


@torch.no_grad()
@pytest.mark.parametrize("change", [other_decoder, other_block, other_part])
def test_a_base_that_is_changed_behind_the_model(change):
    """Its signals would be those of a pass before, or of fewer blocks."""
    otter, changed = tiny_otter(tiny_base(), initialization="copy"), tiny_base()
    otter(IDS)
    change(otter.base_model)
    change(changed)
    refused(lambda: otter(IDS), "changed after the base was wrapped: call watch()")
    otter.watch()
    output = otter(IDS)
    assert torch.equal(output.logits, changed(IDS).logits)
    assert output.signals["reward"].prefix.isfinite().all()


def test_a_base_that_is_merged_behind_the_model():
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    base = peft.get_peft_model(tiny_base(), settings)
    otter = tiny_otter(base)
    before = otter(IDS)
    base.merge_and_unload()
    refused(lambda: otter(IDS), "changed after the base was wrapped")
    otter.watch()
    close(otter(IDS).signals["reward"].prefix, before.signals["reward"].prefix, 1e-4)


@torch.no_grad()
def test_a_shallow_copy_has_adapters_of_its_own():
    otter = tiny_otter(tiny_base())
    before = otter(IDS).signals["reward"].prefix
    view = copy.copy(otter)
    add_tiny_adapter(view, "second", taps="edge")
    assert list(view(IDS).signals) == ["reward", "second"]
    assert list(otter(IDS).signals) == ["reward"]
    view.unload()
    assert torch.equal(otter(IDS).signals["reward"].prefix, before)


@torch.no_grad()
def test_a_model_that_was_compiled_in_place_is_pickled():
    otter = tiny_otter(tiny_base())
    before = otter(IDS).signals["reward"].prefix
    otter.compile(backend="eager")
    assert torch.equal(pickle.loads(pickle.dumps(otter))(IDS).signals["reward"].prefix, before)


def test_configurations_of_others_are_refused():
    otter = tiny_otter(tiny_base())
    wrong: Any
    for wrong in ({"r": 4}, "name"):
        refused(partial(otter.add_adapter, wrong, "second"), "takes an OtterConfig", type(wrong).__name__)


@pytest.mark.filterwarnings("ignore")
def test_a_trace_keeps_no_signals():
    otter = tiny_otter(tiny_base())
    otter.config.use_cache = False
    refused(lambda: torch.jit.trace(otter, IDS), "torch.jit.trace would lose the signals")


def test_the_loss_of_the_base_trains_nothing():
    otter = tiny_otter(tiny_base()).train()
    loss = otter(IDS, labels=IDS).loss
    assert torch.equal(loss, tiny_base()(IDS, labels=IDS).loss)
    refused(loss.backward, "the base's loss trains no adapter")
    assert not otter.eval()(IDS, labels=IDS).loss.requires_grad
