"""Wraps a frozen base, and defines which of its methods a wrapped model has."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from otterlm.errors import OtterError, reason
from otterlm.families.parts import device_of
from otterlm.signals.low_rank import Fold


def _give_signals(model: "WrappedModel", _: Any, output: Any) -> None:
    """Gives signals to an output that a library made again around `forward`, with its fields alone."""
    if isinstance(output, ModelOutput) and not hasattr(output, "signals"):
        output.signals = model.signals


def _fill_in_tied(model: "WrappedModel", state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Adds the tied tensors that `state_dict` leaves out, also where a module around this one loads them."""
    for name, first in model._tied().items():
        if prefix + first in state:
            state.setdefault(prefix + name, state[prefix + first])


def _tie_again(model: "WrappedModel", _: Any) -> None:
    """Ties the weights again: tensors that are assigned, not copied, make a separate parameter of each name."""
    model.tie_weights()


def _moving(name: str) -> Callable[..., Any]:
    """Makes a method of `nn.Module` that moves or converts base and adapters."""

    def method(self: "WrappedModel", *args: Any, **kwargs: Any) -> Any:
        try:
            getattr(self.base_model, name)(*args, **kwargs)
        except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
            raise OtterError(f"the base cannot be moved or converted: {reason(error)}") from error
        getattr(self.adapters, name)(*args, **kwargs)
        for module in self.adapters.modules():
            if isinstance(fold := getattr(module, "_fold", None), Fold):
                fold.clear()
        return self

    method.__name__, method.__doc__ = name, f"Does what `nn.Module.{name}` does, to the base and the adapters."
    return method


def _replacing(name: str) -> Callable[..., Any]:
    """Makes a method of the base that may replace hooked modules by others."""

    def method(self: "WrappedModel", *args: Any, **kwargs: Any) -> Any:
        result = getattr(self.base_model, name)(*args, **kwargs)
        self.base_model.requires_grad_(False).eval()
        self.watch()
        return result

    method.__name__, method.__doc__ = (
        name,
        f"Does what `base_model.{name}` does; the adapters read the base as it is then.",
    )
    return method


def _refusing(name: str, why: str) -> Callable[..., Any]:
    """Makes a method that refuses its call: other models have it and this one cannot."""

    def method(self: "WrappedModel", *args: Any, **kwargs: Any) -> Any:
        raise OtterError(f"an OtterModel has no {name}: {why}")

    method.__name__, method.__doc__ = name, f"Raises an OtterError: {why}."
    return method


def _needless(name: str) -> Callable[..., None]:
    """Makes a method that prepares other bases for gradients."""

    def method(self: "WrappedModel", *args: Any, **kwargs: Any) -> None:
        pass

    method.__name__ = name
    method.__doc__ = "Does nothing: no gradient passes through the base, and it stores nothing for one."
    return method


_NO_MERGE = "nothing of an adapter can be merged, for the base stays as it is; unload() gives it back"
_PAGED = "inserted streams do not run in the base's paged attention; use generate, or the vLLM plugin"
_WEIGHTS = "it would change the frozen base; call it on base_model before it is wrapped"


