"""Architectures are recognised by what their blocks do, in every precision; all else ends in one true line."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from conftest import close, randomize, refused, tiny_base, tiny_config, tiny_otter, tokens
from families import unlisted
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from otterlm.engines.exported import export
from otterlm.model import OtterModel
from otterlm.plan import plan
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.signals.contrast.objective import ContrastObjective
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig
from otterlm.training.data.packing import Example, collate
from otterlm.training.sources import LiveBase, RecordedBase

SCALED = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.35, "logits_scaling": 2.0}
CLOVA = {"use_post_norm": False, "residual_multiplier": 1.0}
UNLISTED: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 16},
    "granite_swa": SCALED,
    "vaultgemma": {"head_dim": 8},
    "smollm3": {},
    "nanochat": {},
    "cohere2": {"head_dim": 8},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8},
    "nemotron": {},
}


def slice_error(base, ids):
    """Returns how far a copied stream is from the base's first channels."""
    state = OtterModel(base, tiny_config(initialization="copy"))(ids).signals["reward"].state.double()
    width = state.shape[-1] - 8
    return ((state[..., width:] - state[..., :8]).abs().max() / state.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", UNLISTED)
def test_recognised_in_every_precision(kind, dtype, tmp_path):
    if (kind, dtype) == ("gpt_oss", torch.float64):
        pytest.skip("PyTorch has no grouped product of float64")
    base, plain = (unlisted(kind, **UNLISTED[kind]).to(dtype) for _ in range(2))
    otter = tiny_otter(base, embedding="table")
    assert torch.equal(otter(tokens(2, 9)).logits, plain(tokens(2, 9)).logits)
    assert slice_error(plain, tokens(2, 9)) < (1e-4 if dtype.itemsize > 2 else 3e-2)
    otter.save_pretrained(tmp_path)
    again = OtterModel.from_pretrained(plain, tmp_path)(tokens(2, 9)).signals["reward"]
    close(again.prefix, otter(tokens(2, 9)).signals["reward"].prefix)


def test_a_model_of_a_recognised_type_is_tried_by_itself():
    plain, odd = CLOVA | {"logits_scaling": 1.0}, CLOVA | {"logits_scaling": 2.0}
    assert slice_error(unlisted("hyperclovax", **plain), tokens(2, 9)) < 1e-4
    inside = tiny_config(taps="inside")
    # It multiplies by what Granite divides by.
    refused(lambda: OtterModel(unlisted("hyperclovax", **odd), inside), "hyperclovax", "logits are scaled otherwise")
    refused(lambda: OtterModel(unlisted("hyperclovax", **plain | {"use_post_norm": True}), inside), "act otherwise")
    assert slice_error(unlisted("hyperclovax", **plain, attention_bias=True), tokens(2, 9)) < 1e-4


def test_a_trial_leaves_the_random_state_and_the_base():
    base = unlisted("seed_oss")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    OtterModel(base)
    assert torch.equal(torch.rand(2), expected)
    assert base.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", ["gemma", "smollm3", "nanochat", "diffllama"])
def test_plan_accepts_what_the_model_accepts(kind):
    base = unlisted(kind, **UNLISTED.get(kind, {}))
    result = plan(base.config, tiny_config())
    otter = OtterModel(base, tiny_config())
    assert result.inserted_parameters == sum(parameter.numel() for parameter in otter.adapters.parameters())


@pytest.mark.parametrize("size", [8, 4096])
def test_plan_recognises_large_configurations(size):
    """Nothing of the size of the model is made."""
    wide = {"hidden_size": size * 8, "num_hidden_layers": 80, "vocab_size": 200_000, "num_attention_heads": 32}
    config = AutoConfig.for_model("seed_oss", **wide, intermediate_size=4 * size, num_key_value_heads=8, head_dim=128)
    assert plan(config, tiny_config(num_attention_heads=2)).base_parameters > 10_000_000
    other = AutoConfig.for_model("hyperclovax", **wide, logits_scaling=2.0, num_key_value_heads=8, use_post_norm=False)
    refused(lambda: plan(other, tiny_config(taps="inside")), "hyperclovax", "its logits are scaled otherwise")
    found = plan(other, tiny_config())
    assert (found.taps, found.base_kv_bytes_per_token) == ("edge", None)
    assert "its logits are scaled otherwise" in str(found.edge_because)


def test_plan_says_what_is_no_language_model():
    refused(lambda: plan(T5Config(), tiny_config()), "can be made of this 't5'")
    refused(lambda: plan(AutoConfig.for_model("clip"), tiny_config()), "can be made of this 'clip'")


@torch.no_grad()
def test_an_export_of_a_recognised_base_loads_in_a_fresh_process(tmp_path):
    base = unlisted("gemma", head_dim=16)
    base.save_pretrained(tmp_path / "base")
    otter = tiny_otter(base)
    otter.save_pretrained(tmp_path / "adapter")
    export(str(tmp_path / "base"), {"reward": tmp_path / "adapter"}, tmp_path / "out")
    code = (
        "import sys, torch, otterlm; from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "torch.save(model(torch.arange(3, 9)[None]).signals['reward'].prefix.detach(), sys.argv[2])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "out", tmp_path / "rewards"], capture_output=True)
    assert done.returncode == 0, done.stderr
    expected = otter(torch.arange(3, 9)[None]).signals["reward"].prefix
    # Two processes may use different numbers of threads, and then add in another order.
    close(torch.load(tmp_path / "rewards"), expected.detach())


