"""One head may draft all tokens, and drafts may learn the base's distribution; what is generated stays the base's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import close, randomize, refused, tiny_base, tiny_config, tokens
from drafts import TREES, continued
from families import family_base

from otterlm.adapter_files import CONFIG, read_config
from otterlm.decoding import SpeculativeDecoding
from otterlm.model import OtterModel
from otterlm.signals.draft.config import DraftConfig
from otterlm.signals.draft.objective import DISCOUNT, DraftObjective, DraftTrainingConfig, frequent_tokens
from otterlm.training.data.packing import Example, collate
from otterlm.training.sources import LiveBase
from otterlm.training.trainer import TrainingConfig, train

DRAFT = DraftConfig(heads=3, width=24, rank=8, vocabulary_size=60)
ADAPTER = Path(__file__).parent.parent / "adapters" / "smollm2-135m-draft"


def drafting(base: Any = None, **signal: Any) -> OtterModel:
    torch.manual_seed(0)
    otter = OtterModel(base or tiny_base(), tiny_config(signal=replace(DRAFT, **signal)))
    randomize(otter.adapter().head, 3)
    return otter


@pytest.mark.parametrize("distribution", [0.0, 0.5])
def test_a_shared_head_learns_and_drafts_the_bases_tokens(tmp_path: Path, distribution) -> None:
    otter = drafting(shared=True).train()
    examples = continued(otter.base_model)
    with torch.no_grad():
        otter.adapter().head.vocabulary.copy_(frequent_tokens(examples, 60, 97))
    objective = DraftObjective(otter, LiveBase(otter), DraftTrainingConfig(distribution))
    how = TrainingConfig(epochs=40, batch_size=8, learning_rate=1e-2, evaluations_per_epoch=1, patience=40)
    metrics = train(objective, examples, examples, how, tmp_path / "run")
    assert metrics["accuracy_0_0"] > 0.4
    assert metrics["accuracy_2_0"] > 0.4
    ids = tokens(24, 5, seed=9)[:2]
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    loop = SpeculativeDecoding(tree=TREES["bush"])
    output = otter.eval().generate(ids, custom_generate=loop, return_dict_in_generate=True, **settings)
    assert torch.equal(output.sequences, otter.base_model.generate(ids, **settings))
    assert output.acceptance_length > 1.1
    otter.save_pretrained(tmp_path / "saved")
    again = OtterModel.from_pretrained(tiny_base(), tmp_path / "saved")
    assert torch.equal(again.generate(ids, custom_generate=loop, **settings), output.sequences)


def test_a_shared_head_has_one_set_of_weights_and_needs_the_tokens_before() -> None:
    one, several = drafting(shared=True).adapter().head, drafting().adapter().head
    assert len(one.inputs) == len(one.outputs) == 1
    assert len(several.inputs) == 3
    refused(lambda: DraftConfig(shared=True, sequential=False), "shared head")
    refused(lambda: DraftConfig(shared=1), "shared must be true or false")  # type: ignore[arg-type]


def test_former_adapters_have_a_head_for_each_token(tmp_path: Path) -> None:
    config = json.loads((ADAPTER / CONFIG).read_text())
    del config["signal"]["shared"]  # as before there was the setting
    (tmp_path / CONFIG).write_text(json.dumps(config))
    signal = read_config(tmp_path).signal
    assert isinstance(signal, DraftConfig)
    assert not signal.shared


@pytest.mark.parametrize("weight", [0.5, 1.0])
@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
def test_the_divergence_is_from_the_bases_distribution_on_the_draft_vocabulary(family, weight) -> None:
    otter = drafting(family_base(family, attention="eager")).train()
    text = (5, 6, 7, 8, 9, 10, 11)
    batch = collate([Example(0, text[:3], (text[3:],)), Example(1, (4,), ((3, 12, 9),))])
    with torch.no_grad():
        plain = DraftObjective(otter, LiveBase(otter))(batch)["loss"]
        losses = [DraftObjective(otter, LiveBase(otter), DraftTrainingConfig(weight))(batch)["loss"]]
        totals: list[list[torch.Tensor]] = [[], [], []]
        for prompt, whole in ((3, text), (1, (4, 3, 12, 9))):
            output = otter(torch.tensor([whole]))
            chances = output.logits[0, :, otter.adapter().head.vocabulary].float().log_softmax(dim=-1)
            signal = output.signals["draft"]
            for start in range(prompt - 1, len(whole)):
                code = None
                for head in range(3):
                    guessed = start + 2 + head
                    if guessed < len(whole):
                        code = signal.code(head, signal.state[0, start], torch.tensor(whole[guessed - 1]), code)
                        scores = signal.scores(head, code).log_softmax(dim=-1)
                        totals[head].append(F.kl_div(scores, chances[guessed - 1], log_target=True, reduction="sum"))
    shares = torch.tensor([DISCOUNT**head for head in range(3)])
    divergence = (shares * torch.stack([torch.stack(total).mean() for total in totals])).sum() / shares.sum()
    close(losses[0], (1 - weight) * plain + weight * divergence, 1e-4)


def test_the_weight_is_checked_and_is_part_of_a_run() -> None:
    otter = drafting()
    refused(lambda: DraftTrainingConfig(1.5), "distribution")
    assert DraftObjective(otter, LiveBase(otter)).identity != (
        DraftObjective(otter, LiveBase(otter), DraftTrainingConfig(0.5)).identity
    )
