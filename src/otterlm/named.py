"""Manages the adapters of a model by their names: which there are, and which of them run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from otterlm.adapter import Adapter
from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.families import Outline
from otterlm.passes import ThreadState
from otterlm.signals.base import NOTHING, Capability, describe
from otterlm.taps import Taps
from otterlm.wrapped import WrappedModel


class NamedAdapters(WrappedModel):
    """The model holds a base and adapters with names.

    Args:
        base_model: is frozen, put into evaluation mode and hooked.
        family: the base's.
    """

    def __init__(self, base_model: PreTrainedModel, family: Outline) -> None:
        super().__init__(base_model)
        self.family = family
        self._active: tuple[str, ...] | None = None
        """The names that `set_adapter` got; None: all."""
        self._thread = ThreadState()
        self.watch()

    def watch(self) -> None:
        """Hooks the blocks that are widened, of the base as it is now."""
        if (taps := self.__dict__.get("_taps")) is not None:
            taps.remove()
        inside, edge = self.reads(inside=True), self.reads(inside=False)
        self._taps = Taps(self.base_model, self.family, self.watched_layers, inside, edge)

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy or a pickle holds, which is all but the hooks and the threads' states.

        A shallow copy has the same base and adapters, but a list of its own of what is inserted: it hooks that alone.
        """
        state = super().__getstate__()
        modules = state["_modules"] | {"adapters": nn.ModuleDict(dict(self.adapters.items()))}
        left_out = ("_taps", "_thread")
        return {name: value for name, value in state.items() if name not in left_out} | {"_modules": modules}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._thread = ThreadState()
        self.watch()

    @property
    def watched_layers(self) -> tuple[int, ...]:
        """Returns the blocks that one adapter or another widens."""
        return tuple(sorted({layer for a in self._adapters.values() for layer in a.stream.widths.layers}))

    def reads(self, inside: bool) -> bool:
        """Returns whether an adapter reads the inside of blocks, or their edge."""
        return any(adapter.stream.inside == inside for adapter in self._adapters.values())

    @property
    def _adapters(self) -> dict[str, Adapter]:
        return {name: module for name, module in self.adapters.items() if isinstance(module, Adapter)}

    def _new_name(self, name: str) -> str:
        if name in self.adapters:
            raise OtterError(f"there is already an adapter named {name!r}: give adapter_name")
        if not name.isidentifier() or hasattr(self.adapters, name):
            raise OtterError(f"an adapter cannot be named {name!r}: choose another identifier")
        return name

    def adapter(self, name: str | None = None) -> Adapter:
        """Returns an adapter by name; without one, the only adapter. Errors are those of `adapter_name`."""
        return self._adapters[self.adapter_name(name)]

    def adapter_name(self, name: str | None = None, needs: Capability = NOTHING) -> str:
        """Returns the name of the adapter that is meant.

        Args:
            name: its name; None: the only one that can do what is needed.
            needs: what its signal must be able to do.

        Raises:
            OtterError: there is none of this name, its signal cannot do what is needed, or `name` is None and there are
                several.
        """
        signals = {name: adapter.config.signal for name, adapter in self._adapters.items()}
        fitting = [name for name, signal in signals.items() if needs in signal.capabilities]
        if name is None and len(fitting) == 1:
            return fitting[0]
        if name is None or name not in signals:
            what = "name an adapter" if fitting else f"no adapter {describe(needs)}"
            what = what if name is None else f"unknown signal {name!r}"
            raise OtterError(f"{what}; there are: {', '.join(self.adapters) or 'none'}")
        if name not in fitting:
            raise OtterError(f"adapter {name!r} ({signals[name].type}) is not one that {describe(needs)}")
        return name

    @property
    def peft_config(self) -> dict[str, OtterConfig]:
        """Returns the configurations of the adapters, by name."""
        return {name: adapter.config for name, adapter in self._adapters.items()}

    def get_adapter_state_dict(self, adapter_name: str | None = None) -> dict[str, Tensor]:
        """Returns the tensors of an adapter. Errors are those of `adapter_name`."""
        return self.adapter(adapter_name).state_dict()

    # -- which of them run -----------------------------------------------------------------------------------------

    @property
    def active_adapters(self) -> list[str]:
        """Returns the names of the adapters that run with the base, in this thread."""
        chosen = self._active if self._thread.state.chosen is None else self._thread.state.chosen
        return [name for name in self.adapters if chosen is None or name in chosen]

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Runs the base alone inside the block, in this thread."""
        with self.use_adapters(()):
            yield

    @contextmanager
    def use_adapters(self, names: str | Sequence[str]) -> Iterator[None]:
        """Runs only this adapter, or these, inside the block, in this thread."""
        names = (names,) if isinstance(names, str) else names
        for name in names:
            self.adapter(name)
        outer, self._thread.state.chosen = self._thread.state.chosen, tuple(names)
        try:
            yield
        finally:
            self._thread.state.chosen = outer

    active_adapter = active_adapters

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Makes one or several adapters those that run, in every thread, and that are trained.

        Args:
            adapter_name: a name, or several.
            inference_mode: they are frozen like the others.

        Raises:
            OtterError: there is no adapter of a name.
        """
        names = (adapter_name,) if isinstance(adapter_name, str) else tuple(adapter_name)
        active = tuple(self.adapter_name(name) for name in names)
        for name, adapter in self._adapters.items():
            adapter.requires_grad_(name in active and not inference_mode)
        self._active = active

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Sets whether adapters are trained. Errors are those of `set_adapter`."""
        for name in (adapter_names,) if isinstance(adapter_names, str) else adapter_names:
            self.adapter(name).requires_grad_(requires_grad)

    def disable_adapters(self) -> None:
        """Turns all adapters off, in every thread, until `enable_adapters` or `set_adapter`."""
        self._active = ()

    def enable_adapters(self) -> None:
        """Turns all adapters on."""
        self._active = None

    def delete_adapter(self, adapter_name: str) -> None:
        """Removes an adapter. Where no other was to run, all others do.

        Raises:
            OtterError: there is no adapter of this name.
        """
        del self.adapters[self.adapter_name(adapter_name)]
        self._thread.state.signals.pop(adapter_name, None)
        if self._active is not None:
            self._active = tuple(name for name in self._active if name != adapter_name) or None
        self.watch()

    def get_base_model(self) -> PreTrainedModel:
        """Returns the base, which stays hooked."""
        return self.base_model

    def unload(self) -> PreTrainedModel:
        """Removes all adapters and hooks and returns the base."""
        for name in [*self.adapters]:
            self.delete_adapter(name)
        self._taps.remove()
        return self.base_model