class WrappedModel(nn.Module):
    """A wrapped model holds a frozen base and its adapters.

    Attributes that neither this class nor a subclass defines are the base's.

    Args:
        base_model: is frozen and put into evaluation mode.
    """

    _hf_peft_config_loaded = True
    """This tells Trainer that a quantised base is not what is trained."""

    def __init__(self, base_model: PreTrainedModel) -> None:
        super().__init__()
        self.base_model = base_model.requires_grad_(False).eval()
        if getattr(base_model, "_require_grads_hooks", None):  # they would store the base's graph for nothing
            base_model.disable_input_require_grads()
        self.adapters = nn.ModuleDict()
        self.register_forward_hook(_give_signals)
        self.register_load_state_dict_pre_hook(_fill_in_tied)
        self.register_load_state_dict_post_hook(_tie_again)

    @property
    def device(self) -> torch.device:
        """Returns the device of the inputs; of an offloaded base, where it computes."""
        return device_of(self.base_model.get_input_embeddings())

    def watch(self) -> None:
        """Hooks the base as it is now."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Special methods of the base, such as __deepcopy__, would act on the base alone.
            if name == "base_model" or (name.startswith("__") and name.endswith("__")):
                raise
            return getattr(self.base_model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets what is read from the base, such as `generation_config`, there."""
        base = self.__dict__.get("_modules", {}).get("base_model")
        is_local = base is None or hasattr(type(self), name) or name in self.__dict__ or name in self._modules
        if is_local or not hasattr(base, name):
            super().__setattr__(name, value)
        else:
            self._set_on_base(name, value)

    _set_on_base = _replacing("__setattr__")

    def train(self, mode: bool = True) -> Self:
        """Sets the training mode of the adapters. The frozen base stays in evaluation mode."""
        super().train(mode)
        self.base_model.eval()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Sets whether the adapters are trained. The base stays frozen."""
        self.adapters.requires_grad_(requires_grad)
        return self

    enable_input_require_grads = _needless("enable_input_require_grads")
    disable_input_require_grads = _needless("disable_input_require_grads")
    gradient_checkpointing_enable = _needless("gradient_checkpointing_enable")
    gradient_checkpointing_disable = _needless("gradient_checkpointing_disable")
    activation_checkpointing_enable = _needless("activation_checkpointing_enable")
    activation_checkpointing_disable = _needless("activation_checkpointing_disable")

    # -- sizes and tensors, of base and adapters -------------------------------------------------------------------

    num_parameters = PreTrainedModel.num_parameters
    get_memory_footprint = PreTrainedModel.get_memory_footprint

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Counts the inserted parameters that are trained, and all parameters."""
        return self.num_parameters(only_trainable=True), self.num_parameters()

    def print_trainable_parameters(self) -> None:
        """Prints `get_nb_trainable_parameters` and the share."""
        trainable, total = self.get_nb_trainable_parameters()
        print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f}")

    def _tied(self) -> dict[str, str]:
        """Maps the names of parameters that are tied to another to that one's name."""
        first = {parameter: name for name, parameter in self.named_parameters()}
        every = self.named_parameters(remove_duplicate=False)
        return {name: first[parameter] for name, parameter in every if first[parameter] != name}

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the tensors of base and adapters, tied ones once, so that they can be saved as safetensors."""
        state, prefix = super().state_dict(*args, **kwargs), kwargs.get("prefix", "")
        for name in self._tied():
            state.pop(prefix + name, None)
        return state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Applies what a module around this one applies to its parts. A base that is offloaded stays where it is."""
        if any(parameter.is_meta for parameter in self.base_model.parameters()):
            self.adapters._apply(fn, recurse)
            return self
        return super()._apply(fn, recurse)

    to, half, float, double = _moving("to"), _moving("half"), _moving("float"), _moving("double")
    bfloat16, cpu, cuda, to_empty = _moving("bfloat16"), _moving("cpu"), _moving("cuda"), _moving("to_empty")

    # -- of the base, with care ------------------------------------------------------------------------------------

    set_input_embeddings = _replacing("set_input_embeddings")
    set_output_embeddings = _replacing("set_output_embeddings")
    set_decoder = _replacing("set_decoder")
    tie_weights = _replacing("tie_weights")

    # -- what cannot be --------------------------------------------------------------------------------------------

    merge_and_unload = _refusing("merge_and_unload", _NO_MERGE)
    merge_adapter = _refusing("merge_adapter", _NO_MERGE)
    unmerge_adapter = _refusing("unmerge_adapter", _NO_MERGE)
    add_weighted_adapter = _refusing("add_weighted_adapter", "signals are added by who reads them, not adapters")
    enable_peft_hotswap = _refusing("enable_peft_hotswap", "use load_adapter and delete_adapter")
    generate_batch = _refusing("generate_batch", _PAGED)
    init_continuous_batching = _refusing("init_continuous_batching", _PAGED)
    continuous_batching_context_manager = _refusing("continuous_batching_context_manager", _PAGED)
    init_weights = _refusing("init_weights", _WEIGHTS)
    initialize_weights = _refusing("initialize_weights", _WEIGHTS)
    post_init = _refusing("post_init", _WEIGHTS)
    dequantize = _refusing("dequantize", _WEIGHTS)
    save_distributed_checkpoint = _refusing("save_distributed_checkpoint", "save_pretrained writes an adapter")
