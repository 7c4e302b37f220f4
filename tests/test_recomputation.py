"""Gradient checkpointing of the stream: the same gradients to the bit, and less that stays in memory for them."""

from typing import Any

import pytest
import torch
from architectures import tiny_model
from conftest import tiny_base, tiny_config
from torch import Tensor
from training_runs import preferences

from otterlm.model import OtterModel
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig
from otterlm.training.checkpoint import trainable
from otterlm.training.data.packing import collate
from otterlm.training.sources import LiveBase, RecordedBase

EXAMPLES = preferences(6)


def gradients(model: OtterModel, source: Any, autocast: bool = False) -> tuple[dict[str, Tensor], int]:
    """Returns the gradients of one batch, and how many numbers stay in memory for them."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    objective = RewardObjective(model.train(), source, RewardTrainingConfig())
    objective.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = objective(collate(EXAMPLES))["loss"]
        loss.backward()
    found = {name: parameter.grad for name, parameter in trainable(objective).items() if parameter.grad is not None}
    return found, sum(kept.values())


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("taps", ["inside", "edge"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "qwen3", "qwen3_moe", "gemma2"])
def test_gradients_are_the_same_to_the_bit(model_type: str, autocast: bool, taps: str) -> None:
    base = tiny_model(model_type)
    model = OtterModel(base, tiny_config(taps=taps))
    plain, all_kept = gradients(model, LiveBase(model), autocast)
    again, few = gradients(model, LiveBase(model, again=True), autocast)
    assert plain
    assert same(plain, again)
    assert few < all_kept / 2


def test_beside_a_base_of_half_the_precision() -> None:
    model = OtterModel(tiny_base(dtype=torch.bfloat16), tiny_config(), dtype=torch.float32)
    assert same(gradients(model, LiveBase(model))[0], gradients(model, LiveBase(model, again=True))[0])


@pytest.mark.parametrize("taps", ["inside", "edge"])
def test_of_a_recording(taps: str, tmp_path) -> None:
    model = OtterModel(tiny_base(), tiny_config(taps=taps))
    plain, all_kept = gradients(model, RecordedBase(model, EXAMPLES, tmp_path))
    again, few = gradients(model, RecordedBase(model, EXAMPLES, tmp_path, again=True))
    assert same(plain, again)
    assert few < all_kept / 2


def test_of_a_base_that_keeps_no_branches_apart() -> None:
    base = tiny_model("mamba")
    model = OtterModel(base, tiny_config())
    assert not model.family.branches
    assert same(gradients(model, LiveBase(model))[0], gradients(model, LiveBase(model, again=True))[0])


def test_hooks_do_not_stay() -> None:
    model = OtterModel(tiny_base(), tiny_config())
    block, calls = model.base_model.model.layers[0], []
    hooks = len(block._forward_pre_hooks)
    handle = block.register_forward_hook(lambda *_: calls.append(1))
    gradients(model, LiveBase(model, again=True))
    assert len(calls) == 2  # once forward, once again
    objective = RewardObjective(model.eval(), LiveBase(model, again=True), RewardTrainingConfig())
    with torch.no_grad():
        objective(collate(EXAMPLES))
    assert len(calls) == 3  # nothing is computed again without gradients
    handle.remove()
    assert len(block._forward_pre_hooks) == hooks
