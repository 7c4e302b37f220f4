"""Adapters come and go while an engine runs: who takes which slot, what requests mean, and what is logged."""

import json
import logging
from dataclasses import replace
from typing import Any

import pytest
from conftest import refused, tiny_config

from otterlm.config import OtterConfig
from otterlm.engines.requests import ENTERED, Served
from otterlm.engines.settings import NAMES, Settings
from otterlm.engines.slots import Slots
from otterlm.engines.vllm.events import log_end, log_event
from otterlm.engines.vllm.openapi import COMPONENT, SCORE, describe
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.signals.draft.config import DraftConfig
from otterlm.signals.guard.config import GuardConfig
from otterlm.signals.reward.config import RewardConfig

WIDTH = 32
PRINT = tuple(float(number) for number in range(1, 57))
"""A base's fingerprint."""


def config(**settings: Any) -> OtterConfig:
    """Returns the configuration of a saved adapter."""
    return tiny_config(**({"base_fingerprint": PRINT, "taps": "inside"} | settings))


def values(each: OtterConfig) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(each.to_json())
    return read


REWARD, GUARD = config(), config(signal=GuardConfig(("rude", "threat"), spans=("threat",), vocabulary_rank=4))
DRAFT = config(signal=DraftConfig(2, 8, 4, 20))
SLOTS = Slots({name: values(each) for name, each in (("good", REWARD), ("rude", GUARD), ("draft", DRAFT))})


def served(slots: Slots) -> Served:
    return Served.from_config({"otter": dict(slots.adapters), "vocab_size": 97}, unloaded=slots.unloaded)


def test_an_unloaded_adapter_leaves_its_slot() -> None:
    free = SLOTS.unload("good")
    other = config(signal=RewardConfig(vocabulary_rank=16, vocabulary_hidden=8, advantage_spread=2.0))
    assert free.slot_for("better", other, WIDTH) == "good"
    taken = free.load("good", "better", other)
    assert list(taken.adapters) == ["better", "rude", "draft"]
    assert taken.unloaded == ()
    assert taken.adapters["better"]["signal"]["advantage_spread"] == 2.0
    assert free.slot_for("good", REWARD, WIDTH) == "good"  # it may come back
    lines = {line["id"]: line for line in free.listing()}
    assert [lines[name]["loaded"] for name in ("good", "rude")] == [False, True]
    assert lines["rude"]["labels"] == ["rude", "threat"]