@pytest.mark.parametrize("kind", ["granite_swa", "vaultgemma", "cohere2", "nanochat"])
def test_a_contrast_knows_the_scaled_logits_of_recognised_bases(kind):
    base, text = unlisted(kind, **UNLISTED[kind]), tokens(1, 6)
    otter = OtterModel(base, tiny_config(signal=ContrastConfig(rank=4)))
    batch = collate([Example(0, (), (tuple(text[0].tolist()),), label=1)])
    loss = ContrastObjective(otter, LiveBase(otter)).eval()(batch)["loss"].detach()
    close(loss, base(text, labels=text).loss, 1e-4)


@pytest.mark.parametrize(
    "make", [lambda: unlisted("nanochat"), lambda: unlisted("gemma", head_dim=16), lambda: gemma3()]
)
def test_recorded_training_is_live_training_of_recognised_bases(make, tmp_path):
    otter = tiny_otter(make(), layers=(0, 1))
    examples = [Example(0, (5, 6, 7), ((8, 9), (10, 11, 12))), Example(1, (20,), ((21, 22, 23), (24, 25)))]
    losses = []
    for source in (LiveBase(otter), RecordedBase(otter, examples, tmp_path)):
        otter.zero_grad()
        metrics = RewardObjective(otter, source, RewardTrainingConfig(candidates=0))(collate(examples))
        metrics["loss"].backward()
        losses.append(metrics["preference"].detach())
    close(losses[1], losses[0], 5e-2)


TEXT = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def gemma3():
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=TEXT | {"head_dim": 16},
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=96,
    )
    base = Gemma3ForConditionalGeneration(config)
    randomize(base, 0)
    return base.requires_grad_(False).eval()


def qwen2_vl():
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32}
    text = TEXT | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()


@torch.no_grad()
@pytest.mark.parametrize("make", [gemma3, qwen2_vl])
def test_a_model_that_also_sees(make, tmp_path):
    otter, plain, ids = tiny_otter(make()), make().requires_grad_(False), tokens(2, 9)
    assert torch.equal(otter(input_ids=ids).logits, plain(input_ids=ids).logits)
    settings = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(otter.generate(ids, **settings), plain.generate(ids, **settings))
    assert slice_error(plain, ids) < 1e-4
    otter.save_pretrained(tmp_path)
    again = OtterModel.from_pretrained(make(), tmp_path)
    assert torch.equal(again(ids).signals["reward"].prefix, otter(ids).signals["reward"].prefix)


