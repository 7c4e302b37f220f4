"""Makes and checks the fields of configurations.

A field has a default, a help text that lives here alone, and a rule that its values follow. The command line makes its
options from the fields, the playground its fields, and engines what requests may ask for.
"""

from collections.abc import Callable
from dataclasses import MISSING, field, fields
from functools import partial
from typing import Any

from otterlm.checks import check_count

Rule = Callable[..., Any]
"""Checks a value, called with a setting's name and the value; returns it as a plain number. See `otterlm.checks`."""


def setting(
    default: Any = MISSING,
    help: str = "",
    *,
    minimum: int | None = None,
    maximum: int | None = None,
    check: Rule | None = None,
    slider: tuple[float, float, float] | None = None,
    option: str | None = None,
    formerly: str | None = None,
    parse: Callable[[Any], Any] | None = None,
    advanced: bool = False,
) -> Any:
    """Makes a field of a configuration's dataclass.

    Args:
        default: the field's default; without one, the field is required.
        help: a short text for the command line's help.
        minimum, maximum: of a whole number.
        check: the rule of anything else; see `check_settings`.
        slider: lowest value, highest value and step of the playground's field. With a default outside, an empty field
            is not set.
        option: the option's name where the field's name would clash, such as `--draft-heads`.
        formerly: the option's name in earlier versions, which is accepted, too.
        parse: makes the field's value from an option's text; None: the text is read as the field's type.
        advanced: whether the command line lists the option below those that most users need. Of a field that is a
            dataclass it concerns all its options.
    """
    if minimum is not None:
        check = partial(check_count, least=minimum, most=maximum)
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "check": check, "slider": slider}
    metadata |= {"option": option, "formerly": formerly, "parse": parse, "advanced": advanced}
    return field(default=default, metadata=metadata)


def option_name(name: str) -> str:
    """Returns the option that a field's name makes: --top-p of top_p."""
    return f"--{name.replace('_', '-')}"


def rule(config: type, name: str) -> Rule:
    """Returns the rule of a field that has one."""
    checks: dict[str, Rule] = {each.name: each.metadata["check"] for each in fields(config) if "check" in each.metadata}
    return checks[name]


def check_settings(config: Any) -> None:
    """Checks the fields of a configuration that have a rule, and makes them plain numbers.

    A `__post_init__` calls this.

    Raises:
        OtterError: one breaks its rule.
    """
    for each in fields(config):
        check, value = each.metadata.get("check"), getattr(config, each.name)
        if check is not None and not (value is None and each.default is None):
            object.__setattr__(config, each.name, check(each.name, value))
