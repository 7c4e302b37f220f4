"""Every method of PEFT and Transformers is decided on: a wrapped model has it for the adapters, leaves it to the base,
or refuses it in one line."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import add_tiny_adapter, close, refused, tiny_base, tiny_otter, tokens
from huggingface_hub import HfApi, ModelCard, RepoUrl, constants
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Trainer, TrainingArguments

from otterlm.model import OtterModel
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.signals.contrast.head import ContrastSignal
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig
from otterlm.training.data.packing import Example, collate
from otterlm.training.recipes.common import on_device, use_device
from otterlm.training.sources import LiveBase

OURS = """
active_adapters add_adapter base_model delete_adapter device disable_adapters enable_adapters forward from_pretrained
generate get_adapter_state_dict get_memory_footprint load_adapter num_parameters push_to_hub resize_token_embeddings
save_pretrained set_adapter set_decoder set_input_embeddings set_output_embeddings tie_weights
activation_checkpointing_disable activation_checkpointing_enable disable_input_require_grads
enable_input_require_grads gradient_checkpointing_disable gradient_checkpointing_enable
"""
REFUSED = """
continuous_batching_context_manager dequantize enable_peft_hotswap generate_batch init_continuous_batching
init_weights initialize_weights post_init save_distributed_checkpoint
"""
OF_THE_BASE = """
add_model_tags adjust_generation_fn barrier_after_gathered_checkpoint_save base_model_prefix can_generate
can_record_outputs compute_transition_scores config_class destroy_cached_continuous_batching_manager dtype
dummy_inputs ep_plan fsdp_plan fsdp_size gather_sharded_state_dict_for_save generation_config_class get_compiled_call
get_correct_attn_implementation get_correct_experts_implementation get_decoder get_encoder
get_expanded_tied_weights_keys get_experts_implementation get_init_context get_input_embeddings get_output_embeddings
get_parameter_or_buffer get_position_embeddings heal_tokens init_parallel_plans input_modalities
is_activation_checkpointing is_backend_compatible is_custom_code is_distributed_loading_by_transformers
is_gradient_checkpointing is_remote_code load_custom_generate loss_function main_input_name
mark_tied_weights_as_initialized maybe_distribute_model model_tags named_non_persistent_buffers output_modalities
pp_plan prepare_distribute_model prepare_inputs_for_generation register_for_auto_class resize_position_embeddings
retrieve_modules_from_names set_attn_implementation set_encoder set_experts_implementation set_use_kernels
should_save_on_this_rank supports_context_parallel supports_gradient_checkpointing supports_pp_plan supports_tp_plan
tp_plan tp_size use_kernels warn_if_padding_and_no_attention_mask
"""


def _call(otter: OtterModel, name: str) -> None:
    getattr(otter, name)()


def test_every_public_method_of_a_model_is_decided_on() -> None:
    public = {name for name in dir(LlamaForCausalLM) if not name.startswith("_") and not hasattr(nn.Module, name)}
    ours, refused_ones, of_the_base = OURS.split(), REFUSED.split(), OF_THE_BASE.split()
    assert public - {*ours, *refused_ones, *of_the_base} == set()
    for name in of_the_base:
        assert not hasattr(OtterModel, name), name
    otter = tiny_otter(tiny_base())
    for name in ours:
        assert hasattr(OtterModel, name) or name == "base_model", name
    for name in (*refused_ones, "merge_and_unload", "merge_adapter", "unmerge_adapter", "add_weighted_adapter"):
        refused(partial(_call, otter, name), name)


@pytest.mark.parametrize("name", ["gradient_checkpointing_enable", "enable_input_require_grads", "tie_weights"])
@pytest.mark.parametrize("before", [True, False])
def test_preparing_for_gradients_leaves_the_base(name, before) -> None:
    base = tiny_base()
    if before:
        getattr(base, name)()
    otter = tiny_otter(base)
    if not before:
        getattr(otter, name)()
    output = otter.train()(tokens(2, 7))
    assert torch.equal(output.logits, tiny_base()(tokens(2, 7)).logits)
    assert not output.logits.requires_grad
    output.signals["reward"].prefix.sum().backward()
    assert otter.adapter().head.prefix.weight.grad is not None
    otter.requires_grad_(True)
    assert not any(parameter.requires_grad for parameter in base.parameters())


def test_counts_are_of_base_and_adapters() -> None:
    otter, base = tiny_otter(tiny_base()), tiny_base()
    inserted = sum(parameter.numel() for parameter in otter.adapters.parameters())
    assert otter.num_parameters() == base.num_parameters() + inserted
    assert otter.num_parameters(only_trainable=True) == inserted
    assert otter.get_memory_footprint() > base.get_memory_footprint() + 4 * inserted - 1


@torch.no_grad()
def test_set_and_delete_adapter() -> None:
    otter = tiny_otter(tiny_base())
    add_tiny_adapter(otter, "other", seed=2, layers=(1,))
    both = otter(tokens(2, 7)).signals
    otter.set_adapter("other")
    assert otter.active_adapters == otter.active_adapter == ["other"]
    assert torch.equal(otter(tokens(2, 7)).signals["other"].prefix, both["other"].prefix)
    assert set(otter.signals) == {"other"}
    trained = {name: [p.requires_grad for p in a.parameters()] for name, a in otter.adapters.items()}
    assert all(trained["other"])
    assert not any(trained["reward"])
    with otter.use_adapters(["reward"]):
        assert set(otter(tokens(2, 7)).signals) == {"reward"}
    otter.set_adapter(["reward", "other"], inference_mode=True)
    assert set(otter(tokens(2, 7)).signals) == {"reward", "other"}
    assert otter.num_parameters(only_trainable=True) == 0
    otter.set_requires_grad("reward")
    assert otter.num_parameters(only_trainable=True) > 0
    otter.disable_adapters()
    assert otter(tokens(2, 7)).signals == {}
    otter.enable_adapters()
    otter.set_adapter("other")
    otter.delete_adapter("other")
    assert otter.active_adapters == list(otter.peft_config) == ["reward"]
    assert torch.equal(otter(tokens(2, 7)).signals["reward"].prefix, both["reward"].prefix)
    for call in (otter.set_adapter, otter.delete_adapter, otter.get_adapter_state_dict, otter.set_requires_grad):
        refused(partial(call, "nobody"), "unknown signal 'nobody'", "reward")
    base = otter.unload()
    assert base is otter.get_base_model()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())
    assert otter(tokens(2, 7)).signals == {}


@torch.no_grad()
def test_a_part_of_the_base_is_replaced() -> None:
    otter = tiny_otter(tiny_base(), embedding="table")
    before = otter(tokens(2, 7)).signals["reward"].prefix
    embedding = nn.Embedding.from_pretrained(otter.get_input_embeddings().weight.clone(), freeze=False)
    otter.set_input_embeddings(embedding)
    assert torch.equal(otter(tokens(2, 7)).signals["reward"].prefix, before)
    assert not embedding.weight.requires_grad


def test_push_to_hub() -> None:
    calls: list[tuple[Any, ...]] = []

    def create(self, repo_id, **kwargs):
        calls.append((repo_id, self.token, kwargs))
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload(self, **kwargs):
        calls.append((sorted(os.listdir(kwargs.pop("folder_path"))), kwargs))
        return "commit"

    otter = tiny_otter(tiny_base())
    with mock.patch.object(HfApi, "create_repo", create), mock.patch.object(HfApi, "upload_folder", upload):
        assert otter.push_to_hub("me/otter", private=True, token="t", commit_message="first") == "commit"
        add_tiny_adapter(otter, "other")
        refused(lambda: otter.push_to_hub("me/otter"), "name an adapter")
    assert calls == [
        ("me/otter", "t", {"private": True, "exist_ok": True}),
        (
            ["README.md", "adapter_config.json", "adapter_model.safetensors"],
            {"repo_id": "me/otter", "commit_message": "first"},
        ),
    ]
    refused(lambda: otter.push_to_hub("me/otter", "reward"), "me/otter", "offline")


def test_a_card_says_what_the_hub_shows(tmp_path: Path) -> None:
    otter = tiny_otter(tiny_base())
    otter.base_model.config._name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    metadata = {"license": "apache-2.0", "datasets": ["Anthropic/hh-rlhf"], "metrics": ["accuracy"]}
    otter.save_pretrained(tmp_path, card="# A reward", card_metadata=metadata)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.text.strip() == "# A reward"
    assert card.data.to_dict() == metadata | {
        "library_name": "otter-lm",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "adapter",
        "tags": ["otter", "reward", "arxiv:2408.10764"],
    }
    weights = tmp_path / "adapter_model.safetensors"
    with safe_open(weights, framework="pt") as file:
        described = file.metadata()
    base = {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    assert described == base | {"format": "pt", "library_name": "otter-lm", "signal": "reward", "version": "1"}
    before = weights.read_bytes()
    otter.save_pretrained(tmp_path)
    assert weights.read_bytes() == before
    # A folder is nothing that the hub knows.
    otter.adapter().config = replace(otter.adapter().config, base_model_name_or_path=str(tmp_path))
    otter.save_pretrained(tmp_path)
    assert "base_model" not in ModelCard.load(tmp_path / "README.md").data.to_dict()


def test_an_adapter_of_the_hub_by_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's stand-in is its cache, as a download leaves it."""
    repository = tmp_path / "models--me--otter"
    (repository / "refs").mkdir(parents=True)
    for number, name in enumerate(("main", "v1")):
        commit = str(number) * 40
        (repository / "refs" / name).write_text(commit)
        tiny_otter(tiny_base(), seed=number).save_pretrained(repository / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def loaded(name: str, **settings: Any) -> Any:
        return OtterModel.from_pretrained(tiny_base(), name, **settings).adapter().head.state_dict()

    newest, first = (tiny_otter(tiny_base(), seed=number).adapter().head.state_dict() for number in (0, 1))
    for state, expected in (
        (loaded("me/otter"), newest),
        (loaded("me/otter", revision="v1"), first),
        (loaded("me/otter@v1"), first),
        (loaded("me/otter@main", revision="1" * 40), first),
    ):
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    refused(lambda: loaded("me/otter@refs/pr/1"), "me/otter@refs/pr/1", "nor an adapter on the hub")
    refused(lambda: loaded("me/otter", revision="v2"), "me/otter", "nor an adapter on the hub")
    refused(lambda: loaded(str(repository / "snapshots" / commit), revision="v1"), "has no revision v1")


def test_save_pretrained_of_another_process_writes_nothing(tmp_path: Path) -> None:
    tiny_otter(tiny_base()).save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.iterdir())


