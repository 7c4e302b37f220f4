"""Guards format 1: adapters that were written at its beginning load, and give the numbers they gave then.

`golden/` holds one adapter of each signal on `tiny_base()`, written by commit 3ce882e, and their signals over
`input_ids` as that commit computed them. Nothing rewrites these files: an adapter that cannot be read any more is a
break of the format.
"""

from pathlib import Path

import pytest
import torch
from conftest import close, tiny_base
from safetensors.torch import load_file
from torch import Tensor

from otterlm.model import OtterModel
from otterlm.signals.base import Signal
from otterlm.signals.contrast.head import ContrastSignal
from otterlm.signals.draft.head import DraftSignal
from otterlm.signals.reward.head import RewardSignal

GOLDEN = Path(__file__).parent / "golden"
SIGNALS = ("reward", "contrast", "draft")


def numbers(signal: Signal, input_ids: Tensor) -> dict[str, Tensor]:
    """Returns all numbers of a signal."""
    if isinstance(signal, RewardSignal):
        return {"prefix": signal.prefix, "calibrated": signal.calibrated, "vocabulary": signal.vocabulary()}
    if isinstance(signal, ContrastSignal):
        return {"expert": signal.expert(), "anti_expert": signal.anti_expert()}
    assert isinstance(signal, DraftSignal)
    first = signal.code(0, signal.state, input_ids, None)
    second = signal.code(1, signal.state, input_ids, first)
    return {"scores.0": signal.scores(0, first), "scores.1": signal.scores(1, second)}


def has_not_changed(otter: OtterModel, name: str) -> None:
    """Asserts that one adapter of a model gives the numbers of commit 3ce882e, and that the base's are the base's.

    The numbers are close, not equal: another machine's kernels add in another order.
    """
    expected = load_file(GOLDEN / "signals.safetensors")
    output = otter(expected["input_ids"])
    assert torch.equal(output.logits, tiny_base()(expected["input_ids"]).logits)
    signal = output.signals[name]
    results = {"state": signal.state} | numbers(signal, expected["input_ids"])
    assert {f"{name}.{key}" for key in results} == {key for key in expected if key.startswith(f"{name}.")}
    for key, value in results.items():
        close(value, expected[f"{name}.{key}"])


@torch.no_grad()
@pytest.mark.parametrize("name", SIGNALS)
def test_an_adapter_gives_the_numbers_of_then(name: str) -> None:
    otter = OtterModel.from_pretrained(tiny_base(), GOLDEN / name, adapter_name=name)
    has_not_changed(otter, name)


@torch.no_grad()
def test_all_adapters_beside_each_other() -> None:
    otter = OtterModel(tiny_base())
    for name in SIGNALS:
        otter.load_adapter(GOLDEN / name, name)
    for name in SIGNALS:
        has_not_changed(otter, name)


@torch.no_grad()
@pytest.mark.parametrize("name", SIGNALS)
def test_saved_again_it_is_the_same_adapter(name: str, tmp_path: Path) -> None:
    OtterModel.from_pretrained(tiny_base(), GOLDEN / name, adapter_name=name).save_pretrained(tmp_path)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (GOLDEN / name, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    has_not_changed(OtterModel.from_pretrained(tiny_base(), tmp_path, adapter_name=name), name)
