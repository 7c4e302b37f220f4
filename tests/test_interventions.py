"""The registry holds interventions, chooses them for the adapters of a model, and checks their settings."""

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refused, tiny_base, tiny_otter
from generation_table import GREEDY, THRESHOLD, otter, prompts, tokenizer

from otterlm import interventions as registry
from otterlm.config import OtterConfig
from otterlm.decoding import (
    BestOfN,
    CandidateSearch,
    ContrastGuidance,
    RejectionSampling,
    ReplaceStopped,
    RewardGuidance,
    RewardStop,
    SpeculativeDecoding,
    stream_tokens,
)
from otterlm.decoding.choice import check_method, generate_arguments, methods
from otterlm.interventions import (
    InterventionSettings,
    InterventionType,
    intervention_type,
    interventions,
    register_intervention,
)
from otterlm.model import OtterModel
from otterlm.settings import rule
from otterlm.signals import load_part
from otterlm.signals.base import Capability
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.signals.draft.config import DraftConfig
from otterlm.signals.guard.config import GuardConfig
from otterlm.signals.reward.config import RewardConfig


@pytest.fixture(scope="module")
def model() -> OtterModel:
    """Makes a model with a reward, two contrasts and a draft."""
    model = tiny_otter(tiny_base())
    for name, signal in (
        ("calm", ContrastConfig(rank=2)),
        ("kind", ContrastConfig(rank=2)),
        ("quick", DraftConfig(heads=2, width=16, rank=4, vocabulary_size=20)),
    ):
        model.add_adapter(OtterConfig(8, 1, 1, None, 8, signal=signal), name)
    return model.eval()


def test_every_setting_is_taken_by_an_intervention() -> None:
    names = {field.name for field in fields(InterventionSettings)}
    assert {name for each in interventions() for name in each.takes} == names
    for each in interventions():
        assert callable(load_part(each.maker))


def test_settings_are_plain_numbers_with_a_default_a_help_and_a_slider() -> None:
    odd: Any = {"weight": np.float32(2), "top_k": np.int64(3), "temperature": np.float64(0.5)}
    settings = InterventionSettings(**odd)
    assert [type(getattr(settings, name)) for name in odd] == [float, int, float]
    for field in fields(InterventionSettings):
        low, high, step = field.metadata["slider"]
        assert low < high
        assert 0 < step <= high - low
        assert field.metadata["help"]
        assert rule(InterventionSettings, field.name) is field.metadata["check"]


def test_the_registry_needs_no_torch() -> None:
    script = "import sys, otterlm.interventions; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_what_a_signal_can_be_used_for() -> None:
    def names(can: Capability) -> list[str]:
        return [each.name for each in interventions(can)]

    assert names(RewardConfig().capabilities) == ["guidance", "search", "best-of-n", "rejection", "stop"]
    assert names(RewardConfig(vocabulary_rank=0).capabilities) == ["search", "best-of-n", "rejection", "stop"]
    watches = ["search", "best-of-n", "rejection", "stop", "guard"]
    assert names(GuardConfig().capabilities) == ["guidance", *watches, "rollback"]
    assert names(GuardConfig(vocabulary_rank=0).capabilities) == watches
    assert names(ContrastConfig().capabilities) == ["contrast"]
    assert names(DraftConfig().capabilities) == ["drafts"]
    assert methods() == ["guidance", "search", "best-of-n", "rejection", "rollback"]


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


def test_settings_that_nothing_takes_are_refused(model) -> None:
    def made(adapters: list[str], method: str | None, *settings: str, threshold: float = -math.inf) -> dict[str, Any]:
        with model.use_adapters(adapters):
            return generate_arguments(model, InterventionSettings(threshold=threshold), method, settings)

    refused(lambda: made(["reward"], None, "alpha"), "--alpha goes with contrast, but here only guidance is used")
    refused(lambda: made(["reward"], "rejection", "weight"), "--weight goes with guidance or search or best-of-n")
    refused(lambda: made(["calm", "quick"], None, "top_p", "top_k"), "here only contrast and drafts are used")
    refused(lambda: made(["reward"], None, "patience"), "--patience goes with stop")
    refused(lambda: made([], None, "drafts"), "here no intervention is used")
    refused(lambda: made(["calm"], "search"), "--method search is for an adapter that gives a number for every prefix")
    made(["reward"], None, "weight", "top_k", "threshold", "patience", threshold=-1.0)
    made(["reward", "calm", "quick"], None, "weight", "alpha", "top_p", "drafts", "confidence")
    aimed = made(["reward"], "rejection", "threshold", threshold=-1.0)
    assert list(aimed) == ["custom_generate"]  # the threshold is its aim, and stops nothing


