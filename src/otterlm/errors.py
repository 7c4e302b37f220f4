"""The one exception users see: a bad input, said in one line with what to do about it."""


class OtterError(ValueError):
    """Bad input (wrong base, corrupt file, missing field, ...). The command line prints it and exits with 2."""