# -- Trainer ---------------------------------------------------------------------------------------------------------


class RewardTrainer(Trainer):
    """Pulls the last reward to the mean label."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        output = model(**inputs)
        loss = (output.signals["reward"].prefix[:, -1] - inputs["labels"].float().mean(dim=-1)).square().mean()
        return (loss, output) if return_outputs else loss


ROWS = [
    {"input_ids": tokens(8, seed=n).tolist(), "attention_mask": [1] * 8, "labels": tokens(8).tolist(), "other": n}
    for n in range(6)
]


def trainer(model, folder, **settings):
    defaults = {"max_steps": 2, "report_to": [], "use_cpu": True, "disable_tqdm": True, "save_steps": 1}
    arguments = TrainingArguments(str(folder), **(defaults | settings))
    return RewardTrainer(model=model.train(), args=arguments, train_dataset=ROWS, eval_dataset=ROWS)


@pytest.mark.parametrize("tied", [False, True])
def test_trainer_with_its_defaults(tmp_path: Path, tied) -> None:
    base = tiny_base(tie_word_embeddings=tied)
    otter, before = tiny_otter(base), [parameter.clone() for parameter in base.parameters()]
    made = trainer(otter, tmp_path, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True)
    made.train()
    assert made.evaluate()["eval_loss"] > 0
    assert made.predict(ROWS).predictions.shape == (6, 8, 97)
    assert all(torch.equal(left, right) for left, right in zip(base.parameters(), before, strict=True))
    made.save_model(str(tmp_path / "whole"))
    again = tiny_otter(tiny_base(seed=5, tie_word_embeddings=tied), seed=5)
    again.load_state_dict(load_file(tmp_path / "whole" / "model.safetensors"))
    ours, theirs = again(tokens(2, 7)), otter.eval()(tokens(2, 7))
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.signals["reward"].prefix, theirs.signals["reward"].prefix)
    resumed = trainer(tiny_otter(base), tmp_path, max_steps=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 3


@pytest.mark.parametrize(
    "settings",
    [{"bf16": True}, {"gradient_checkpointing": True}, {"torch_compile": True, "torch_compile_backend": "eager"}],
)
def test_trainer_in_other_ways(tmp_path: Path, settings) -> None:
    otter = tiny_otter(tiny_base())
    before = otter.adapter().head.prefix.weight.clone()
    trainer(otter, tmp_path, save_strategy="no", **settings).train()
    assert not torch.equal(otter.adapter().head.prefix.weight, before)


def test_trainer_on_a_quantised_base(tmp_path: Path) -> None:
    base = tiny_base()
    base.is_quantized = True
    trainer(tiny_otter(base), tmp_path, save_strategy="no").train()


# -- bases that live elsewhere -----------------------------------------------------------------------------------------


def on_disk(folder, device_map):
    tiny_base().save_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, device_map=device_map, offload_folder=folder / "off")
    assert any(parameter.is_meta for parameter in base.parameters())
    return base


MIXED = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"} | {
    f"model.layers.{n}": "disk" if n % 2 else "cpu" for n in range(4)
}


@pytest.mark.parametrize("device_map", [{"": "disk"}, MIXED], ids=["disk", "mixed"])
@pytest.mark.parametrize("embedding", ["table", "projection"])
def test_training_beside_an_offloaded_base(tmp_path: Path, device_map, embedding) -> None:
    batch = collate([Example(0, (5, 6, 7), ((8, 9), (10, 11, 12))), Example(1, (20,), ((21, 22, 23), (24, 25)))])
    losses = []
    for base in (on_device(on_disk(tmp_path, device_map)), tiny_base()):
        torch.manual_seed(0)
        otter = OtterModel(base)
        add_tiny_adapter(otter, "reward", initialization="copy", embedding=embedding)
        objective = nn.Sequential(RewardObjective(otter, LiveBase(otter), RewardTrainingConfig(candidates=0))).to("cpu")
        loss = objective(batch.to(otter.device))["loss"]
        loss.backward()
        gradients = [parameter.grad for parameter in otter.adapters.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        losses.append(loss.detach())
    close(losses[0], losses[1])


def test_an_offloaded_base_is_not_moved(tmp_path: Path) -> None:
    otter = tiny_otter(on_disk(tmp_path, {"": "disk"}))
    assert otter.device == torch.device("cpu")
    refused(lambda: otter.to("cpu"), "moved", "offloaded")
    refused(
        lambda: tiny_otter(tiny_base()).cuda(), "the base cannot be moved"
    ) if not torch.cuda.is_available() else None


def test_a_base_over_several_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base()
    last = base.get_decoder().layers[3]
    devices = {last: torch.device("cuda:1")}
    monkeypatch.setattr("otterlm.adapter.device_of", lambda module: devices.get(module, torch.device("cpu")))
    refused(lambda: tiny_otter(base), "cpu, cuda:1", "device_map")
    assert tiny_otter(base, layers=(0, 1)).adapter().config.layers == (0, 1)


def test_a_base_that_cannot_be_moved_stays_or_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def to(*_, **__):
        raise ValueError("`.to` is not supported for `4-bit` or `8-bit` bitsandbytes models.")

    base = tiny_base()
    monkeypatch.setattr(base, "to", to)
    assert on_device(base) is base
    monkeypatch.setattr(
        "otterlm.training.recipes.common.this_process", lambda: mock.Mock(device=torch.device("cuda:0"))
    )
    refused(lambda: on_device(base), "cuda:0", "8-bit", "device_map")


def test_a_gpu_without_a_number_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    state = mock.Mock(num_processes=1)
    monkeypatch.setattr("otterlm.training.recipes.common.PartialState", lambda cpu: state)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    with mock.patch.object(torch.cuda, "set_device") as chosen:
        use_device(torch.device("cuda"))
    chosen.assert_called_once_with(torch.device("cuda:2"))
    assert state.device == torch.device("cuda:2")


# -- torch.export ------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_gives_the_signals(tmp_path: Path, strict) -> None:
    otter = tiny_otter(tiny_base())
    add_tiny_adapter(otter, "contrast", seed=2, layers=(1,), signal=ContrastConfig(rank=4))
    inputs = {"input_ids": tokens(2, 9), "use_cache": False}
    program = torch.export.export(otter, (), inputs, strict=strict)
    torch.export.save(program, tmp_path / "program.pt2")
    output = torch.export.load(tmp_path / "program.pt2").module()(**inputs)
    expected = otter(**inputs)
    assert torch.equal(output.logits, expected.logits)
    close(output.signals["reward"]["prefix"], expected.signals["reward"].prefix)
    read = otter.read_signals({name: tensors["state"] for name, tensors in output.signals.items()})
    contrast = read["contrast"]
    assert isinstance(contrast, ContrastSignal)
    close(contrast.difference(), expected.signals["contrast"].difference(), 1e-4)
    with otter.disable_adapter():
        assert torch.export.export(otter, (), inputs, strict=strict).module()(**inputs).signals == {}
