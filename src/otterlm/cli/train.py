"""Defines `otter train NAME` and `otter distill NAME`: each signal has a verb, with the options of its recipe."""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import torch
import typer

from otterlm.bases import load_base, load_tokenizer, parse_dtype
from otterlm.cli.groups import grouped
from otterlm.cli.help import ADVANCED
from otterlm.cli.lazy import Verb, as_command, lazy_group
from otterlm.cli.options import DTYPE_HELP, AsJson, Base, TrainingDevice, parse_device, show_result
from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.files import make_folder
from otterlm.signals import load_part, signal_names, signal_type
from otterlm.training.recipes import Run
from otterlm.training.recipes.common import use_device

AdvancedDtype = Annotated[str, typer.Option(help=DTYPE_HELP, rich_help_panel=ADVANCED)]


def verbs(verb: str) -> Mapping[str, Verb]:
    """Lists the signals that can be made this way.

    Args:
        verb: `train` or `distill`.
    """
    listed = {}
    for name in signal_names():
        try:
            recipes = signal_type(name).recipes
            help = _summary(load_part(recipes[verb])) if verb in recipes else None
        except OtterError as error:  # of another package: the others are listed all the same
            help = str(error)
        if help is not None:
            listed[name] = Verb(help, partial(command_of, name, verb))
    return listed


def command_of(name: str, verb: str) -> Any:
    """Makes the command that runs a signal's recipe."""
    signal = signal_type(name)
    recipe_class: Any = load_part(signal.recipes[verb])
    shape = OtterConfig(signal=signal.config())

    def command(
        base: Base,
        recipe: recipe_class,
        run: Run = recipe_class.defaults,
        config: OtterConfig = shape,
        dtype: AdvancedDtype = "float32",
        device: TrainingDevice = None,
        as_json: AsJson = False,
    ) -> None:
        if device is not None:
            use_device(parse_device(device))
        make_folder(run.out)  # before a base is loaded for it
        data = recipe.read()
        model, tokenizer = load_base(base, parse_dtype(dtype)), load_tokenizer(base)
        torch.manual_seed(run.training.seed)
        show_result(recipe.train(model, tokenizer, data, config, run), run.out, as_json)

    options = grouped(command, getattr(recipe_class, "unused", ()))
    return as_command(name, options, help=str(inspect.getdoc(recipe_class)).split("\n\nAttributes:")[0])


def _summary(recipe: type) -> str:
    """Returns the first line of a recipe's docstring."""
    return str(inspect.getdoc(recipe)).splitlines()[0]


train = typer.Typer(cls=lazy_group(partial(verbs, "train")), help="Trains an adapter.", add_completion=False)
distill = typer.Typer(
    cls=lazy_group(partial(verbs, "distill"), default="reward"),
    help="Trains an adapter on what other models say.",
    add_completion=False,
)
for _app in (train, distill):
    _app.callback()(lambda: None)
