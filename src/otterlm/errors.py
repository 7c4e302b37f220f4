"""The one exception users see: a bad input, said in one line with what to do about it."""


class OtterError(ValueError):
    """Bad input (wrong base, corrupt file, missing field, ...). The command line prints it and exits with 2."""


def reason(error: BaseException) -> str:
    """The first line of what an exception says, and the next where it ends with a colon; its type where it says
    nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
