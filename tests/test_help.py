"""Help pages fit 80 columns: whole names of options, one line a verb, an example that its verb accepts."""

import re
import shlex
from typing import Any

import pytest
from surface import commands

from otterlm.cli.help import ADVANCED, split_example
from otterlm.cli.lazy import as_command

WIDTH = 80
COMMANDS = dict(commands())
GROUPS = {name: command for name, command in COMMANDS.items() if hasattr(command, "verbs")}
VERBS = {name: command for name, command in COMMANDS.items() if name not in GROUPS}


def page(name: str, command: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Returns a help page as an 80-column terminal shows it."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    command.get_help(command.make_context(name, [], resilient_parsing=True))
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_whole(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = COMMANDS[name]
    text = page(name, command, monkeypatch, capsys)
    assert all(len(line) <= WIDTH for line in text.splitlines())
    assert "…" not in text
    shown = set(re.findall(r"--[\w-]+", text.replace("--[no-]", "--")))
    assert {option.opts[0] for option in command.params if option.opts[0].startswith("--")} <= shown


@pytest.mark.parametrize("name", GROUPS)
def test_a_verb_has_one_line(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = page(name, GROUPS[name], monkeypatch, capsys).splitlines()
    for verb, listed in GROUPS[name].verbs.items():
        assert any(re.search(rf"\b{verb} +{re.escape(listed.help)}", line) for line in lines), verb


@pytest.mark.parametrize("name", VERBS)
def test_the_example_is_a_command_that_the_verb_accepts(name: str) -> None:
    command = VERBS[name]
    example = (command.epilog or "").removeprefix("\b\n")
    assert example.startswith(f"{name} "), f"{name} has no example"
    assert all(len(line) <= WIDTH - 4 for line in example.splitlines())
    words = shlex.split(example.replace("\\\n", " "))[len(name.split()) :]
    command.make_context(name, words)  # which refuses unknown options, missing ones and values of other types


def test_ten_options_of_reward_training_come_first() -> None:
    panels = {option.opts[0]: getattr(option, "rich_help_panel", None) for option in VERBS["otter train reward"].params}
    first = [option for option, panel in panels.items() if panel != ADVANCED and option not in ("--json", "--help")]
    named = "base data eval-data values out epochs batch-size learning-rate hidden-size layers"
    assert sorted(first) == sorted(f"--{name}" for name in named.split())


def test_an_example_keeps_its_lines() -> None:
    help, epilog = split_example("Does.\n\n    More.\n\n    Example:\n        otter x \\\n            --y 1\n    ")
    assert help == "Does.\n\nMore."
    assert epilog == "\b\notter x \\\n    --y 1"
    assert split_example("Does.") == ("Does.", None)
    assert as_command("x", lambda: None, "Does.").epilog is None
