"""An exported folder is the base and its adapters: one changed line, the same numbers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import add_tiny_adapter, refused, tiny_base, tokens
from families import family_base
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from otterlm.engines.exported import WEIGHTS, export, load_exported
from otterlm.model import OtterModel
from otterlm.signals.draft.config import DraftConfig


def saved(tmp_path: Path, base) -> tuple[OtterModel, dict[str, Path]]:
    """Makes a base in a folder, with two adapters in folders."""
    base.save_pretrained(tmp_path / "base")
    model = OtterModel(base)
    add_tiny_adapter(model, "reward", layers=(0, 2))
    add_tiny_adapter(model, "draft", seed=2, signal=DraftConfig(2, 8, 4, 20))
    for name in ("reward", "draft"):
        model.save_pretrained(tmp_path / name, name)
    return model.eval(), {"reward": tmp_path / "reward", "draft": tmp_path / "draft"}


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_one_changed_line(tmp_path, name) -> None:
    model, adapters = saved(tmp_path, family_base(name))
    export(str(tmp_path / "base"), adapters, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert isinstance(again, OtterModel)
    ids = tokens(2, 7)
    assert torch.equal(again(ids).logits, family_base(name)(ids).logits)
    for signal in ("reward", "draft"):
        assert torch.equal(again.signal(signal).state, model(ids).signals[signal].state)
    weights = tmp_path / "out" / "model.safetensors"
    assert weights.is_symlink()
    assert weights.samefile(tmp_path / "base" / "model.safetensors")
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    assert half.base_model.dtype == torch.bfloat16


@torch.no_grad()
def test_a_base_in_several_files(tmp_path) -> None:
    model, adapters = saved(tmp_path, tiny_base())
    for file in (tmp_path / "base").glob("*.safetensors"):
        file.unlink()
    tiny_base().save_pretrained(tmp_path / "base", max_shard_size="20KB")
    export(str(tmp_path / "base"), adapters, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert WEIGHTS in index["weight_map"].values()
    again = load_exported(tmp_path / "out")
    assert torch.equal(again(tokens(2, 7)).signals["reward"].prefix, model(tokens(2, 7)).signals["reward"].prefix)


def test_a_quantised_base_needs_no_package_of_its_format(tmp_path) -> None:
    """Its packed weights have other names and shapes, and are linked as they are."""
    _, adapters = saved(tmp_path, tiny_base())
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    for name in [name for name in weights if name.endswith("q_proj.weight")]:
        weights[name.replace("weight", "qweight")] = weights.pop(name).T[::8].int().contiguous()
    for name in [name for name in weights if name.endswith("k_proj.weight")]:
        weights[name] = weights[name].flatten()[:, None].to(torch.uint8)
    save_file(weights, file, {"format": "pt"})
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    quantised = {"quant_method": "gptq", "bits": 4, "group_size": 8}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
    export(str(tmp_path / "base"), adapters, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"] == quantised
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == weights.keys()
    weights["model.norm.weight"] += 1
    save_file(weights, file, {"format": "pt"})
    refused(lambda: export(str(tmp_path / "base"), adapters, tmp_path / "other"), "was trained on another base")


def test_it_can_be_written_again(tmp_path) -> None:
    _, adapters = saved(tmp_path, tiny_base())
    for _ in range(2):
        export(str(tmp_path / "base"), adapters, tmp_path / "out")
    assert set(load_exported(tmp_path / "out").active_adapters) == {"reward", "draft"}


@torch.no_grad()
def test_a_copied_folder_can_be_moved(tmp_path) -> None:
    """It replaces the links of an earlier export, and not what they point to."""
    model, adapters = saved(tmp_path, tiny_base())
    base = tmp_path / "base" / "model.safetensors"
    before = base.read_bytes()
    for copy in (False, True):
        export(str(tmp_path / "base"), adapters, tmp_path / "out", copy)
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_symlink()]
    assert base.read_bytes() == before
    shutil.rmtree(tmp_path / "base")
    (tmp_path / "out").rename(tmp_path / "moved")
    again = load_exported(tmp_path / "moved")
    assert torch.equal(again(tokens(2, 7)).logits, model(tokens(2, 7)).logits)


def test_what_cannot_be_exported_or_loaded_is_refused(tmp_path) -> None:
    _, adapters = saved(tmp_path, tiny_base())
    base, out = str(tmp_path / "base"), tmp_path / "out"
    refused(lambda: export(base, {}, out), "at least one")
    refused(lambda: export(base, adapters, base), "own folder")
    refused(lambda: export(base, adapters, adapters["reward"]), "holds an adapter")
    refused(lambda: export(str(tmp_path / "reward" / "x.gguf"), adapters, out), "x.gguf is not a folder of a model")
    refused(lambda: export("no/such", adapters, out), "no/such is neither a folder nor a model on the hub")
    tiny_base(seed=5).save_pretrained(tmp_path / "other")
    refused(lambda: export(str(tmp_path / "other"), adapters, out), "another base")
    (tmp_path / "empty").mkdir()
    refused(lambda: export(str(tmp_path / "empty"), adapters, out), "safetensors")
    assert not out.exists()
    export(base, adapters, out)
    tensors = load_file(out / WEIGHTS)
    tensors["otter.reward.head.prefix.weight"][0, 0] = torch.nan
    save_file(tensors, out / WEIGHTS)
    refused(lambda: load_exported(out), "otter.reward.head.prefix.weight", "finite")
    (out / WEIGHTS).unlink()
    refused(lambda: load_exported(out), WEIGHTS)


def test_command(answer, otter, refusal, tmp_path) -> None:
    _, adapters = saved(tmp_path, tiny_base())
    command = ("export", "--base", tmp_path / "base", "--out", tmp_path / "out", "--adapter", adapters["reward"])
    assert answer(*command)["adapters"] == ["reward"]
    assert answer(*command, "--adapter", f"second={adapters['reward']}")["adapters"] == ["reward", "second"]
    assert load_exported(tmp_path / "out").active_adapters == ["reward", "second"]
    assert "NAME=FOLDER" in refusal(*command, "--adapter", adapters["reward"])
    assert "--copy" in otter(*command)[1]
    assert "--copy" not in otter(*command, "--copy")[1]
    assert answer(*command, "--copy")["copied"]
