"""A log of a long run says how far it is; a terminal has bars."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_base
from rich.console import Console
from torch import nn
from transformers import modeling_gguf_pytorch_utils as gguf
from transformers.utils import logging

from otterlm import progress
from otterlm.bases import load_base


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Makes the time that progress reads, in seconds, which a test moves."""
    now = [0.0]
    monkeypatch.setattr("otterlm.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "INTERVAL", 30.0)
    monkeypatch.setattr(progress, "_STDERR", Console(stderr=True, force_terminal=False))
    return now


def lines(clock: list[float], seconds: list[float], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Returns what is printed while items take some seconds each."""
    for taken in progress.track(seconds, "reading"):
        clock[0] += taken
    return capsys.readouterr().err.splitlines()


def test_a_line_every_half_minute(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    shown = lines(clock, [10.0] * 12, capsys)
    assert [line.split(",")[0] for line in shown] == [f"reading: {n} of 12" for n in (3, 6, 9, 12)]


def test_a_short_run_prints_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(clock, [1.0] * 12, capsys) == []


def test_other_processes_are_silent(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar(disable=True) as shown:
        task = shown.add_task("training", total=2)
        clock[0] += 100
        shown.update(task, completed=1)
    assert capsys.readouterr().err == ""


def test_passes_are_counted(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    base = nn.Linear(2, 2)
    with progress.counted_passes(base, 3, "generating"):
        for _ in range(3):
            clock[0] += 31
            base(torch.zeros(2))
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"generating: {n} of 3" for n in (1, 2, 3)
    ]
    clock[0] += 31
    base(torch.zeros(2))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_loading_a_base_writes_no_bar_into_a_log(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(progress, "_STDERR", Console(stderr=True, force_terminal=terminal))
    tiny_base().save_pretrained(tmp_path)
    logging.enable_progress_bar()
    capsys.readouterr()
    load_base(str(tmp_path))
    assert ("Loading weights" in capsys.readouterr().err) is terminal
    assert logging.is_progress_bar_enabled()


@pytest.mark.parametrize("terminal", [True, False])
def test_converting_a_gguf_writes_no_bar_into_a_log(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Transformers converts with tqdm's bar, which its switch of bars does not reach."""
    monkeypatch.setattr(progress, "_STDERR", Console(stderr=True, force_terminal=terminal))
    logging.enable_progress_bar()
    bars = gguf.tqdm
    with progress.library_bars():
        assert list(gguf.tqdm([1, 2], desc="converting")) == [1, 2]
    assert ("converting" in capsys.readouterr().err) is terminal
    assert gguf.tqdm is bars


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:00:05"), (65.4, "0:01:05"), (3725, "1:02:05")])
def test_durations(seconds: float, text: str) -> None:
    assert progress._duration(seconds) == text
