"""Guards adapter folders: round trips, refusals of whatever does not fit, and saves that fail without loss."""

import errno
import json

import pytest
import torch
from conftest import add_tiny_adapter, close, refused, tiny_base, tiny_otter, tokens
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from otterlm import files
from otterlm.config import OtterConfig
from otterlm.model import OtterModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Makes a folder that no test writes to."""
    folder = tmp_path_factory.mktemp("adapter")
    tiny_otter(tiny_base(), layers=(0, 2)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """Makes a copy of the folder to damage."""
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def load(folder, base=None, **kwargs):
    return OtterModel.from_pretrained(base or tiny_base(), folder, **kwargs)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_round_trip(tmp_path, model_type, dtype):
    base = tiny_base(model_type, dtype)
    otter = tiny_otter(base, embedding="table")
    otter.save_pretrained(tmp_path)
    again = load(tmp_path, base)
    for name, tensor in otter.adapter().state_dict().items():
        assert torch.equal(again.adapter().state_dict()[name], tensor)
    assert torch.equal(again(tokens(2, 7)).signals["reward"].prefix, otter(tokens(2, 7)).signals["reward"].prefix)
    assert sorted(contents(tmp_path)) == ["README.md", CONFIG, WEIGHTS]


def test_an_adapter_is_not_written_beside_a_model(tmp_path):
    """Transformers would look for PEFT's adapter there, and no longer load the model."""
    base = tiny_base()
    base.save_pretrained(tmp_path)
    refused(lambda: tiny_otter(base).save_pretrained(tmp_path), "holds a model")
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.vocab_size == base.config.vocab_size


def test_only_inserted_tensors_are_saved(saved):
    otter = load(saved)
    size = sum(tensor.numel() for tensor in load_file(saved / WEIGHTS).values())
    assert size == sum(parameter.numel() for parameter in otter.adapters.parameters())
    trainable, total = otter.get_nb_trainable_parameters()
    assert trainable == size
    assert total == size + sum(parameter.numel() for parameter in tiny_base().parameters())


def test_saved_in_another_precision(tmp_path):
    tiny_otter(tiny_base()).save_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(tmp_path / WEIGHTS).values()} == {torch.bfloat16}
    assert load(tmp_path).adapter().stream.dtype == torch.float32


def test_a_precision_that_could_not_be_loaded_is_not_saved(tmp_path):
    refused(
        lambda: tiny_otter(tiny_base()).save_pretrained(tmp_path, dtype=torch.float64),
        "float32, float16 or bfloat16, not torch.float64",
    )
    assert contents(tmp_path) == {}


def test_config_round_trip_is_sorted_json(saved):
    text = (saved / CONFIG).read_text()
    config = OtterConfig.from_json(text)
    assert config.to_json() == text
    assert config.layers == (0, 2)
    assert list(json.loads(text)) == sorted(json.loads(text))


@torch.no_grad()
def test_several_named_adapters(tmp_path):
    base = tiny_base()
    otter = tiny_otter(base)
    add_tiny_adapter(otter, "other", seed=2, layers=(1,))
    for name in ("reward", "other"):
        otter.save_pretrained(tmp_path / name, name)
    again = load(tmp_path / "other", base, adapter_name="b")
    assert again.load_adapter(tmp_path / "reward", "a") == "a"
    ours, theirs = again(tokens(2, 7)).signals, otter(tokens(2, 7)).signals
    assert torch.equal(ours["a"].prefix, theirs["reward"].prefix)
    assert torch.equal(ours["b"].prefix, theirs["other"].prefix)
    refused(lambda: again.load_adapter(tmp_path / "reward", "a"), "already an adapter named 'a'")
    refused(lambda: again.save_pretrained(tmp_path / "x"), "name an adapter; there are: b, a")
    refused(lambda: again.adapter("c"), "unknown signal 'c'")


@pytest.mark.parametrize("name", ["two words", "a.b", "keys", "forward"])
def test_unusable_adapter_names(saved, name):
    refused(lambda: load(saved, adapter_name=name), name)


def test_wrong_base(saved):
    refused(lambda: load(saved, tiny_base(seed=9)), "another base")


def test_another_architecture(saved):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "n_head": 4, "n_layer": 2, "vocab_size": 97}
    bloom = AutoModelForCausalLM.from_config(AutoConfig.for_model("bloom", **sizes))
    refused(lambda: load(saved, bloom), "another base")


@torch.no_grad()
def test_same_base_in_another_precision(saved):
    otter = load(saved, tiny_base(dtype=torch.bfloat16))
    assert otter.adapter().stream.dtype == torch.bfloat16
    assert load(saved, tiny_base(dtype=torch.bfloat16), dtype=torch.float32).adapter().stream.dtype == torch.float32


def damage_config(**changes):
    def damage(folder):
        values = json.loads((folder / CONFIG).read_text())
        values |= {key: value for key, value in changes.items() if value is not None}
        for key in (key for key, value in changes.items() if value is None):
            del values[key]
        (folder / CONFIG).write_text(json.dumps(values))

    return damage


def damage_weights(change):
    def damage(folder):
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return damage


