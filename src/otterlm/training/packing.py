"""Is the former module of `otterlm.training.data.packing` and `otterlm.training.data.tokens`, for scripts of 0.1."""

from otterlm.training.data.packing import Batch, Example, collate
from otterlm.training.data.tokens import Limits, prompt_tokens, tokenize

__all__ = ["Batch", "Example", "Limits", "collate", "prompt_tokens", "tokenize"]
