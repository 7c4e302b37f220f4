"""Is the former module of `otterlm.training.data.prompts`, for scripts of 0.1."""

from otterlm.training.data.prompts import read_prompts

__all__ = ["read_prompts"]
