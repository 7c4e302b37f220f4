"""Is the former name of `otterlm.client`: the functions are the same."""

from otterlm.client import *  # noqa: F403