def test_a_number_that_cannot_steer_is_only_read() -> None:
    model = tiny_otter(tiny_base(), signal=RewardConfig(vocabulary_rank=0))
    assert generate_arguments(model, InterventionSettings()) == {}
    refused(lambda: generate_arguments(model, InterventionSettings(), "guidance"), "vocabulary head")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"weight": math.nan}, "weight must be"),
        ({"alpha": math.inf}, "alpha must be"),
        ({"threshold": math.nan}, "threshold must be"),
        ({"top_p": 2.0}, "top_p must be"),
        ({"alarm": -0.5}, "alarm must be a probability"),
        ({"hits": 0}, "hits must be"),
        ({"back": -1}, "back must be"),
        ({"confidence": -1.0}, "confidence must be"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"top_k": 0}, "top_k must be a whole number of at least 1"),
        ({"weight": 1e7}, "weight must be from -1e+06 to 1e+06"),
        ({"patience": 10**9}, "patience must be a whole number from 1 to 1048576"),
        ({"weight": True}, "weight must be a finite number, got True"),
        ({"drafts": 0}, "drafts"),
    ],
)
def test_settings_out_of_range(settings, named) -> None:
    refused(lambda: InterventionSettings(**settings), named)


def test_names(monkeypatch) -> None:
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    registered = InterventionType("own", Capability.PREFIX, "logits_processor", (), f"{__name__}:nothing")
    register_intervention(registered)
    register_intervention(registered)
    assert intervention_type("own") is registered
    clash = InterventionType("own", Capability.ADDS, "logits_processor", (), f"{__name__}:nothing")
    refused(lambda: register_intervention(clash), "already an intervention named 'own'")
    refused(lambda: intervention_type("nothing"), "unknown intervention 'nothing'", "guidance")
    refused(lambda: check_method("drafts", methods()), "--method must be one of guidance, search, best-of-n, rejection")


# -- streams, threads, arguments ---------------------------------------------------------------------------------------

STEERED: dict[str, Callable[[], dict[str, Any]]] = {
    "guidance": lambda: {"logits_processor": [RewardGuidance(otter(), 2.0)]},
    "guidance, top-k": lambda: {"logits_processor": [RewardGuidance(otter(), 2.0, 6)]},
    "contrast": lambda: {"logits_processor": [ContrastGuidance(otter(), 3.0)]},
    "stop": lambda: {"stopping_criteria": [RewardStop(otter(), THRESHOLD)]},
}


@pytest.mark.parametrize("name", STEERED)
def test_a_stream_is_steered_as_generate_is(name: str) -> None:
    settings = prompts(1) | GREEDY | {"max_new_tokens": 8}
    expected = otter().generate(**settings, **STEERED[name]())
    steps = stream_tokens(otter(), tokenizer(), **settings, **STEERED[name]())
    streamed = []
    for step in steps:
        streamed.append(step.token)
        otter().generate(**prompts(2), **GREEDY, custom_generate=CandidateSearch(2.0, 4))  # others go on beside it
    assert streamed == expected[0, 7:].tolist()


def test_one_stop_serves_several_threads() -> None:
    stop = RewardStop(otter(), THRESHOLD)
    settings = prompts(2) | GREEDY | {"max_new_tokens": 8}
    expected = otter().generate(**settings, stopping_criteria=[stop])
    results: list[torch.Tensor] = []

    def run() -> None:
        results.extend(otter().generate(**settings, stopping_criteria=[stop]) for _ in range(4))

    threads = [Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 12
    assert all(torch.equal(sequences, expected) for sequences in results)


def test_numbers_of_numpy_are_numbers() -> None:
    weight: Any = np.float32(2)
    count: Any = np.int64(6)
    tokens: Any = np.array([7, 8])
    assert RewardGuidance(otter(), weight, count).top_k == 6
    assert RewardStop(otter(), weight, count).threshold == 2
    assert ReplaceStopped(weight, tokens).replacement == [7, 8]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: RewardGuidance(otter().base_model, 2.0), "not of a LlamaForCausalLM"),
        (lambda: RewardStop(2.0, otter()), "not of a float"),  # type: ignore[arg-type]
        (lambda: CandidateSearch(otter(), 2), "a OtterModel"),  # type: ignore[arg-type]
        (lambda: CandidateSearch(2.0, temperature="high"), "'high'"),  # type: ignore[arg-type]
        (lambda: ReplaceStopped(-0.5, "no"), "'no'"),  # type: ignore[arg-type]
        (lambda: ReplaceStopped(-0.5, [7.5]), "[7.5]"),  # type: ignore[list-item]
        (lambda: ReplaceStopped(-0.5, [-3]), "-3"),
        (lambda: ReplaceStopped(-0.5, []), "no tokens"),
        (lambda: otter().generate(**prompts(1), custom_generate=ReplaceStopped(-0.5, [500])), "500"),
    ],
)
def test_arguments_that_are_something_else(make: Callable[[], object], named: str) -> None:
    refused(make, named)
