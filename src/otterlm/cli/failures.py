"""Explains errors to the user: those that bad input or the machine causes, of any library, get one line."""

import typer

from otterlm.errors import OtterError, reason

# Typer has no public name for the errors of its parser. They are the base class of its BadParameter.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

MEMORY = "there is not enough memory: try a smaller batch or base, a shorter text, or --dtype bfloat16"

RUNTIME = {
    "out of memory": MEMORY,
    "can't allocate memory": MEMORY,
    "probability tensor contains": "the base's probabilities are not finite: its weights or the dtype are wrong",
    "not implemented for": "the dtype does not work on this device",
    "Found no NVIDIA driver": "the device cannot be used",
    "No CUDA GPUs are available": "the device cannot be used",
    "no kernel image is available": "the device cannot be used",
}
"""The meaning of a RuntimeError of torch, by words in it."""


def explain(error: Exception) -> str | None:
    """Says what went wrong, in one line; None for a fault of the program, whose traceback is of use."""
    if isinstance(error, OtterError):
        return one_line(str(error))
    if isinstance(error, _UsageError):
        return one_line(error.format_message())  # type: ignore[attr-defined]
    if isinstance(error, MemoryError):
        return MEMORY
    if isinstance(error, OSError):  # a full disk, a folder that may not be written, the hub
        return one_line(str(error) or type(error).__name__)
    return _explain_library(error)


def _explain_library(error: Exception) -> str | None:
    """Says what an error of a library means. They are imported here, as the errors above need none."""
    import torch
    from jinja2 import TemplateError
    from safetensors import SafetensorError

    if isinstance(error, torch.OutOfMemoryError):
        return MEMORY
    if isinstance(error, SafetensorError):
        return f"a safetensors file is damaged: {reason(error)}"
    if isinstance(error, TemplateError):
        return f"the chat template refuses the dialogue: {reason(error)}"
    if isinstance(error, RuntimeError):
        return next((f"{line} ({reason(error)})" for words, line in RUNTIME.items() if words in str(error)), None)
    return None


def one_line(text: str) -> str:
    """Returns a text without its line breaks. Spaces stay: they may be a path's."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())