@pytest.mark.parametrize(
    ("name", "new", "words"),
    [
        ("rude", REWARD, "is loaded: unload it first"),
        ("a b", REWARD, "letters, digits"),
        ("wide", config(hidden_size=16), "good has hidden_size 8, not 16"),
        ("few", config(layers=(0, 2)), "good has layers None, not (0, 2)"),
        ("kind", config(signal=ContrastConfig(rank=8)), "good has signal reward, not contrast"),
        ("rank", config(signal=RewardConfig(vocabulary_rank=8, vocabulary_hidden=8)), "good has head.vocabulary"),
        ("other", config(base_fingerprint=tuple(2 * number for number in PRINT)), "another base"),
        ("nobody", config(base_fingerprint=None), "another base"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, new: OtterConfig, words: str) -> None:
    refused(lambda: SLOTS.unload("good").slot_for(name, new, WIDTH), words)


def test_labels_may_change_and_their_number_may_not() -> None:
    free = SLOTS.unload("rude")
    names = GuardConfig(("insult", "spam"), spans=("spam",), vocabulary_rank=4)
    taken = free.load(free.slot_for("spam", config(signal=names), WIDTH), "spam", config(signal=names))
    assert served(taken).guards["spam"].labels == ("insult", "spam")
    three = GuardConfig(("insult", "spam", "x"), spans=("spam",), vocabulary_rank=4)
    refused(lambda: free.slot_for("spam", config(signal=three), WIDTH), "rude has head.prefix.weight")


def test_drafts_stay_under_their_name() -> None:
    """The proposer of an engine knows its adapter by name."""
    free = SLOTS.unload("draft")
    assert free.slot_for("draft", DRAFT, WIDTH) == "draft"
    refused(lambda: free.slot_for("faster", DRAFT, WIDTH), "another name")
    refused(lambda: SLOTS.slot_for("faster", DRAFT, WIDTH), "unload one first")
    refused(lambda: SLOTS.unload("bad"), "no adapter 'bad'; there are: good, rude, draft")
    refused(lambda: free.unload("draft"), "no adapter 'draft'")


def test_no_new_request_gets_what_was_unloaded() -> None:
    everything = {"otter_rewards": 1, "otter_guards": 1}
    before, after = served(SLOTS), served(SLOTS.unload("rude"))
    assert before.watched(before.settings(everything)) == ("good", "rude")
    refused(lambda: after.settings(everything), "otter_guards needs a guard")
    refused(lambda: after.settings({"otter_refuse": 1}), "there are: none")
    refused(lambda: after.settings({"otter_weight": 1, "otter_signal": "rude"}), "unknown signal 'rude'", "good")
    assert after.watched(after.settings({"otter_prompt": 1})) == ("good",)
    assert after.settings({"otter_weight": 1}).steer == "good"
    # The engine can still read it, for requests that have begun.
    assert "rude" in after.signals


def test_a_request_means_the_same_to_its_end() -> None:
    """What it means is decided when it enters, and not read again from its words."""
    before = served(SLOTS)
    entered = before.enter({"otter_rewards": 1, "otter_weight": 1, "otter_signal": "rude", "mine": 1})
    assert entered["mine"] == 1
    for slots in (SLOTS.unload("rude"), SLOTS.unload("rude").load("rude", "spam", GUARD)):
        settings = served(slots).settings(entered)
        assert settings.steer == "rude"
        assert served(slots).watched(settings) == ("good", "rude")
    assert before.enter(entered) == entered
    # A client cannot say it.
    refused(lambda: before.settings({ENTERED: {"steer": "rude"}}), "unknown argument otter")
    assert replace(before.settings({}), watched=()) == Settings(watched=())


def test_what_happens_is_a_line_of_json(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vllm.otter")
    end: dict[str, Any] = {"rewards": {"rude": -2.0}, "guards": {"rude": {"threat": 0.9}}}
    log_end(end, "a")  # it went on to its own end
    log_end({**end, "stops": ("rude", "threat")}, "b")
    log_end({"rewards": {"good": -1.5}, "guards": {}, "stops": ("good", "")}, "c")
    log_end({**end, "refused_prompts": ("rude", "threat")}, None)
    log_event("adapter_loaded", adapter="x")
    lines = [record.getMessage().removeprefix("otter ") for record in caplog.records]
    assert [json.loads(line) for line in lines] == [
        {
            "event": "response_stopped",
            "request": "b",
            "adapter": "rude",
            "label": "threat",
            "reward": -2.0,
            "probability": 0.9,
        },
        {"event": "response_stopped", "request": "c", "adapter": "good", "reward": -1.5},
        {"event": "prompt_refused", "adapter": "rude", "label": "threat", "reward": -2.0, "probability": 0.9},
        {"event": "adapter_loaded", "adapter": "x"},
    ]


def test_the_document_shows_every_setting() -> None:
    extra: dict[str, Any] = {
        "anyOf": [{"type": "object", "additionalProperties": {"type": "string"}}, {"type": "null"}]
    }
    document: dict[str, Any] = {"components": {"schemas": {"A": {"properties": {"vllm_xargs": extra}}, "B": {}}}}
    describe(document)
    shown = document["components"]["schemas"][COMPONENT]["properties"]
    assert set(shown) == {f"otter_{name}" for name in NAMES}
    assert all(each["description"].endswith(".") for each in shown.values())
    assert shown["otter_patience"]["minimum"] == 1
    assert extra["anyOf"][0]["allOf"] == [{"$ref": f"#/components/schemas/{COMPONENT}"}]
    assert set(document["paths"][SCORE]) == {"post"}
    assert set(document["paths"]["/v1/otter/adapters"]) == {"get", "post"}
    json.dumps(document)