@torch.no_grad()
@pytest.mark.parametrize("taps", ["inside", "edge"])
def test_an_image_changes_the_rewards_and_no_logit(taps):
    otter, plain, ids = tiny_otter(gemma3(), taps=taps), gemma3(), tokens(1, 9)
    ids[0, 1:5] = 96
    inputs = {"input_ids": ids, "token_type_ids": (ids == 96).long()}
    rewards = []
    for seed in (0, 1):
        inputs["pixel_values"] = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(seed))
        output = otter(**inputs)
        assert torch.equal(output.logits, plain(**inputs).logits)
        rewards.append(output.signals["reward"].prefix)
    assert not torch.equal(*rewards)


def encoder():
    return BertForMaskedLM(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))


def encoder_decoder():
    return T5ForConditionalGeneration(T5Config(d_model=32, num_layers=1, num_heads=2, d_ff=32, d_kv=8, vocab_size=97))


def compiled_in_place():
    base = tiny_base()
    base.compile(backend="eager")
    return base


def with_virtual_tokens():
    from peft import PromptTuningConfig, get_peft_model

    return get_peft_model(tiny_base(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))


NOT_BASES = {
    "one with virtual tokens": (with_virtual_tokens, ["PeftModel", "virtual tokens", "PROMPT_TUNING"]),
    "a name": (lambda: "gpt2", ["str", "from_pretrained"]),
    "nothing": (lambda: None, ["NoneType", "from_pretrained"]),
    "a configuration": (lambda: tiny_base().config, ["LlamaConfig", "from_pretrained"]),
    "a class": (lambda: LlamaForCausalLM, ["class LlamaForCausalLM"]),
    "a module": (lambda: torch.nn.Linear(2, 2), ["Linear", "not a language model"]),
    "a decoder": (lambda: AutoModel.from_config(tiny_base().config), ["LlamaModel", "not a causal"]),
    "a classifier": (lambda: LlamaForSequenceClassification(tiny_base().config), ["Classification", "not a causal"]),
    "an encoder": (encoder, ["BertForMaskedLM", "not a causal"]),
    "an encoder-decoder": (encoder_decoder, ["T5ForConditionalGeneration", "encoder-decoder"]),
    "a compiled one": (lambda: torch.compile(tiny_base()), ["compile", "OtterModel"]),
    "one in DataParallel": (lambda: torch.nn.DataParallel(tiny_base()), ["DataParallel", ".module"]),
    "an OtterModel": (lambda: tiny_otter(tiny_base()), ["add_adapter"]),
}


@pytest.mark.parametrize("name", NOT_BASES)
def test_what_is_no_base_is_named(name):
    make, named = NOT_BASES[name]
    refused(lambda: OtterModel(make()), *named)


def test_a_pipeline_is_no_base():
    class Pipeline:
        model = tiny_base()

    refused(lambda: OtterModel(Pipeline()), "Pipeline", ".model")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"word_embed_proj_dim": 16}, "word_embed_proj_dim: 16"),
        ({"_remove_final_layer_norm": True}, "final_layer_norm"),
    ],
)
def test_a_model_of_a_listed_type_that_lacks_a_part(overrides, named):
    base = unlisted("opt", **({"ffn_dim": 48, "word_embed_proj_dim": 32} | overrides))
    refused(lambda: OtterModel(base), "opt" if "remove" in str(overrides) else "OPT", named)


@torch.no_grad()
def test_a_base_that_was_compiled_in_place():
    otter = tiny_otter(compiled_in_place())
    output = otter(tokens(2, 7))
    assert torch.equal(output.logits, tiny_base()(tokens(2, 7)).logits)
    close(output.signals["reward"].prefix, tiny_otter(tiny_base())(tokens(2, 7)).signals["reward"].prefix)


@pytest.mark.parametrize(
    ("kind", "overrides", "closest"),
    [
        ("bloom", {"n_head": 4, "n_layer": 2}, "falcon"),
        ("gptj", {"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 4}, "gpt2"),
        ("biogpt", {}, "opt"),
    ],
)
def test_the_closest_family_is_the_one_that_shares_most(kind, overrides, closest):
    refused(lambda: OtterModel(unlisted(kind, **overrides), tiny_config(taps="inside")), f"the closest, {closest}, has")
