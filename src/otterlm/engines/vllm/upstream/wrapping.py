"""Wraps methods of vLLM's classes, and reads what its configuration says is served."""

import functools
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from weakref import ref

from otterlm.engines.requests import Served
from otterlm.engines.slots import Slots
from otterlm.engines.vllm.architectures import ARCHITECTURES
from otterlm.errors import OtterError

FIELD = "otter"
"""Otter's attribute, or key, on objects of vLLM."""
PROMPTS = "otter_prompts"
"""The attribute of what was read of prompts, on a worker's output."""
END = "otter_end"
"""The key of what is counted of a response, beside its last numbers."""

UNLOADED = "otter_unloaded"
"""The attribute of a model's configuration that names the adapters which were unloaded."""


def wrap(path: str, owner: str, method: str, around: Callable[..., Any]) -> None:
    """Replaces a method of a class of vLLM by `around(original, self, ...)`, once in a process."""
    _replace(getattr(import_module(path), owner), method, around)


def wrap_function(path: str, name: str, around: Callable[..., Any]) -> None:
    """Replaces a function, where a module of vLLM calls it, by `around(original, ...)`, once in a process."""
    _replace(import_module(path), name, around)


def _replace(owner: Any, name: str, around: Callable[..., Any]) -> None:
    original = getattr(owner, name)
    if hasattr(original, "__otter__"):
        return

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    wrapper.__otter__ = True  # type: ignore[attr-defined]
    setattr(owner, name, wrapper)


def shared(vllm_config: Any) -> SimpleNamespace:
    """Returns the object that gives the logits processor of a worker the worker's model."""
    context: dict[str, Any] = vllm_config.compilation_config.static_forward_context
    return context.setdefault(FIELD, SimpleNamespace(model=None))


def served(vllm_config: Any) -> Served:
    """Reads what an engine serves. A folder that another model class than Otter's has loaded counts as plain."""
    known, read = _served.get(id(vllm_config), (None, None))
    if read is None or known is None or known() is not vllm_config:
        model = vllm_config.model_config
        widened = model.architecture in ARCHITECTURES.values()
        config = {"otter": model.hf_config.otter, "vocab_size": model.hf_config.vocab_size} if widened else {}
        unloaded = getattr(model.hf_config, UNLOADED, ())
        read = Served.from_config(config, unloaded)
        _served[id(vllm_config)] = ref(vllm_config), read
    return read


def slots(vllm_config: Any) -> Slots:
    """Returns the slots of an engine's adapters, as this process knows them.

    Raises:
        OtterError: the model that is served has no adapters.
    """
    if not served(vllm_config).signals:
        raise OtterError("the model that is served has no adapters: serve an exported folder")
    config = vllm_config.model_config.hf_config
    return Slots(config.otter, tuple(getattr(config, UNLOADED, ())))


def set_slots(vllm_config: Any, changed: Slots) -> None:
    """Makes this process serve other adapters from now on. It may be called twice for a configuration."""
    config = vllm_config.model_config.hf_config
    config.otter = dict(changed.adapters)
    setattr(config, UNLOADED, changed.unloaded)
    _served.pop(id(vllm_config), None)


_served: dict[int, tuple[ref[Any], Served]] = {}
"""What was read, by the identity of the configuration. A guard's calibrations are long, and every request asks."""
