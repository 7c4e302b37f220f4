"""An adapter knows its base again: with rows for new tokens, with fewer padding rows, in bf16; no other base passes."""

import json

import pytest
import torch
from conftest import VOCABULARY, add_tiny_adapter, close, refused, tiny_base, tiny_otter, tokens

from otterlm.fingerprint import fingerprint, same_base
from otterlm.model import OtterModel
from otterlm.signals.draft.config import DraftConfig

RESIZES = [{"new_num_tokens": VOCABULARY + 1}, {"new_num_tokens": VOCABULARY, "pad_to_multiple_of": 64}]
FEWER = {"new_num_tokens": VOCABULARY - 7}


def resized(how, **kwargs):
    base = tiny_base(**kwargs)
    base.resize_token_embeddings(**how)
    return base.requires_grad_(False)


def former_fingerprint(base):
    """As adapters were saved by 0.1.0: at positions that depend on the number of rows."""
    values = []
    for weight in (base.get_input_embeddings().weight.flatten(), base.get_decoder().norm.weight):
        index = torch.arange(32) * max(1, weight.numel() // 32 - 1)
        values += weight[index % weight.numel()].float().tolist()
    return tuple(float(f"{value:.5g}") for value in values)


@pytest.fixture(params=["now", "0.1.0"])
def saved(request, tmp_path):
    """Makes a model, and the folder of its adapter with a fingerprint of either kind."""
    base = tiny_base()
    otter = tiny_otter(base)
    otter.save_pretrained(tmp_path)
    if request.param == "0.1.0":
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_fingerprint": former_fingerprint(base)}))
    return otter, tmp_path


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("how", [*RESIZES, FEWER])
def test_a_base_with_more_or_fewer_rows_is_the_base(how, tied, tmp_path):
    otter = tiny_otter(tiny_base(tie_word_embeddings=tied))
    otter.save_pretrained(tmp_path)
    expected = otter(tokens(2, 7) % 80).signals["reward"].prefix
    again = OtterModel.from_pretrained(resized(how, tie_word_embeddings=tied), tmp_path)
    assert torch.equal(again(tokens(2, 7) % 80).signals["reward"].prefix, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", [{"new_num_tokens": VOCABULARY}, *RESIZES, FEWER])
def test_both_kinds_of_fingerprints_pass_after_a_resize(saved, how, dtype):
    otter, folder = saved
    again = OtterModel.from_pretrained(resized(how).to(dtype), folder)
    assert again.adapter().config.hidden_size == otter.adapter().config.hidden_size


@pytest.mark.parametrize("how", [{"new_num_tokens": VOCABULARY}, *RESIZES, FEWER])
def test_another_base_is_refused_whatever_its_size(saved, how):
    refused(lambda: OtterModel.from_pretrained(resized(how, seed=9), saved[1]), "another base")


@torch.no_grad()
def test_another_base_with_the_same_norms_is_refused(saved):
    other = tiny_base(seed=9)
    other.get_decoder().norm.weight.copy_(tiny_base().get_decoder().norm.weight)
    refused(lambda: OtterModel.from_pretrained(other, saved[1]), "another base")


def test_rows_do_not_change_a_fingerprint():
    assert fingerprint(resized(RESIZES[0])) == fingerprint(tiny_base())
    assert len(fingerprint(tiny_base())) < 64 == len(former_fingerprint(tiny_base()))
    assert same_base(tiny_base(), fingerprint(resized(FEWER)))


@torch.no_grad()
def test_a_table_gets_rows_for_new_tokens(tmp_path):
    otter = tiny_otter(tiny_base(), embedding="table")
    otter.save_pretrained(tmp_path)
    before = otter(tokens(2, 7)).signals["reward"].prefix
    again = OtterModel.from_pretrained(resized(RESIZES[1]), tmp_path)
    otter.resize_token_embeddings(**RESIZES[1])
    for model in (otter, again):
        table = model.adapter().stream.table
        assert table is not None
        assert torch.equal(model(tokens(2, 7)).signals["reward"].prefix, before)
        assert torch.equal(table.weight[VOCABULARY:], model.get_input_embeddings().weight[VOCABULARY:, :8])
        assert model(torch.tensor([[5, VOCABULARY + 1]])).signals["reward"].prefix.isfinite().all()
        assert not any(parameter.requires_grad for parameter in model.base_model.parameters())
    fewer = OtterModel.from_pretrained(resized(FEWER), tmp_path)
    assert torch.equal(
        fewer(tokens(2, 7) % 80).signals["reward"].prefix, otter(tokens(2, 7) % 80).signals["reward"].prefix
    )


@torch.no_grad()
def test_a_resize_of_the_base_alone_leaves_the_signals():
    otter = tiny_otter(tiny_base())
    before = otter(tokens(2, 7)).signals["reward"].prefix
    otter.base_model.resize_token_embeddings(VOCABULARY + 3)
    close(otter(tokens(2, 7)).signals["reward"].prefix, before, 0)
    assert otter.signal("reward").vocabulary().shape == (2, VOCABULARY + 3)


@torch.no_grad()
def test_a_row_of_a_special_token_may_be_made_anew(tmp_path):
    tiny_otter(tiny_base()).save_pretrained(tmp_path)
    base = tiny_base()
    base.get_input_embeddings().weight[0].zero_()
    assert list(OtterModel.from_pretrained(base, tmp_path, "reward").adapters) == ["reward"]
    base.get_input_embeddings().weight[:30].zero_()
    refused(lambda: OtterModel.from_pretrained(base, tmp_path), f"{tmp_path} was trained on another base; its weights")


@torch.no_grad()
def test_adapters_follow_a_base_that_is_resized_behind_them():
    otter, other = (tiny_otter(tiny_base(), embedding="table") for _ in range(2))
    before = otter(tokens(2, 7)).signals["reward"].prefix
    torch.manual_seed(0)
    otter.base_model.resize_token_embeddings(VOCABULARY + 9)
    torch.manual_seed(0)
    other.resize_token_embeddings(VOCABULARY + 9)
    with torch.inference_mode():
        assert torch.equal(otter(tokens(2, 7)).signals["reward"].prefix, before)
    new = torch.tensor([[5, VOCABULARY + 8]])
    assert torch.equal(otter(new).signals["reward"].prefix, other(new).signals["reward"].prefix)
    assert torch.equal(otter.signal().vocabulary(), other.signal().vocabulary())
    assert not any(parameter.is_inference() for parameter in otter.adapter().parameters())


def test_a_draft_of_tokens_that_are_gone_is_refused():
    otter = tiny_otter(tiny_base())
    add_tiny_adapter(otter, "draft", signal=DraftConfig(heads=2, width=24, rank=8, vocabulary_size=60))
    refused(lambda: otter.resize_token_embeddings(50), "'draft'", "50")
    refused(lambda: otter(tokens(1, 3) % 50), "'draft'", "50")
    otter.delete_adapter("draft")
    assert otter(tokens(1, 3) % 50).signals["reward"].prefix.isfinite().all()
