"""Groups of verbs that import a verb when it is run, so that `otter --help` needs no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperGroup


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb before it is loaded.

    Attributes:
        help: a line for the list of verbs.
        load: imports the verb and returns its command.
        panel: the heading under which it is listed.
    """

    help: str
    load: Callable[[], Any]
    panel: str | None = None


def lazy_group(verbs: Callable[[], Mapping[str, Verb]], default: str | None = None) -> type[TyperGroup]:
    """Makes a class for `typer.Typer(cls=...)`.

    Args:
        verbs: by name, in the order of the list; called when the group is used.
        default: the verb that options without a verb are given to; None: none.
    """

    class LazyGroup(TyperGroup):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.verbs = verbs()
            for name, verb in self.verbs.items():
                self.commands[name] = as_command(name, _unloaded, verb.help, verb.panel)

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if default is not None and args and args[0].startswith("-") and args[0] != "--help":
                args = [default, *args]
            return super().parse_args(ctx, args)

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            name, command, rest = super().resolve_command(ctx, args)
            return name, command if name is None else self.verbs[name].load(), rest

    return LazyGroup


def as_command(name: str, function: Callable[..., Any], help: str | None = None, panel: str | None = None) -> Any:
    """Makes a command of a function."""
    app = typer.Typer(add_completion=False)
    app.command(name, help=help, rich_help_panel=panel)(function)
    return typer.main.get_command(app)


def _unloaded() -> None:
    """Stands for a verb in the list."""
