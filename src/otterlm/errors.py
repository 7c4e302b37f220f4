"""The one exception users see: a bad input, said in one line with what to do about it."""


class OtterError(ValueError):
    """Bad input (wrong base, corrupt file, missing field, ...). The command line prints it and exits with 2."""


def reason(error: Exception) -> str:
    """The first line of what an exception says, or its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
