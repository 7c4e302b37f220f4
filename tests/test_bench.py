"""The bench times what it says, in turn, and its sums are right."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refused
from transformers import LlamaConfig

import otterlm.cli.bench.overhead  # noqa: F401 - its help lists the shapes, and must not see the one that is added here
from otterlm.bench import overhead, shapes
from otterlm.bench.overhead import ARGS_ANEW, ARGS_CACHED, BASE, GUIDANCE, METHODS, Setting, measure
from otterlm.bench.shapes import random_base
from otterlm.bench.timing import Seconds, take_turns
from otterlm.config import OtterConfig

TINY = LlamaConfig(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    small: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12, "layers": (1, 3)}
    monkeypatch.setattr(overhead, "adapter_for", lambda shape: OtterConfig(**small))


def test_methods_take_turns() -> None:
    called = []

    def slow() -> None:
        called.append("b")
        time.sleep(0.02)

    methods = {"a": lambda: called.append("a"), "b": slow}
    taken = take_turns(methods, {"a": lambda: called.append("warm")}, rounds=3)
    assert called == ["warm", *"ababab"]
    assert len(taken["b"].rounds) == 3
    assert 0.02 <= taken["b"].median < 0.2
    assert Seconds((1.0, 2.0, 4.0)).median == 2.0
    assert Seconds((1.0, 2.0, 4.0)).spread == 1.5


def test_savings_are_what_the_seconds_say(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {BASE: 1.0, GUIDANCE: 1.5, ARGS_CACHED: 3.0, ARGS_ANEW: 11.0}
    monkeypatch.setattr(
        overhead, "take_turns", lambda calls, warm_up, rounds: {n: Seconds((s,)) for n, s in seconds.items()}
    )
    rows = {row.method: row for row in measure(Setting("tiny", batch=2, prompt=3, new=5))}
    assert rows[GUIDANCE].tokens_per_second == pytest.approx(10 / 1.5)
    assert rows[GUIDANCE].base_tokens_per_second == pytest.approx(10)
    assert rows[GUIDANCE].extra_time_saved == pytest.approx(1 - 0.5 / 10)
    assert rows[GUIDANCE].extra_time_saved_over_cache == pytest.approx(1 - 0.5 / 2)
    assert rows[ARGS_ANEW].extra_space_saved == 0
    base = random_base("tiny", torch.float32, "cpu")
    assert rows[ARGS_ANEW].extra_parameters == sum(p.numel() for p in base.parameters())
    inserted = rows[GUIDANCE].extra_parameters
    assert rows[GUIDANCE].predicted_slowdown == pytest.approx(1 + inserted / rows[ARGS_ANEW].extra_parameters)


def test_every_method_runs() -> None:
    rows = measure(Setting("tiny", batch=2, prompt=4, new=3, top_k=2), rounds=1)
    assert [row.method for row in rows] == list(METHODS)
    assert all(row.tokens_per_second > 0 for row in rows)


def test_command(answer, refusal, tmp_path: Path) -> None:
    settings = ("--base", "tiny", "--prompt", 4, "--new-tokens", 2, "--rounds", 1, "--batch", 1, "--batch", 2)
    result = answer("bench", "overhead", *settings, "--out", tmp_path)
    assert len(result["rows"]) == 2 * len(METHODS)
    keys = {"method", "extra_space_saved", "extra_time_saved", "tokens_per_second", "base_tokens_per_second"}
    assert keys <= set(result["rows"][0])
    written = json.loads((tmp_path / "overhead.json").read_text())
    assert len(written["rows"]) == len(result["rows"])
    assert written["machine"]["torch"]
    assert (tmp_path / "overhead.png").stat().st_size > 1000
    assert "unknown shape 'gpt-9'" in refusal("bench", "overhead", "--base", "gpt-9")
    refused(lambda: random_base("gpt-9", torch.float32, "cpu"), "unknown shape 'gpt-9'")
