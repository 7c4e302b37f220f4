"""Requests to an engine are checked, also misspelt ones, and responses are read; no engine is needed."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from otterlm import client
from otterlm.checks import LARGEST_WEIGHT
from otterlm.engines.capabilities import signal_config
from otterlm.engines.guard import RewardGuard, Track
from otterlm.engines.readings import Layout
from otterlm.engines.requests import Served, refuse_stray
from otterlm.engines.rewards import STOPPED, Joiner, extend, part
from otterlm.engines.settings import NAMES, Settings
from otterlm.engines.spelling import resembles_prefix
from otterlm.errors import OtterError
from otterlm.interventions import InterventionSettings
from otterlm.signals.alarm import AlarmSettings
from otterlm.signals.base import Capability

SIGNALS: dict[str, dict[str, Any]] = {
    "reward": {"type": "reward", "vocabulary_rank": 4},
    "blunt": {"type": "reward", "vocabulary_rank": 0},
    "contrast": {"type": "contrast", "rank": 4},
    "draft": {"type": "draft"},
    "moderator": {"type": "guard", "labels": ["rude", "threat"], "spans": ["rude"], "hits": 1, "window": 2},
    "topics": {"type": "guard", "labels": ["fine", "politics"], "harmless": ["fine"], "vocabulary_rank": 0},
}
PLAIN = ("reward", "blunt", "contrast", "draft")
"""Those that are no guards."""


def served(*names: str) -> Served:
    adapters = {name: {"signal": SIGNALS[name]} for name in names or PLAIN}
    return Served.from_config({"otter": adapters, "vocab_size": 100})


def read(model: Served, **settings: object) -> Settings:
    return model.settings({f"otter_{name}": value for name, value in settings.items()})


def test_capabilities() -> None:
    can = {name: signal_config(signal).capabilities for name, signal in SIGNALS.items()}
    assert can["reward"] == Capability.BESIDE | Capability.PREFIX | Capability.ADDS
    assert can["blunt"] == Capability.BESIDE | Capability.PREFIX
    assert can["contrast"] == Capability.BESIDE | Capability.REPLACES
    assert can["draft"] == Capability.DRAFTS
    assert can["moderator"] == can["reward"] | Capability.CLASSES
    assert can["topics"] == can["blunt"] | Capability.CLASSES
    with pytest.raises(OtterError, match="unknown signal 'of somebody else'"):
        signal_config({"type": "of somebody else"})


def test_settings() -> None:
    model = served()
    assert model.numbers == ("reward", "blunt")
    assert read(model) == model.settings(None) == Settings()
    assert read(model, weight=0) == Settings()
    assert not read(model, weight=0.0, signal="reward", top_k=3).asks
    assert read(model, weight=2, signal="reward", top_k=5) == Settings(steer="reward", weight=2.0, top_k=5)
    assert read(model, weight=-1.5, signal="contrast", top_p=0.5) == Settings("contrast", -1.5, top_p=0.5)
    assert read(model, threshold=1, guard="blunt", patience=3) == Settings(guard="blunt", threshold=1.0, patience=3)
    assert read(model, rewards=1).rewards
    assert not read(model, rewards=0).asks
    assert read(served("reward", "draft"), weight=1).steer == "reward"
    assert read(served("blunt", "contrast"), threshold=0.5).guard == "blunt"
    assert model.settings({"mine": 1, "other_weight": 2, "outer_loop": 3, "session_id": "x"}) == Settings()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": "2", "signal": "reward"}, "finite number, got '2'"),
        ({"weight": float("nan"), "signal": "reward"}, "finite number, got nan"),
        ({"weight": 10**400, "signal": "reward"}, "finite number, got 1000"),
        ({"weight": 10**5000, "signal": "reward"}, "too many digits"),
        ({"weight": 1e308, "signal": "reward"}, "from -1e\\+06 to 1e\\+06"),
        ({"weight": True, "signal": "reward"}, "finite number, got True"),
        ({"weight": None}, "finite number, got None"),
        ({"weight": 1}, "name an adapter in otter_signal; there are: contrast, reward"),
        ({"weight": 1, "signal": "blunt"}, "unknown signal 'blunt'"),
        ({"weight": 1, "signal": None}, "unknown signal None"),
        ({"weight": 1, "signal": ["reward"]}, "unknown signal"),
        (
            {"weight": 1, "signal": "reward", "top_p": 0.5},
            "top_p goes with contrast, but here only guidance is used",
        ),
        (
            {"weight": 1, "signal": "contrast", "top_k": 5},
            "top_k goes with guidance, but here only contrast is used",
        ),
        ({"weight": 0, "signal": "contrast", "top_k": 5}, "otter_top_k goes with"),
        ({"weight": 1, "signal": "contrast", "top_p": 0}, "above 0 and at most 1"),
        ({"weight": 0, "top_p": 7}, "above 0 and at most 1"),
        ({"weight": 1, "signal": "reward", "top_k": 101}, "whole number from 1 to 100"),
        ({"weight": 1, "signal": "reward", "top_k": 2.0}, "whole number"),
        ({"weight": 1, "signal": "reward", "top_k": None}, "whole number from 1 to 100, got None"),
        ({"signal": "reward"}, "otter_signal goes with otter_weight"),
        ({"top_k": 3}, "otter_top_k goes with otter_weight"),
        ({"top_p": 0.3}, "otter_top_p goes with otter_weight"),
        ({"patience": 3}, "otter_patience goes with otter_threshold"),
        ({"guard": "reward"}, "otter_guard goes with otter_threshold"),
        ({"threshold": 0.5}, "name an adapter in otter_guard; there are: blunt, reward"),
        ({"threshold": 0.5, "guard": "contrast"}, "unknown signal 'contrast' in otter_guard"),
        ({"threshold": float("inf"), "guard": "reward"}, "finite"),
        ({"threshold": 0, "guard": "reward", "patience": 0}, "whole number from 1"),
        ({"weight": Fraction(1, 2), "signal": "reward"}, "number that JSON can hold, got Fraction"),
        ({"rewards": 2}, "0 or 1, got 2"),
        ({"rewards": True}, "0 or 1, got True"),
        ({"rewards": [1]}, "0 or 1"),
        ({"guards": 1}, "needs a guard adapter"),
        ({"guards": 7}, "otter_guards must be 0 or 1, got 7"),
        ({"alarm": 0.5}, "name an adapter in otter_guard; there are: none that can do this"),
        ({"alarm": 0.5, "guard": "reward"}, "unknown signal 'reward' in otter_guard"),
        ({"refuse": 1}, "name a guard in otter_guard; there are: none"),
        ({"wieght": 1}, "unknown argument otter_wieght; there are: otter_weight, otter_signal"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OtterError, match=message):
        read(served(), **settings)


def test_names_ranges_and_defaults_are_those_of_all_of_otter() -> None:
    page = (Path(__file__).parents[1] / "docs" / "serving.md").read_text()
    rows = dict(re.findall(r"^\| `otter_(\w+)` \| (.*) \|$", page, re.MULTILINE))
    assert list(rows) == list(NAMES)
    assert set(NAMES) - {"signal"} <= {field.name for part in (Settings, AlarmSettings) for field in fields(part)}
    for name in ("top_p", "patience"):
        default = getattr(InterventionSettings(), name)
        assert getattr(Settings(), name) == default
        assert f"({default})" in rows[name]
    requests: tuple[dict[str, Any], ...] = (
        {"weight": LARGEST_WEIGHT * 2, "signal": "reward"},
        {"threshold": 0, "guard": "reward", "patience": 1 << 21},
    )
    for settings, name in zip(requests, ("weight", "patience"), strict=True):
        with pytest.raises(OtterError) as ours:
            read(served(), **settings)
        with pytest.raises(OtterError) as others:
            InterventionSettings(**{name: settings[name]})
        assert str(ours.value) == f"otter_{others.value}"


def test_what_the_engine_cannot_do_is_refused() -> None:
    with pytest.raises(OtterError, match="has none"):
        read(served("contrast", "draft"), rewards=1)
    with pytest.raises(OtterError, match="no adapters"):
        read(Served.from_config({"vocab_size": 9}), rewards=1)
    assert Served.from_config({"vocab_size": 9}).settings({"mine": 1}) == Settings()


NEAR = """otter Otter_weight OTTER_REWARDS otter-weight otter.weight otterWeight oter_weight ottter_weight ottre_weight
otterr_rewards ottr_weight _otter_weight otter__weight"""


@pytest.mark.parametrize("name", NEAR.split())
def test_spellings_near_the_settings_are_refused(name: str) -> None:
    with pytest.raises(OtterError, match="unknown argument"):
        served().settings({name: 1})
    with pytest.raises(OtterError, match="vllm_xargs"):
        refuse_stray(["temperature", name])


@pytest.mark.parametrize(
    "name", ["other_weight", "outer", "weight", "utter", "potter", "hotter_than", "router", "to", ""]
)
def test_other_words_are_left_to_others(name: str) -> None:
    assert not resembles_prefix(name)
    refuse_stray([name])


def test_settings_of_guards() -> None:
    model = served("moderator", "reward")
    stored = read(model, guard="moderator")
    assert (stored.guard, stored.alarm) == ("moderator", AlarmSettings({"rude": 0.5, "threat": 0.5}, 1, 2))
    assert read(model, window=5, hits=3).alarm == AlarmSettings({"rude": 0.5, "threat": 0.5}, 3, 5)
    assert read(model, alarm=0.9).alarm == AlarmSettings({"rude": 0.9, "threat": 0.9}, 1, 2)
    for alarm in ('{"threat": 0.8}', {"threat": 0.8}):
        assert read(model, alarm=alarm, guard="moderator").alarm == AlarmSettings({"threat": 0.8}, 1, 2)
    # Its reward is that of any other: the log-probability of no offence.
    assert read(model, threshold=-1, guard="moderator") == Settings(guard="moderator", threshold=-1.0)
    assert read(model, refuse=1) == Settings(refuse="moderator")
    assert model.watched(read(model, refuse=1, prompt=1)) == ("moderator", "reward")
    assert read(model, weight=2, signal="moderator").steer == "moderator"
    both = served("moderator", "topics", "contrast")
    assert read(both, refuse=1, guard="topics").refuse == read(both, guard="topics").guard == "topics"
    assert both.watched(read(both, guards=1)) == ("moderator", "topics")
    assert read(both, refuse=0) == read(both, prompt=0) == Settings()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alarm": 0.5}, "name an adapter in otter_guard; there are: moderator, topics"),
        ({"alarm": -1, "guard": "topics"}, "otter_alarm must be a probability"),
        ({"alarm": None, "guard": "topics"}, "otter_alarm must be a probability .*, got None"),
        ({"alarm": "rude", "guard": "moderator"}, "JSON text such as .*got 'rude'"),
        ({"alarm": "[1]", "guard": "moderator"}, "otter_alarm must be a probability"),
        ({"alarm": "[" * 100_000, "guard": "moderator"}, "otter_alarm must be a probability"),
        ({"window": 2**63, "guard": "moderator"}, "window must be a whole number from 1 to 1048576"),
        ({"alarm": "{}", "guard": "moderator"}, "names no label"),
        ({"alarm": '{"rud": 0.5}', "guard": "moderator"}, "no label 'rud'; there are: rude, threat"),
        ({"alarm": '{"rude": "much"}', "guard": "moderator"}, "the alarm of rude must be a probability"),
        ({"hits": 3, "guard": "moderator"}, "hits \\(3\\) must not exceed the window \\(2\\)"),
        ({"window": 0, "guard": "moderator"}, "otter_window must be a whole number"),
        ({"alarm": 0.5, "guard": "reward"}, "unknown signal 'reward' in otter_guard"),
        ({"guard": "reward"}, "otter_guard goes with otter_threshold"),
        ({"guard": ["moderator"]}, "unknown signal"),
        ({"threshold": 0, "guard": "moderator", "hits": 1}, "otter_hits goes with guard, but here only stop is used"),
        ({"alarm": 0.5, "guard": "moderator", "patience": 2}, "otter_patience goes with otter_threshold"),
        ({"refuse": 1}, "name a guard in otter_guard; there are: moderator, topics"),
        ({"refuse": 2}, "otter_refuse must be 0 or 1, got 2"),
        ({"refuse": 1, "guard": ["moderator"]}, "unknown signal"),
        ({"weight": 1, "signal": "topics"}, "unknown signal 'topics' in otter_signal"),
    ],
)
def test_what_is_refused_of_guards(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OtterError, match=message):
        read(served("moderator", "topics", "reward"), **settings)


def test_a_guard_ends_a_response() -> None:
    arguments = {"otter_threshold": 0, "otter_guard": "reward", "otter_patience": 2}
    track = Track(served(), arguments, 0)
    # The first is the prompt's reward; one that is not under the threshold begins the count again.
    judged = [track.judge(length, {"reward": [[reward]]}, 1) for length, reward in enumerate([-1, -1, 0, -1, -1])]
    assert judged == [None, None, None, None, 0]
    assert track.reason == STOPPED
    # Several tokens at once, as under speculation: the first to be left out is the one chosen after the low text.
    rows = {"reward": [[reward] for reward in (-1.0, 1.0, 1.0, -1.0, -1.0)]}
    assert Track(served(), {"otter_threshold": 0, "otter_guard": "reward"}, 0).judge(0, rows, 5) == 3


def test_a_guard_waits_for_the_least_tokens() -> None:
    track = Track(served(), {"otter_threshold": 0, "otter_guard": "reward"}, 3)
    assert [track.judge(length, {"reward": [[-1.0]]}, 1) for length in range(4)] == [None, None, None, 0]
    guard = RewardGuard(Settings(guard="reward", threshold=0.0))
    assert [guard.judge([reward]) for reward in (0.0, -1.0)] == [False, True]


def row(rude: float, threat: float) -> list[float]:
    """Returns what is read of the moderator: its reward, its labels, and its passages."""
    return [-1.0, rude, threat, rude / 2]


def test_an_alarm_ends_a_response_and_names_the_label() -> None:
    model = served("moderator", "reward")
    rows = [row(0.9, 0.9), row(0.1, 0.8), row(0.1, 0.2), row(0.7, 0.8), row(0.9, 0.9)]
    track = Track(model, {"otter_hits": 2}, 0)
    # The prompt does not count. Of the latest two, one is a hit until the end.
    judged = [track.judge(length, {"moderator": [each]}, 1) for length, each in enumerate(rows)]
    assert judged == [None, None, None, None, 0]
    assert track.reason == "otter: rude"
    track = Track(model, {"otter_alarm": '{"threat": 0.5}'}, 0)
    assert track.judge(0, {"moderator": rows}, 5) == 1
    assert track.reason == "otter: threat"
    assert track.end(by_guard=True)["stops"] == ("moderator", "threat")
    assert Track(model, {"otter_alarm": 2, "otter_guard": "moderator"}, 0).judge(0, {"moderator": rows}, 5) is None
    assert Track(model, {"otter_guard": "moderator"}, 3).judge(0, {"moderator": rows}, 5) == 3


def test_a_prompt_is_judged_and_may_get_no_token() -> None:
    model = served("moderator", "reward")
    readings = {"moderator": [row(0.4, 0.9)], "reward": [[0.25]]}
    track = Track(model, {"otter_prompt": 1}, 0)
    assert track.judge(0, readings, 0) is None  # a part of the prompt
    assert track.leaving(readings, 0) == {}
    assert track.judge(0, readings, 1) is None
    shares = {"rude": 0.4, "threat": 0.9}
    verdict = {"label": "threat", "probability": 0.9, "flagged": True, "probabilities": shares}
    expected = {"prompt": {"rewards": {"moderator": -1.0, "reward": 0.25}, "guards": {"moderator": verdict}}}
    assert track.leaving(readings, 1) == expected
    assert track.leaving(readings, 1) == {}
    refusing = Track(model, {"otter_refuse": 1, "otter_prompt": 1}, 5)
    assert refusing.judge(0, readings, 1) == 0
    assert refusing.reason == "otter: threat in the prompt"
    assert refusing.waiting() == expected
    ended = {"rewards": {"moderator": -1.0, "reward": 0.25}, "guards": {"moderator": shares}}
    assert refusing.end(by_guard=True) == ended | {"refused_prompts": ("moderator", "threat")}
    assert track.end() == refusing.end() == ended
    assert Track(model, {"otter_refuse": 1}, 0).judge(0, {"moderator": [row(0.4, 0.4)]}, 1) is None
    assert Track(model, {"otter_refuse": 1}, 0).judge(1, {"moderator": [row(0.9, 0.9)]}, 1) is None


def test_the_tokens_of_a_prompt_come_in_parts() -> None:
    track = Track(served("moderator"), {"otter_prompt_tokens": 1}, 0)
    track.read_prompt(0, {"moderator": [row(0.1, 0.2), row(0.9, 0.9)]})
    track.read_prompt(1, {"moderator": [row(0.3, 0.4)]})  # read again, after a preemption
    readings = {"moderator": [row(0.3, 0.4)]}
    assert track.judge(0, readings, 1) is None
    prompt = track.leaving(readings, 1)["prompt"]
    assert prompt["rewards"] == {"moderator": -1.0}
    assert prompt["guards"]["moderator"]["probabilities"] == {"rude": 0.3, "threat": 0.4}
    assert prompt["tokens"] == {
        "rewards": {"moderator": [-1.0, -1.0]},
        "guards": {"moderator": {"rude": [0.1, 0.3], "threat": [0.2, 0.4]}},
        "spans": {"moderator": {"rude": [0.05, 0.15]}},
    }


def test_an_engine_gives_out_what_was_asked_for_and_watches_the_rest() -> None:
    numbers = {"reward": [[1.0], [-1.0], [1.0]], "blunt": [[5.0], [6.0], [7.0]]}
    guarded = Track(served(), {"otter_threshold": 0, "otter_guard": "reward"}, 0)
    assert guarded.leaving(numbers, 3) == {}
    assert guarded.judge(4, numbers, 1) is None  # one of the three was accepted
    assert guarded.judge(5, {"reward": [[-1.0]]}, 1) == 0
    assert guarded.end(by_guard=True) == {"rewards": {"reward": -1.0}, "guards": {}, "stops": ("reward", "")}
    both = Track(served(), {"otter_rewards": 1, "otter_threshold": 0, "otter_guard": "reward"}, 0)
    assert both.judge(4, numbers, 3) == 1
    assert both.leaving(numbers, 1) == {"rewards": {"reward": [1.0], "blunt": [5.0]}}
    assert both.end(by_guard=True) == {"rewards": {"reward": -1.0, "blunt": 6.0}, "guards": {}, "stops": ("reward", "")}
    assert Track(served(), {"otter_rewards": 1}, 0).judge(4, numbers, 3) is None
    labels = Track(served("moderator", "topics"), {"otter_guards": 1}, 0)
    readings = {"moderator": [row(0.5, 0.25), row(0.75, 0.0)], "topics": [[-1.0, 0.25, 0.75], [-2.0, 0.0, 1.0]]}
    assert labels.leaving(readings, 2) == {
        "guards": {
            "moderator": {"rude": [0.5, 0.75], "threat": [0.25, 0.0]},
            "topics": {"fine": [0.25, 0.0], "politics": [0.75, 1.0]},
        },
        "spans": {"moderator": {"rude": [0.25, 0.375]}},
    }
    assert Layout.of(served("moderator"), "moderator") == Layout(1, ("rude", "threat"), ("rude",))


def test_numbers_stay_with_their_choices() -> None:
    joiner = Joiner()
    joiner.add(0, {"rewards": {"reward": [1.0]}})
    joiner.add(1, {"rewards": {"reward": [2.0]}})
    joiner.add(0, {"rewards": {"reward": [3.0]}})
    joiner.add(1, None)
    opening = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    assert not joiner.fill(opening)
    piece = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
    assert joiner.fill(piece)
    assert piece["choices"][0]["otter"] == {"rewards": {"reward": [1.0, 3.0]}}
    assert not joiner.fill({"choices": [{"index": 0, "delta": {"content": "b"}, "finish_reason": None}]})
    assert joiner.take(1) == {"rewards": {"reward": [2.0]}}
    assert joiner.take(1) is None
    assert not joiner.fill({"choices": [], "usage": {}})
    assert not joiner.fill({"error": {"message": "no"}})


def test_the_prompts_numbers_open_a_choice() -> None:
    joiner = Joiner()
    joiner.add(0, {"rewards": {"reward": [1.0]}, "prompt": {"rewards": {"reward": 1.0}}})
    opening = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    assert joiner.fill(opening)
    assert opening["choices"][0]["otter"] == {"prompt": {"rewards": {"reward": 1.0}}}
    assert not joiner.fill({"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]})
    assert joiner.take(0) == {"rewards": {"reward": [1.0]}}
    # A choice without tokens has the prompt's alone, or nothing.
    joiner.add(0, {"guards": {"moderator": {"rude": []}}})
    assert joiner.take(0) is None
    joiner.add(0, {"rewards": {"reward": []}, "prompt": {"rewards": {"reward": 1.0}}})
    assert joiner.fill({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})


def test_numbers_are_cut_and_joined() -> None:
    numbers: dict[str, Any] = {"rewards": {"reward": [1.0, 2.0, 3.0]}, "prompt": {"rewards": {"reward": 1.0}}}
    assert part(numbers, 1, 2) == {"rewards": {"reward": [2.0]}}
    assert part(numbers, 0, 1) == {"rewards": {"reward": [1.0]}, "prompt": {"rewards": {"reward": 1.0}}}
    extend(numbers, {"rewards": {"reward": [4.0]}, "guards": {"moderator": {"rude": [5.0]}}})
    assert numbers["rewards"] == {"reward": [1.0, 2.0, 3.0, 4.0]}
    assert part(numbers, 3, 4) == {"rewards": {"reward": [4.0]}, "guards": {"moderator": {"rude": []}}}


def test_a_client_makes_requests(tmp_path: Path) -> None:
    config = {"otter": {"reward": {"signal": SIGNALS["reward"]}}, "vocab_size": 9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert client.request(tmp_path, weight=1.0, rewards=1) == {"extra_args": {"otter_weight": 1.0, "otter_rewards": 1}}
    with pytest.raises(OtterError, match="unknown argument otter_wait"):
        client.request(tmp_path, wait=1)
    with pytest.raises(OtterError, match="cannot read"):
        client.request(tmp_path / "none", rewards=1)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OtterError, match="cannot read"):
        client.request(tmp_path, rewards=1)
    output = SimpleNamespace(otter={"rewards": {"reward": [1.0]}, "guards": {"g": {"rude": [0.5]}}, "prompt": {"a": 1}})
    assert client.rewards(output) == {"reward": [1.0]}
    assert client.guards(output) == {"g": {"rude": [0.5]}}
    assert client.prompt(output) == {"a": 1}
    assert client.spans(output) == {}
    assert client.rewards(SimpleNamespace()) == {}


def test_a_client_needs_neither_torch_nor_transformers() -> None:
    script = """
import sys
import otterlm.client
assert not {"torch", "transformers", "numpy", "vllm", "openai"} & set(sys.modules), sorted(sys.modules)
import otterlm.engines.client
assert otterlm.engines.client.read is otterlm.client.read
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_one_folder_leans_on_vllm() -> None:
    """What another version of vLLM may change is named in `upstream` alone."""
    folder = Path(client.__file__).parent / "engines"
    leaning = [
        path.parent.name
        for path in sorted(folder.rglob("*.py"))
        for line in path.read_text().splitlines()
        if line.strip().startswith(("from vllm", "import vllm")) or '"vllm.' in line
    ]
    assert set(leaning) == {"upstream"}