def write(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def truncate(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


NORM = "stream.final_norm.weight"
DAMAGE = {
    "truncated weights": (truncate, [WEIGHTS]),
    "garbage weights": (write(WEIGHTS, b"\x93garbage" * 9), [WEIGHTS]),
    "empty weights": (write(WEIGHTS, b""), [WEIGHTS]),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), [WEIGHTS]),
    "pickle": (lambda folder: torch.save({"a": torch.ones(3)}, folder / WEIGHTS), [WEIGHTS]),
    "NaN": (damage_weights(lambda t: t[NORM].fill_(float("nan"))), [WEIGHTS, NORM]),
    "infinity": (damage_weights(lambda t: t[NORM][0].fill_(float("inf"))), [WEIGHTS, NORM]),
    "missing tensor": (damage_weights(lambda t: t.pop(NORM)), [WEIGHTS, NORM]),
    "extra tensor": (damage_weights(lambda t: t.update(extra=torch.ones(2))), [WEIGHTS, "extra"]),
    "wrong shape": (damage_weights(lambda t: t.update({NORM: torch.ones(9)})), [WEIGHTS, NORM, "9"]),
    "wrong dtype": (damage_weights(lambda t: t.update({NORM: t[NORM].int()})), [WEIGHTS, NORM, "I32"]),
    "no config": (lambda folder: (folder / CONFIG).unlink(), [CONFIG]),
    "not JSON": (write(CONFIG, b"{'peft_type': 'OTTER'}"), [CONFIG, "JSON"]),
    "not UTF-8": (write(CONFIG, b"\xff\xfe{}"), [CONFIG]),
    "deep JSON": (write(CONFIG, b"[" * 100_000), [CONFIG]),
    "huge config": (write(CONFIG, b" " * (2 << 20)), [CONFIG]),
    "a list": (write(CONFIG, b"[]"), [CONFIG]),
    "another PEFT method": (damage_config(peft_type="LORA"), [CONFIG, "peft_type"]),
    "unknown signal": (damage_config(signal={"type": "mood"}), [CONFIG, "mood"]),
    "no signal": (damage_config(signal=None), [CONFIG, "signal"]),
    "unknown signal field": (damage_config(signal={"type": "reward", "rank": 3}), [CONFIG, "rank"]),
    "unknown field": (damage_config(colour="red"), [CONFIG, "colour"]),
    "newer version": (damage_config(version=2), [CONFIG, "version 2"]),
    "no version": (damage_config(version=None), [CONFIG, "version"]),
    "text for a number": (damage_config(hidden_size="8"), [CONFIG, "hidden_size"]),
    "true for a number": (damage_config(num_attention_heads=True), [CONFIG, "num_attention_heads"]),
    "text for layers": (damage_config(layers="02"), [CONFIG, "layers"]),
    "layers beyond the base": (damage_config(layers=[0, 99]), ["99"]),
    "wider than the base": (damage_config(hidden_size=1 << 40), ["hidden_size"]),
    "more heads than memory": (damage_config(num_attention_heads=1 << 50), ["num_attention_heads"]),
    "more rank than memory": (
        damage_config(signal={"type": "reward", "vocabulary_rank": 1 << 50}),
        ["vocabulary_rank"],
    ),
    "text in the fingerprint": (damage_config(base_fingerprint=["a"] * 64), [CONFIG, "base_fingerprint"]),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_folders_are_refused(folder, kind):
    damage, named = DAMAGE[kind]
    damage(folder)
    refused(lambda: load(folder), *named)


def test_not_a_folder(tmp_path):
    refused(lambda: load(tmp_path / "nowhere"), "nowhere is not an adapter folder")
    refused(lambda: load("someone/nothing"), "someone/nothing")


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_failed_save_leaves_the_former_adapter(folder, monkeypatch):
    before = contents(folder)
    monkeypatch.setattr(files, "save_file", full_disk)
    refused(lambda: tiny_otter(tiny_base(), seed=5, hidden_size=4).save_pretrained(folder), WEIGHTS, "No space left")
    after = contents(folder)
    assert after[WEIGHTS] == before[WEIGHTS]
    assert sorted(after) == sorted(before)
    monkeypatch.undo()
    assert load(folder).adapter().config.hidden_size == 8


def test_failed_text_write_leaves_the_former_file(tmp_path, monkeypatch):
    target = tmp_path / "notes"
    files.write_text(target, "before")
    monkeypatch.setattr("os.fsync", full_disk)
    refused(lambda: files.write_text(target, "after"), "notes", "No space left")
    assert contents(tmp_path) == {"notes": b"before"}


def test_save_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(lambda: tiny_otter(tiny_base()).save_pretrained(tmp_path / "file"), "file could not be written")


def test_fingerprint_is_of_the_base(saved):
    config = OtterConfig.from_json((saved / CONFIG).read_text())
    assert config.base_fingerprint is not None
    assert len(set(config.base_fingerprint)) > 40


@torch.no_grad()
def test_copy_of_the_saved_signal_is_close_in_half_precision(saved):
    exact, half = load(saved), load(saved, tiny_base(dtype=torch.bfloat16))
    rewards = [otter(tokens(2, 7)).signals["reward"].prefix for otter in (exact, half)]
    close(rewards[1], rewards[0], 0.25)
