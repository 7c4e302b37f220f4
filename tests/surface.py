"""Writes the public names and the help of every verb as a text. After a wanted change, rewrite it:

python tests/surface.py
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import otterlm
from otterlm.cli.verbs import app

FILE = Path(__file__).with_suffix(".txt")
WIDTH = 120


def commands(name: str = "otter", command: Any = None) -> Iterator[tuple[str, Any]]:
    """Yields every command by its full name, groups before their verbs."""
    command = command or typer.main.get_command(app)
    yield name, command
    for verb, unloaded in getattr(command, "verbs", {}).items():
        yield from commands(f"{name} {verb}", unloaded.load())


def help_of(name: str, command: Any) -> str:
    """Returns the help page without the boxes and colours, which depend on the terminal."""
    command.rich_markup_mode = None
    context = command.make_context(name, [], resilient_parsing=True, terminal_width=WIDTH)
    return "\n".join(line.rstrip() for line in command.get_help(context).splitlines())


def surface() -> str:
    """Returns the whole text."""
    names = [f"{name}  ({module})" for name, module in sorted(otterlm._MODULE_OF.items())]
    pages = [help_of(name, command) for name, command in commands()]
    return "\n\n\n".join(["\n".join(["from otterlm import", *names]), *pages]) + "\n"


if __name__ == "__main__":
    FILE.write_text(surface())
