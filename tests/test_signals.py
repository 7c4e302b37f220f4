"""The registry of signals, and what a signal says it can do."""

import dataclasses
from importlib.metadata import EntryPoint, EntryPoints
from typing import ClassVar

import pytest
from conftest import refused, tiny_base, tiny_otter

import otterlm.config
from otterlm import signals
from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.signals import register_signal, signal_names, signal_type
from otterlm.signals.base import NOTHING, Capability, SignalConfig, SignalType, describe
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.signals.draft.config import DraftConfig
from otterlm.signals.guard.config import GuardConfig
from otterlm.signals.reward.config import RewardConfig


@dataclasses.dataclass(frozen=True, slots=True)
class Surprise(SignalConfig):
    type: ClassVar[str] = "surprise"
    steps: int = 1

    @property
    def capabilities(self) -> Capability:
        return Capability.BESIDE | Capability.PREFIX


SURPRISE = SignalType(Surprise, head="otterlm.signals.reward.head:RewardHead")


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    monkeypatch.setattr(signals, "_registered", dict(signals._registered))


def test_what_each_signal_can_do() -> None:
    beside = Capability.BESIDE
    assert RewardConfig().capabilities == beside | Capability.PREFIX | Capability.ADDS
    assert RewardConfig(vocabulary_rank=0).capabilities == beside | Capability.PREFIX
    assert ContrastConfig().capabilities == beside | Capability.REPLACES
    assert DraftConfig().capabilities == Capability.DRAFTS
    watches = beside | Capability.PREFIX | Capability.CLASSES
    assert GuardConfig().capabilities == watches | Capability.ADDS
    assert GuardConfig(vocabulary_rank=0).capabilities == watches
    assert describe(Capability.DRAFTS) == "drafts tokens"
    assert describe(NOTHING) == "predicts anything"


def test_a_registered_signal_is_read_and_written() -> None:
    register_signal(SURPRISE)
    register_signal(SURPRISE)  # again is no clash
    config = OtterConfig(signal=Surprise(3))
    assert OtterConfig.from_json(config.to_json()) == config
    assert signal_type("surprise") is SURPRISE
    assert signal_names() == ["reward", "contrast", "draft", "guard", "surprise"]


def test_configurations_are_also_where_scripts_of_0_1_import_them_from() -> None:
    for kind in (ContrastConfig, DraftConfig, RewardConfig):
        assert getattr(otterlm.config, kind.__name__) is getattr(otterlm, kind.__name__) is kind


def test_names_do_not_clash() -> None:
    refused(lambda: register_signal(SignalType(RewardConfig, head="elsewhere:Head")), "already a signal named 'reward'")


def test_an_unknown_signal_lists_the_known() -> None:
    refused(lambda: signal_type("mood"), "unknown signal 'mood'", "reward, contrast, draft, guard")


def points(value: str) -> EntryPoints:
    return EntryPoints([EntryPoint("surprise", value, signals.GROUP)])


def test_a_signal_of_another_package(monkeypatch) -> None:
    offered = points(f"{__name__}:SURPRISE")
    monkeypatch.setattr(signals, "entry_points", lambda **select: offered.select(**select))
    assert signal_names()[-1] == "surprise"
    assert signal_type("surprise").config is Surprise


@pytest.mark.parametrize(
    ("value", "why"),
    [("no_such_package:SIGNAL", "cannot be loaded"), (f"{__name__}:Surprise", "is not a SignalType")],
)
def test_a_broken_package_is_named(monkeypatch, value: str, why: str) -> None:
    offered = points(value)
    monkeypatch.setattr(signals, "entry_points", lambda **select: offered.select(**select))
    refused(lambda: signal_type("surprise"), why, value)


def test_an_adapter_is_found_by_what_it_can_do() -> None:
    model = tiny_otter(tiny_base())
    model.add_adapter(OtterConfig(8, 1, 1, None, 8, signal=ContrastConfig(rank=2)), "calm")
    assert model.adapter_name(needs=Capability.PREFIX) == "reward"
    assert model.adapter_name(needs=Capability.REPLACES) == "calm"
    refused(lambda: model.adapter_name(needs=Capability.BESIDE), "name an adapter", "reward, calm")
    refused(lambda: model.adapter_name(needs=Capability.DRAFTS), "no adapter drafts tokens")
    refused(lambda: model.adapter_name("calm", Capability.PREFIX), "'calm' (contrast)", "a number for every prefix")


def test_missing_capability_is_refused_before_the_first_token() -> None:
    from otterlm.decoding import RewardGuidance

    model = tiny_otter(tiny_base(), signal=RewardConfig(vocabulary_rank=0))
    with pytest.raises(OtterError, match="vocabulary head"):
        RewardGuidance(model, weight=1.0)
