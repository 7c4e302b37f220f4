"""Defines the one exception that users see. It names a bad input in one line, and what to do about it."""


class OtterError(ValueError):
    """The input is bad (wrong base, corrupt file, missing field, ...). The command line prints it and exits with 2."""


def reason(error: BaseException) -> str:
    """Returns the first line of an exception's message, and the next where it ends with a colon.

    An exception without a message gives the name of its type.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
