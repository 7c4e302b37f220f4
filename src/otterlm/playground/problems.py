"""Says which field of the page a bad input is in, so that the message can stand beside it."""

from collections.abc import Iterator
from contextlib import contextmanager

from otterlm.errors import OtterError


class FieldError(OtterError):
    """The input of one field is bad.

    Args:
        message: what is wrong, and what to do.
        field: its name, see `otterlm.playground.page_requests`.
    """

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


@contextmanager
def blame(field: str) -> Iterator[None]:
    """Gives an `OtterError` inside the block the name of a field."""
    try:
        yield
    except FieldError:
        raise
    except OtterError as error:
        raise FieldError(str(error), field) from error
