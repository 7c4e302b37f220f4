"""The demo shows the shipped adapters, each beside the base by itself."""

import re
from pathlib import Path

import pytest
from conftest import tiny_base, tiny_otter
from readability import ROOT
from word_tokenizer import TEMPLATE, WORDS, tokenizer

from otterlm.cli.demo import FOLDERS, OPTIONAL, guard
from otterlm.interventions import InterventionSettings
from otterlm.signals.guard.config import GuardConfig


def test_all_parts(answer, refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    report = answer("demo", "--max-new-tokens", 8, "--method", "guidance")
    assert list(report) == ["sentiment", "reward", "contrast", "draft", "guard"]
    for part in report.values():
        assert 0 < part["plan"]["inserted_parameters"] < 0.1 * part["plan"]["base_parameters"]
        assert all(speed > 0 for speed in part["tokens_per_second"].values())
    for entry in report["reward"]["prompts"]:
        assert len(entry["guided"]["rewards"]) == len(entry["guided"]["tokens"]) == 8
    for entry in report["sentiment"]["prompts"]:
        assert entry["gladly"]["tokens"] != entry["gloomily"]["tokens"]
    assert all(entry["contrasted"]["text"] for entry in report["contrast"]["prompts"])
    for entry in report["draft"]["prompts"]:
        assert entry["same_tokens"]
        assert 1 + sum(1 + accepted for accepted in entry["drafted"]["accepted"]) >= 8
    for entry in report["guard"]["prompts"]:
        assert all(0 <= share <= 1 for share in entry["original"]["harmless"])
    assert "no such adapter" in refusal("demo", "--adapters", tmp_path)
    assert "--method must be one of guidance, search" in refusal("demo", "--method", "rejection")


def test_the_part_of_a_guard(capsys) -> None:
    """Uses a tiny guard, and every line of it."""
    model = tiny_otter(tiny_base(vocab_size=len(WORDS)), signal=GuardConfig(("rude",), vocabulary_rank=4))
    part = guard.run(model, tokenizer(TEMPLATE), "guidance", InterventionSettings(2.0), 16)
    for entry in part["prompts"]:
        original, stopped, back = (entry[name] for name in ("original", "stopped", "taken back"))
        assert len(original["harmless"]) == len(original["tokens"]) == 8
        assert stopped["tokens"] == original["tokens"][: len(stopped["tokens"])]
        assert (stopped["label"] == "rude") == (len(stopped["tokens"]) < 8)
        assert all(0 <= share <= 1 for share in back["harmless"])
        assert set(back["rollbacks"]) <= {"rude"}
    guard.show(part, tokenizer(TEMPLATE))
    assert f"Guard: {guard.PROMPTS[0][:20]}" in capsys.readouterr().out


def test_the_table_on_a_terminal(otter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    code, out, _ = otter("demo", "--max-new-tokens", 4)
    assert code == 0
    for text in ("Sentiment:", "Reward:", "Contrast:", "Drafts:", "tokens a pass", "inserted parameters"):
        assert text in out
    seen, proof, further = out.splitlines()[-3:]
    assert re.match(
        r"You saw: .* a higher reward on \d of 3 prompts, .* \d\.\d\d tokens a pass, .* stopped \d of 2 texts\.", seen
    )
    assert "otter verify --quick" in proof
    assert (ROOT / "docs" / "tutorial.md").exists()
    assert "docs/tutorial.md" in further


def test_a_folder_of_an_older_version_shows_the_other_parts(otter, tmp_path: Path) -> None:
    for folder in (FOLDERS[name] for name in FOLDERS if name not in OPTIONAL):
        (tmp_path / folder).symlink_to(ROOT / "adapters" / folder)
    code, out, _ = otter("demo", "--adapters", tmp_path, "--max-new-tokens", 4)
    assert code == 0
    assert "Guard:" not in out
    assert "Sentiment:" not in out
    assert re.match(r"You saw: .* prompts, drafts gave \d\.\d\d tokens a pass\.$", out.splitlines()[-3])
