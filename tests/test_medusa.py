"""Medusa, the rival: starts as the base's own unembedding, drafts without changing what is said."""

from pathlib import Path

import torch
from conftest import close, tiny_base, tokens
from drafts import TREES, continued

from otterlm.decoding.draft_tree import DraftTree
from otterlm.model import OtterModel
from otterlm.peers.medusa import MedusaDecoding, MedusaHeads, MedusaObjective
from otterlm.training.sources import LiveBase, RecordedBase
from otterlm.training.trainer import TrainingConfig, train


@torch.no_grad()
def test_heads_start_as_the_base() -> None:
    base, ids = tiny_base(), tokens(2, 6)
    state = base.get_decoder()(ids).last_hidden_state
    drafter = MedusaHeads(base, 2)(state)
    close(drafter.scores(1, drafter.code(1, state, ids, None)), base(ids).logits)
    close(base(ids, output_hidden_states=True).hidden_states[-1], state)


def test_drafts_are_learned_and_verified(tmp_path: Path) -> None:
    model = OtterModel(tiny_base())
    examples, heads = continued(model.base_model), MedusaHeads(model.base_model, 3)
    source = RecordedBase(model, examples, tmp_path / "recording")
    objective = MedusaObjective(model, source, heads)
    how = TrainingConfig(epochs=30, batch_size=8, learning_rate=1e-2, evaluations_per_epoch=1, patience=30)
    metrics = train(objective, examples, examples, how, tmp_path)
    assert metrics["accuracy_0_0"] > 0.5
    frozen = tiny_base().state_dict()
    assert all(torch.equal(value, frozen[name]) for name, value in model.base_model.state_dict().items())
    ids = torch.cat((tokens(2, 5), tokens(1, 5, seed=9)))
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.base_model.generate(ids, **settings)
    for tree in (TREES["bush"], DraftTree.chain(3)):
        loop = MedusaDecoding(heads, tree)
        output = model.generate(ids, **settings, custom_generate=loop, return_dict_in_generate=True)
        assert torch.equal(output.sequences, expected)
        assert output.acceptance_length > 1.05


def test_a_recording_without_adapters_is_of_the_last_state(tmp_path: Path) -> None:
    model = OtterModel(tiny_base())
    examples, heads = continued(model.base_model, 6), MedusaHeads(model.base_model, 2)
    from otterlm.training.data.packing import collate

    live, recorded = LiveBase(model), RecordedBase(model, examples, tmp_path)
    losses = [MedusaObjective(model, source, heads)(collate(examples))["loss"] for source in (live, recorded)]
    close(losses[1].detach(), losses[0].detach(), 2e-2)
