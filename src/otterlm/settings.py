"""Fields of configurations: a default, a help text that lives here alone, and the checks they share. The command line
makes its options from them."""

from collections.abc import Callable
from dataclasses import MISSING, field, fields
from typing import Any

from otterlm.errors import OtterError


def setting(
    default: Any = MISSING,
    help: str = "",
    *,
    minimum: int | None = None,
    option: str | None = None,
    parse: Callable[[Any], Any] | None = None,
) -> Any:
    """Makes a field of a configuration's dataclass.

    Args:
        default: without one, the field must be given.
        help: a short text for the command line's help.
        minimum: of a whole number, see `check_settings`.
        option: the option's name where the field's own would clash, such as `--draft-heads`.
        parse: makes the field's value from an option's text; None: the text is read as the field's type.
    """
    return field(default=default, metadata={"help": help, "minimum": minimum, "option": option, "parse": parse})


def check_settings(config: Any) -> None:
    """Checks the fields of a configuration that have a minimum, for its `__post_init__`.

    Raises:
        OtterError: one is no whole number or too small.
    """
    for each in fields(config):
        minimum, value = each.metadata.get("minimum"), getattr(config, each.name)
        if minimum is not None and not (value is None and each.default is None):
            check_whole(each.name, value, minimum)


def check_whole(name: str, value: Any, minimum: int) -> None:
    """Checks that a setting is a whole number.

    Raises:
        OtterError: it is none, or less than `minimum`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise OtterError(f"{name} must be a whole number of at least {minimum}, got {value!r}")
