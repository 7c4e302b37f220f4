"""Gives commands groups of options. A command names a group by its dataclass and receives an instance of it:

    @grouped
    def command(base: Base, recipe: RewardRecipe, shape: OtterConfig = OtterConfig(hidden_size=32)) -> None: ...

This command has the options of both, those of `OtterConfig` with the defaults of the instance. Help texts are those of
the fields. A mapping as the default, by field, changes some defaults of the class.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from transformers import PreTrainedModel

from otterlm.bases import load_base, parse_dtype
from otterlm.cli.help import ADVANCED
from otterlm.cli.options import DTYPE_HELP, parse_device
from otterlm.errors import OtterError
from otterlm.settings import option_name
from otterlm.training.data.rows import PairRow, TextRow, hold_out


def grouped(command: Callable[..., None], unused: Collection[str] = ()) -> Callable[..., None]:
    """Gives a command the options of its groups, for typer to see.

    Args:
        command: names its groups.
        unused: fields of the groups that are no options of this command; they have their defaults.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[Any, Any]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        group: Any = parameter.annotation
        if isinstance(group, type) and is_dataclass(group):
            instance = parameter.default if isinstance(parameter.default, group) else None
            groups[name] = group, instance
            options = options_of(group, instance, parameter.default if instance is None else {})
            parameters += [option for option in options if option.name not in unused]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        built = {name: build(group, default, values) for name, (group, default) in groups.items()}
        command(**values, **built)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def options_of(
    group: type, instance: Any = None, defaults: Any = None, advanced: bool = False
) -> list[inspect.Parameter]:
    """Makes a parameter of every field that is an option: one with a help text (`otterlm.settings.setting`), one that
    typer describes, and those of the dataclasses inside.

    Args:
        group: a dataclass.
        instance: its values are the defaults; None: those of the class.
        defaults: other defaults, by field, also of the dataclasses inside; anything but a mapping is none.
        advanced: whether all of them go into the panel of advanced options, as `setting(advanced=True)` says of one.
    """
    others: Mapping[str, Any] = defaults if isinstance(defaults, Mapping) else {}
    hints, parameters = get_type_hints(group, include_extras=True), []
    for field, default in _defaults(group, instance):
        default = others.get(field.name, default)
        hidden = advanced or field.metadata.get("advanced", False)
        if is_dataclass(default):
            parameters += options_of(type(default), default, others, hidden)
        elif _is_option(field, hints[field.name]):
            parameters.append(
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if default is MISSING else default,
                    annotation=_annotation(field, hints[field.name], ADVANCED if hidden else None),
                )
            )
    return parameters


def build(group: type, instance: Any, values: dict[str, Any]) -> Any:
    """Makes a group of the values of its options, which are taken out of `values`; others have their defaults."""
    hints = get_type_hints(group, include_extras=True)
    filled = {}
    for field, default in _defaults(group, instance):
        if is_dataclass(default):
            filled[field.name] = build(type(default), default, values)
        elif _is_option(field, hints[field.name]) and field.name in values:
            filled[field.name] = _read(field, default, values.pop(field.name))
        elif default is not MISSING:
            filled[field.name] = default
    return group(**filled)


def _read(field: Field[Any], default: Any, value: Any) -> Any:
    """Reads an option's value as that of its field. An error names the option."""
    parse, check = field.metadata.get("parse"), field.metadata.get("check")
    if parse is not None:
        return parse(value)
    if check is None or (value is None and default is None):
        return value
    return check(field.metadata["option"] or option_name(field.name), value)


def _defaults(group: Any, instance: Any) -> Iterator[tuple[Field[Any], Any]]:
    for field in fields(group):
        if instance is not None:
            yield field, getattr(instance, field.name)
        else:
            yield field, field.default if field.default_factory is MISSING else field.default_factory()


def _is_option(field: Field[Any], hint: Any) -> bool:
    return bool(field.metadata.get("help")) or get_origin(hint) is Annotated


def _annotation(field: Field[Any], hint: Any, panel: str | None) -> Any:
    """Returns the type and the description that typer reads. A panel is for a field that typer does not describe."""
    if get_origin(hint) is Annotated:
        return hint
    # The configuration checks a choice, and names the choices in its error. An option that is parsed is a text.
    choice = any(get_origin(part) is Literal for part in (hint, *get_args(hint)))
    optional = field.metadata["parse"] or type(None) in get_args(hint)
    kind = (str | None if optional else str) if choice or field.metadata["parse"] else hint
    option, formerly = field.metadata["option"], field.metadata["formerly"]
    names = [option or option_name(field.name), formerly] if formerly else [option] if option else []
    limits = {"min": field.metadata["minimum"], "max": field.metadata["maximum"]}
    return Annotated[kind, typer.Option(*names, help=field.metadata["help"], rich_help_panel=panel, **limits)]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The group chooses the rows that are used."""

    eval_fraction: Annotated[
        float | None, typer.Option(help="Only the rows that training with this --eval-fraction and --seed held out.")
    ] = None
    seed: Annotated[int, typer.Option(help="See --eval-fraction.", min=0)] = 0

    def choose(self, rows: Sequence[PairRow | TextRow]) -> list[int]:
        """Returns the indices of all rows, or of those that training held out.

        Raises:
            OtterError: it held out none.
        """
        if self.eval_fraction is None:
            return list(range(len(rows)))
        held = sorted(hold_out(rows, self.eval_fraction, self.seed))
        if not held:
            raise OtterError(f"--eval-fraction {self.eval_fraction} holds out none of {len(rows)} rows")
        return held


@dataclass(frozen=True, slots=True)
class Machine:
    """The group says where and in what precision the base runs."""

    device: Annotated[str, typer.Option(help="Where to run.")] = "cpu"
    dtype: Annotated[str, typer.Option(help=DTYPE_HELP)] = "float32"

    def __post_init__(self) -> None:
        parse_device(self.device)
        parse_dtype(self.dtype)

    def load(self, base: str) -> PreTrainedModel:
        """Loads the base there."""
        return load_base(base, parse_dtype(self.dtype)).to(self.device)
