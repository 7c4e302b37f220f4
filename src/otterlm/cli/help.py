"""Prints help pages: panels, whole names of options at 80 columns, and an example."""

import inspect
import re
import textwrap
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

ADVANCED = "Advanced"
"""The panel of the options that most users leave alone; it comes last."""

KINDS = {"str": "TEXT", "list": "TEXT"}
"""What types are called, where it is not their name. An option that may be repeated is a list to typer."""

VERBATIM = "\b\n"
"""Before a paragraph that is not to be wrapped."""


def split_example(docstring: str | None) -> tuple[str, str | None]:
    """Splits a command's docstring into its help and its example, which is ready to be an epilog."""
    help, _, example = inspect.cleandoc(docstring or "").partition("\n\nExample:\n")
    return help, VERBATIM + textwrap.dedent(example).strip() if example else None


class HelpCommand(TyperCommand):
    """A verb prints its options in panels, and its example below them."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if self.rich_markup_mode is None:
            super().format_help(ctx, formatter)
        else:
            _show(self, ctx, [_options(self, ctx)])


class HelpGroup(TyperGroup):
    """A group of verbs prints them in panels, above its options."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if self.rich_markup_mode is None:
            super().format_help(ctx, formatter)
        else:
            _show(self, ctx, [_verbs(self), _options(self, ctx)])


Panels = dict[str, list[tuple[str, str]]]
"""Rows of name and help, by the title of their panel."""


def _verbs(group: TyperGroup) -> Panels:
    panels: Panels = {}
    for name, command in group.commands.items():
        title = getattr(command, "rich_help_panel", None) or "Commands"
        panels.setdefault(title, []).append((name, command.help or ""))
    return panels


def _options(command: Any, context: Any) -> Panels:
    panels: Panels = {}
    for option in command.get_params(context):
        record = option.get_help_record(context)
        if record is not None:
            title = getattr(option, "rich_help_panel", None) or "Options"
            panels.setdefault(title, []).append((_name(record[0]), record[1]))
    return dict(sorted(panels.items(), key=lambda item: item[0] == ADVANCED))


def _name(record: str) -> str:
    """Returns an option in its short form: `--x <int range>` to `--x INT`, `--x / --no-x` to `--[no-]x`."""
    record = re.sub(r"^--(\S+) / --no-\1$", r"--[no-]\1", record)
    return re.sub(r"<(\w+)[^>]*>", lambda kind: KINDS.get(kind[1], kind[1].upper()), record)


def _show(command: Any, context: Any, groups: list[Panels]) -> None:
    """Prints a page. All panels have one column of names, so that their help texts start below each other."""
    console = Console(markup=False, emoji=False, highlight=False)
    width = max(len(name) for panels in groups for rows in panels.values() for name, _ in rows)
    usage = " ".join(command.get_usage(context).split())
    parts: list[Any] = [Text(usage, style="bold"), Text(), Text(_unwrapped(command.help)), Text()]
    for panels in groups:
        parts += [_panel(title, rows, width) for title, rows in panels.items()]
    console.print(Padding(Group(*parts), (1, 1, 0, 1)))
    if command.epilog:
        console.print(Padding(_epilog(command.epilog), (1, 2, 0, 2)))
    print()


def _panel(title: str, rows: list[tuple[str, str]], width: int) -> Panel:
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(no_wrap=True, width=width, style="cyan")
    table.add_column(ratio=1)
    for name, help in rows:
        table.add_row(Text(name), Text(help))
    return Panel(table, title=Text(title), title_align="left", border_style="dim")


def _unwrapped(text: str | None) -> str:
    """Returns paragraphs whose lines the terminal is to break."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (text or "").split("\n\n"))


def _epilog(text: str) -> Text:
    """Returns an example under its heading, or another last line."""
    example = text.removeprefix(VERBATIM)
    if example == text:
        return Text(text)
    return Text("\n".join(("Example:", *(f"  {line}" for line in example.splitlines()))))
