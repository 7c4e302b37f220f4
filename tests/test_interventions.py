"""The registry of interventions, and how they are chosen for the adapters of a model."""

import math

import pytest
from conftest import refused, tiny_base, tiny_otter

from otterlm.config import OtterConfig
from otterlm.decoding import (
    BestOfN,
    CandidateSearch,
    ContrastGuidance,
    RejectionSampling,
    RewardGuidance,
    RewardStop,
    SpeculativeDecoding,
)
from otterlm.decoding import registry as interventions_registry
from otterlm.decoding.choice import check_method, generate_arguments, methods
from otterlm.decoding.registry import (
    InterventionSettings,
    InterventionType,
    intervention_type,
    interventions,
    register_intervention,
)
from otterlm.model import OtterModel
from otterlm.signals.base import Capability
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.signals.draft.config import DraftConfig
from otterlm.signals.reward.config import RewardConfig


@pytest.fixture(scope="module")
def model() -> OtterModel:
    """A reward, two contrasts and a draft."""
    model = tiny_otter(tiny_base())
    for name, signal in (
        ("calm", ContrastConfig(rank=2)),
        ("kind", ContrastConfig(rank=2)),
        ("quick", DraftConfig(heads=2, width=16, rank=4, vocabulary_size=20)),
    ):
        model.add_adapter(OtterConfig(8, 1, 1, None, 8, signal=signal), name)
    return model.eval()


def test_every_setting_is_taken_by_an_intervention() -> None:
    fields = set(InterventionSettings.__dataclass_fields__)
    assert {name for each in interventions() for name in each.takes} == fields
    for each in interventions():
        assert set(each.takes) <= fields


def test_what_a_signal_can_be_used_for() -> None:
    def names(can: Capability) -> list[str]:
        return [each.name for each in interventions(can)]

    assert names(RewardConfig().capabilities) == ["guidance", "search", "best-of-n", "rejection", "stop"]
    assert names(RewardConfig(vocabulary_rank=0).capabilities) == ["search", "best-of-n", "rejection", "stop"]
    assert names(ContrastConfig().capabilities) == ["contrast"]
    assert names(DraftConfig().capabilities) == ["drafts"]
    assert methods() == ["guidance", "search", "best-of-n", "rejection"]


@pytest.mark.parametrize(
    ("method", "plug", "kind"),
    [
        (None, "logits_processor", RewardGuidance),
        ("guidance", "logits_processor", RewardGuidance),
        ("search", "custom_generate", CandidateSearch),
        ("best-of-n", "custom_generate", BestOfN),
        ("rejection", "custom_generate", RejectionSampling),
    ],
)
def test_a_reward_is_used_as_asked(model, method, plug, kind) -> None:
    with model.use_adapters(["reward"]):
        made = generate_arguments(model, InterventionSettings(), method)[plug]
    assert isinstance(made[0] if isinstance(made, list) else made, kind)


def test_all_adapters_at_once(model) -> None:
    arguments = generate_arguments(model, InterventionSettings(weight=3.0, alpha=1.5, top_p=0.8, threshold=-1.0))
    reward, first, second = arguments["logits_processor"]
    assert (reward.weight, first.alpha, first.top_p) == (3.0, 1.5, 0.8)
    # The base's nucleus is taken once, by the first contrast.
    assert isinstance(second, ContrastGuidance)
    assert second.top_p == 1.0
    assert isinstance(arguments["custom_generate"], SpeculativeDecoding)
    assert isinstance(arguments["stopping_criteria"][0], RewardStop)


def test_two_loops_are_refused(model) -> None:
    with model.use_adapters(["reward", "quick"]):
        refused(lambda: generate_arguments(model, InterventionSettings(), "search"), "search and drafts")


def test_one_loop_takes_one_adapter() -> None:
    model = tiny_otter(tiny_base())
    model.add_adapter(OtterConfig(8, 1, 1, None, 8), "other")
    refused(lambda: generate_arguments(model, InterventionSettings(), "search"), "one adapter", "reward, other")
    assert len(generate_arguments(model, InterventionSettings())["logits_processor"]) == 2


def test_a_number_that_cannot_steer_is_only_read() -> None:
    model = tiny_otter(tiny_base(), signal=RewardConfig(vocabulary_rank=0))
    assert generate_arguments(model, InterventionSettings()) == {}
    refused(lambda: generate_arguments(model, InterventionSettings(), "guidance"), "vocabulary head")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"weight": math.nan}, "--weight"),
        ({"alpha": math.inf}, "--alpha"),
        ({"threshold": math.nan}, "--threshold"),
        ({"top_p": 2.0}, "--top-p"),
        ({"confidence": -1.0}, "--confidence"),
        ({"temperature": 0.0}, "--temperature"),
        ({"top_k": 0}, "top_k"),
        ({"drafts": 0}, "drafts"),
    ],
)
def test_settings_out_of_range(settings, named) -> None:
    refused(lambda: InterventionSettings(**settings), named)


def test_names(monkeypatch) -> None:
    monkeypatch.setattr(interventions_registry, "_registered", dict(interventions_registry._registered))
    own = InterventionType("own", Capability.PREFIX, "logits_processor", (), lambda *_: None)
    register_intervention(own)
    register_intervention(own)
    assert intervention_type("own") is own
    clash = InterventionType("own", Capability.ADDS, "logits_processor", (), lambda *_: None)
    refused(lambda: register_intervention(clash), "already an intervention named 'own'")
    refused(lambda: intervention_type("nothing"), "unknown intervention 'nothing'", "guidance")
    refused(lambda: check_method("drafts"), "--method must be one of guidance, search, best-of-n, rejection")
