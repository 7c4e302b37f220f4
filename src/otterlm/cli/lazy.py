"""Makes groups of verbs that import a verb when it is run, so that `otter --help` needs no torch."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import typer
from typer.core import TyperGroup

from otterlm.cli.help import HelpCommand, HelpGroup, split_example
from otterlm.cli.interrupts import ending_at_once
from otterlm.cli.terminal import quieten_libraries


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb is listed before it is loaded.

    Attributes:
        help: a line for the list of verbs.
        load: imports the verb and returns its command.
        panel: the heading under which it is listed.
    """

    help: str
    load: Callable[[], Any]
    panel: str | None = None

    @classmethod
    def of(cls, path: str, help: str, panel: str | None = None, passes_on: bool = False) -> Self:
        """Names a verb that is in a module.

        Args:
            path: `module:name` of a function, or of a `typer.Typer` with more verbs.
            help, panel: see `Verb`.
            passes_on: options that the verb does not know are not refused: they go into its argument.
        """
        return cls(help, partial(_load, path, passes_on), panel)


def _load(path: str, passes_on: bool) -> Any:
    module, _, name = path.partition(":")
    target = getattr(importlib.import_module(module), name)
    if isinstance(target, typer.Typer):
        return typer.main.get_command(target)
    command = as_command(module.rpartition(".")[2], target, inspect.getdoc(target))
    command.ignore_unknown_options = passes_on
    return command


def lazy_group(verbs: Callable[[], Mapping[str, Verb]], default: str | None = None) -> type[TyperGroup]:
    """Makes a class for `typer.Typer(cls=...)`. Libraries that a verb loads are quiet, see `quieten_libraries`.

    Args:
        verbs: by name, in the order of the list; called when the group is used.
        default: the verb that gets options without a verb; None: none.
    """

    class LazyGroup(HelpGroup):
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
            if name is None:
                return name, command, rest
            with ending_at_once():
                command = self.verbs[name].load()
                if not isinstance(command, TyperGroup):
                    quieten_libraries()
            return name, command, rest

    return LazyGroup


def as_command(name: str, function: Callable[..., Any], help: str | None = None, panel: str | None = None) -> Any:
    """Makes a command of a function.

    Args:
        name: of the command.
        function: what it runs.
        help: a text that may end with an `Example:`, which is shown below the options.
        panel: the heading under which the command is listed.
    """
    text, example = split_example(help)
    app = typer.Typer(add_completion=False)
    app.command(name, cls=HelpCommand, help=text, epilog=example, rich_help_panel=panel)(function)
    return typer.main.get_command(app)


def _unloaded() -> None:
    """Stands for a verb in the list."""
