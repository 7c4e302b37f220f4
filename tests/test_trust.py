"""An adapter nobody can break: damaged files, kills at any moment, two writers at once, two threads at once."""

import json
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import add_tiny_adapter, error_of, refused, tiny_base, tiny_config, tiny_otter, tokens
from safetensors.torch import load_file
from training_runs import OFTEN, new_objective, run

from otterlm.decoding import RewardGuidance
from otterlm.files import text, write_files
from otterlm.model import OtterModel

TESTS = Path(__file__).parent


def fuzzed(count: int, seed: int) -> dict[str, int]:
    """Fuzzes in a separate process, in which nothing can be unpickled."""
    done = subprocess.run(
        [sys.executable, str(TESTS / "fuzz.py"), str(count), str(seed)], capture_output=True, text=True, check=True
    )
    return {name: int(times) for times, name in (line.split(" ", 1) for line in done.stdout.splitlines())}


def test_some_damaged_adapters() -> None:
    outcomes = fuzzed(400, seed=1)
    assert set(outcomes) == {"loaded", "refused"}, outcomes
    assert outcomes["refused"] > 200


@pytest.mark.slow
def test_ten_thousand_damaged_adapters() -> None:
    outcomes = fuzzed(10_000, seed=2)
    assert set(outcomes) == {"loaded", "refused"}, outcomes


@pytest.mark.slow
def test_kills_at_any_moment_change_nothing(tmp_path: Path) -> None:
    """kill -9, twenty times in one run: it ends with the weights of a run that was left alone."""
    expected = run(tmp_path / "alone", new_objective(), OFTEN)
    draw, out, kills = random.Random(0), tmp_path / "killed", 0
    command = [sys.executable, str(TESTS / "training_runs.py"), str(out), "--often"]
    while kills < 20:
        process = subprocess.Popen([*command, "--slowly"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        time.sleep(draw.uniform(0.0, 1.2))
        process.kill()
        process.wait()
        kills += 1
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines() if line[-1] == "}"]
    assert 5 < max(steps) < 72  # it was in the middle of its 72 steps
    subprocess.run(command, check=True, capture_output=True)
    tensors = load_file(out / "weights-0.safetensors")
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_two_writers_leave_the_files_of_one(tmp_path: Path) -> None:
    def write(mark: str) -> None:
        for number in range(40):
            write_files(tmp_path, {name: text(f"{mark}{number}") for name in ("a", "b", "c")})
            texts = {(tmp_path / name).read_text() for name in ("a", "b", "c")}
            assert all(texts)

    threads = [threading.Thread(target=write, args=(mark,)) for mark in "xy"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(tmp_path / name).read_text() for name in ("a", "b", "c")}) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_two_threads_steer_apart() -> None:
    """One base, two adapters and two weights, generating at once: each thread gets what it gets alone."""
    otter = tiny_otter(tiny_base())
    add_tiny_adapter(otter, "other", seed=2, layers=(1, 3))
    otter.eval()

    def generate(name: str, weight: float) -> list[int]:
        settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        with otter.use_adapters([name]):
            processors = [RewardGuidance(otter, weight, adapter_name=name)]
            return otter.generate(tokens(2, 5), logits_processor=processors, **settings)[:, 5:].flatten().tolist()

    jobs = [("reward", 4.0), ("other", -4.0)]
    expected = [generate(*job) for job in jobs]
    assert expected[0] != expected[1]
    results: list[list[list[int]]] = [[], []]

    def repeat(index: int) -> None:
        for _ in range(12):
            results[index].append(generate(*jobs[index]))

    threads = [threading.Thread(target=repeat, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[expected[0]] * 12, [expected[1]] * 12]


@pytest.mark.parametrize(
    "name", ["../adapter", "/etc", "a/b/c", "someone/..", "adapter\x00", "", ".", "~/adapter", "C:\\adapter"]
)
def test_odd_places_to_load_from_are_refused(name, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    message = error_of(lambda: OtterModel.from_pretrained(tiny_base(), name))
    assert re.search("is not an adapter folder|is neither a folder nor an adapter|holds no adapter", message)


def test_an_older_format_says_how_to_go_on(tmp_path: Path) -> None:
    OtterModel(tiny_base(), tiny_config()).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    for version in (0, 2):
        path.write_text(path.read_text().replace('"version": 1', f'"version": {version}'))
        refused(lambda: OtterModel.from_pretrained(tiny_base(), tmp_path), f"version {version}", "otter-lm")
        path.write_text(path.read_text().replace(f'"version": {version}', '"version": 1'))
