"""The curve rises and fits, the alarm keeps its rate, and both are found again in the adapter."""

import functools
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import close, refused, tiny_base, tiny_otter, tokens
from hypothesis import given
from hypothesis import strategies as st

from otterlm.bases import load_base
from otterlm.model import OtterModel
from otterlm.signals.reward.config import Calibration, RewardConfig
from otterlm.training.data.packing import Example
from otterlm.training.evaluation.calibration import calibrate, isotonic
from otterlm.training.evaluation.scoring import Scored


def texts(count: int = 400) -> list[Scored]:
    """Half of the texts are bad: their rewards fall under 0 after the third of ten tokens, most of the time."""
    draw = random.Random(0)
    rows = []
    for row in range(count):
        bad = row // 2 % 2 == 0
        late = -1.0 if bad and draw.random() < 0.8 else 0.5
        rewards = [draw.gauss(0.5, 0.1)] * 3 + [draw.gauss(late, 0.1) for _ in range(7)]
        rows.append(Scored(Example(row, (), ((1,) * 10,), (0.0 if bad else 1.0,)), (rewards,)))
    return rows


def test_an_alarm_keeps_its_rate_and_rings_early() -> None:
    calibration, alarm = calibrate(texts(), bad_below=0.5, false_alarm_rate=0.05)
    assert calibration.threshold == alarm.threshold
    assert alarm.false_alarms == pytest.approx(0.05, abs=0.05)
    assert alarm.detected == pytest.approx(0.8, abs=0.1)
    assert alarm.early == pytest.approx(6, abs=1)
    assert alarm.early_share == pytest.approx(0.6, abs=0.1)
    low, high = calibration.curve[0], calibration.curve[-1]
    assert low[0] < -0.5 < high[0]
    assert low[1] < 0.2 < high[1]


def test_pairs() -> None:
    pairs = [Scored(Example(row, (), ((1,), (2,))), ([0.1, 1.0], [0.2, -1.0])) for row in range(20)]
    calibration, alarm = calibrate(pairs, None, 0.1)
    assert (alarm.false_alarms, alarm.detected, alarm.early) == (0.0, 1.0, 0.0)
    assert calibration.curve == ((-1.0, 0.0), (1.0, 1.0))


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 1)), min_size=1, max_size=40), st.integers(1, 12))
def test_the_curve_rises_through_the_means(points, knots) -> None:
    rewards, scores = zip(*points, strict=True)
    curve = isotonic(rewards, scores, knots)
    assert 1 <= len(curve) <= knots + 1
    Calibration(curve, 0.0, 0.1)  # checks that it rises
    whole = isotonic(rewards, scores, 10_000)
    assert min(scores) - 1e-9 <= whole[0][1] <= whole[-1][1] <= max(scores) + 1e-9


def test_isotonic_by_hand() -> None:
    assert isotonic([1, 2, 3, 4], [0.0, 1.0, 0.0, 1.0], 9) == ((1.0, 0.0), (2.5, 0.5), (4.0, 1.0))


@torch.no_grad()
def test_calibrated_rewards() -> None:
    curve = ((-1.0, 0.1), (0.0, 0.2), (1.0, 0.8))
    otter = tiny_otter(tiny_base(), signal=RewardConfig(4, Calibration(curve, -0.5, 0.05)))
    signal = otter(tokens(2, 9)).signals["reward"]
    for reward, score in zip(signal.prefix.flatten().tolist(), signal.calibrated.flatten().tolist(), strict=True):
        if reward <= -1 or reward >= 1:
            expected = 0.1 if reward <= -1 else 0.8
        else:
            expected = 0.2 + 0.6 * reward if reward > 0 else 0.2 + 0.1 * reward
        close(torch.tensor(score), torch.tensor(expected), 1e-4)
    one = tiny_otter(tiny_base(), signal=RewardConfig(4, Calibration(((0.0, 0.3),), 0.0, 0.1)))
    assert one(tokens(1, 4)).signals["reward"].calibrated.eq(0.3).all()
    refused(lambda: tiny_otter(tiny_base())(tokens(1, 4)).signals["reward"].calibrated, "otter calibrate")


def test_what_is_no_calibration_is_refused() -> None:
    curves: tuple[Any, ...] = ((), ((0.0, 1.0), (1.0, 0.0)), ((0.0,),), ((float("nan"), 0.0),))
    for curve in curves:
        refused(functools.partial(Calibration, curve, 0.0, 0.1), "calibration")
    refused(lambda: RewardConfig(4, "yes"), "calibration")  # type: ignore[arg-type]
    refused(lambda: calibrate(texts(), None, 0.05), "--bad-below")
    refused(lambda: calibrate(texts(), -9.0, 0.05), "good and bad")
    refused(lambda: calibrate(texts(), 0.5, 0.0), "false-alarm rate")


def test_command(answer, refusal, base, adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "scores.jsonl"
    rows = [{"text": f"{a} {b} {c}", "score": float(a in "ab")} for a in "abcd" for b in "efg" for c in "hij"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("calibrate", "--base", base, "--adapter", adapter, "--data", data, "--false-alarm-rate", 0.2)
    result = answer(*command, "--bad-below", 0.5, "--plot", tmp_path / "curve.png")
    assert 0 <= result["false_alarms"] <= 1
    assert (tmp_path / "curve.png").stat().st_size > 1000
    again = OtterModel.from_pretrained(load_base(str(base)), adapter)
    signal = again.adapter().config.signal
    assert isinstance(signal, RewardConfig)
    assert signal.calibration is not None
    assert signal.calibration.threshold == result["threshold"]
    assert "--bad-below" in refusal(*command)
    answer(*command, "--bad-below", 0.5, "--plot", tmp_path / "new" / "curve.xyz", "--no-save")
    assert (tmp_path / "new" / "curve.xyz").read_bytes()[1:4] == b"PNG"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "matplotlib" in refusal(*command, "--bad-below", 0.5, "--plot", tmp_path / "curve.png")
