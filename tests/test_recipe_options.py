"""Every option of `otter train` and `otter distill` is read by its recipe: one that does nothing is not offered."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import SHAPE, randomize
from surface import commands
from transformers import AutoModelForCausalLM
from word_tokenizer import WORDS

from otterlm.config import OtterConfig
from otterlm.signals import load_part, signal_type
from otterlm.training.recipes import Run

COMMANDS = {name: command for name, command in commands() if name.startswith(("otter train ", "otter distill "))}
ALL_FIELDS = ("__post_init__", "to_json")
"""These methods read every field; what they do with it changes no adapter."""

HOW = (*SHAPE, "--epochs", 1, "--batch-size", 8, "--eval-fraction", 0.25)
VALUES = ("--value-prompts", 4, "--value-responses", 2, "--value-new-tokens", 4)
DRAFT = ("--draft-heads", 2, "--draft-width", 16, "--draft-rank", 4, "--draft-vocabulary", 20)
SAMPLING = ("--scorer", "regex:[ab]", "--offence-from", 1, "--per-prompt", 4, "--max-new-tokens", 6)


@pytest.fixture
def runs(base: Path, pairs: Path, tmp_path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Returns the options of some runs of each verb, which together read what one run alone has no use for."""
    texts, sides = tmp_path / "texts.txt", tmp_path / "sides.csv"
    labelled, scored = tmp_path / "labelled.jsonl", tmp_path / "scored.jsonl"
    texts.write_text("".join(f"{a} {b}\n" for a in WORDS[10:18] for b in WORDS[10:14]))
    rows = [f"{a} {b} {c}" for a in "abcd" for b in "ij" for c in "abij"]
    of_text: list[Any] = [{"text": row, "spans": [[0, 1]] if "a" in row else []} for row in rows]
    of_text += [{"text": row, "label": int("a" in row)} for row in rows]
    labelled.write_text("".join(json.dumps(row) + "\n" for row in of_text))
    sides.write_text("text,label\n" + "".join(f"{row},{int('a' in row)}\n" for row in rows))
    scored.write_text("".join(json.dumps({"text": row, "score": row.count("a")}) + "\n" for row in rows))
    for seed, side in enumerate(("expert", "anti"), start=5):
        model = AutoModelForCausalLM.from_pretrained(base)
        randomize(model, seed)
        model.save_pretrained(tmp_path / side)
    experts = ("--expert", tmp_path / "expert", "--anti-expert", tmp_path / "anti", "--texts", texts)
    rank, not_fitted = ("--vocabulary-rank", 4), ("--candidates", 0)
    verdicts = ("--prompts", texts, *SAMPLING, *rank)
    return {
        "otter train reward": [
            ("--data", pairs, *VALUES, *rank),
            ("--data", scored, "--no-values", *rank, *not_fitted),
        ],
        "otter train contrast": [
            ("--positive", texts, "--negative", texts, "--rank", 4),
            ("--data", sides, "--rank", 4),
        ],
        "otter train draft": [("--prompts", texts, *DRAFT, "--max-new-tokens", 4)],
        "otter train guard": [("--data", labelled, *rank, *not_fitted)],
        "otter distill reward": [(*(part for part in verdicts if part not in ("--offence-from", 1)), *not_fitted)],
        "otter distill guard": [(*verdicts, "--rollouts", 2, "--prefixes", 1, *not_fitted)],
        "otter distill contrast": [(*experts, "--rank", 4, "--max-new-tokens", 4)],
    }


def groups_of(name: str) -> list[Any]:
    """Returns the configurations of a verb: its recipe, its signal and the run, and those inside them."""
    verb, kind = name.split()[1:]
    signal = signal_type(kind)
    wanted = [load_part(signal.recipes[verb]), Run, OtterConfig, signal.config]
    listed: list[Any] = []
    while wanted:
        group: Any = wanted.pop()
        listed.append(group)
        for field in fields(group):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            if is_dataclass(default) and type(default) not in (*listed, *wanted) and field.name != "signal":
                wanted.append(type(default))
    return listed


def offered(name: str) -> dict[str, str]:
    """Returns the class of every field that is an option of a verb."""
    options = {option.name for option in COMMANDS[name].params}
    return {field.name: group.__name__ for group in groups_of(name) for field in fields(group) if field.name in options}


def noting_reads(groups: list[Any], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Returns a set that every field which a recipe reads will be put into; not one that is checked, shown or copied
    with all the others."""
    seen: set[str] = set()

    def read(self: Any, name: str) -> Any:
        code = sys._getframe(1).f_code
        all_of_them = code.co_filename in (dataclasses.__file__, "<string>") or code.co_name in ALL_FIELDS
        if not all_of_them and not code.co_filename.endswith(("otterlm/settings.py", "cli/groups.py")):
            seen.add(name)
        return object.__getattribute__(self, name)

    for group in groups:
        monkeypatch.setattr(group, "__getattribute__", read)
    return seen


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_offered_is_read(
    name: str, otter: Any, base: Path, runs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = noting_reads(groups_of(name), monkeypatch)
    for number, settings in enumerate(runs[name]):
        out = ("--out", tmp_path / f"out-{number}")
        code, _, err = otter(*name.split()[1:], "--base", base, *settings, *HOW, *out)
        assert code == 0, err
    assert {field: group for field, group in offered(name).items() if field not in seen} == {}


def unused() -> Iterator[tuple[str, str]]:
    """Yields the verbs, and the fields that their recipes have no use for."""
    for name in COMMANDS:
        verb, kind = name.split()[1:]
        for field in getattr(load_part(signal_type(kind).recipes[verb]), "unused", ()):
            yield name, field


@pytest.mark.parametrize(("name", "field"), list(unused()))
def test_what_does_nothing_is_not_offered(name: str, field: str) -> None:
    assert any(field == each.name for group in groups_of(name) for each in fields(group)), "there is no such field"
    assert field not in {option.name for option in COMMANDS[name].params}


def test_guards_of_scorers_have_no_options_of_passages(refusal: Any, base: Path, tmp_path: Path) -> None:
    command = ("distill", "guard", "--base", base, "--scorer", "regex:a", "--prompts", "p", "--out", tmp_path / "out")
    assert "--span-weight" in refusal(*command, "--span-weight", 2)
    assert "--span-weight" in {option.opts[0] for option in COMMANDS["otter train guard"].params}
