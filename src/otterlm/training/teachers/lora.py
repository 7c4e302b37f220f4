"""Trains a copy of a base by LoRA (arXiv 2106.09685), where a full fine-tune does not fit, and folds it in.

It needs PEFT: pip install 'otter-lm[bench]'.
"""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from otterlm.errors import OtterError


def insert_lora(model: PreTrainedModel, rank: int, recompute: bool = True) -> None:
    """Freezes a model and inserts LoRA into all its linear layers but the unembedding.

    What LoRA learns is float32, whatever the model's precision is.

    Args:
        model: the model.
        rank: of LoRA.
        recompute: whether blocks are computed again for the backward pass, so that only the states between them are in
            memory.

    Raises:
        OtterError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise OtterError("LoRA needs PEFT: pip install 'otter-lm[bench]'") from error
    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"), model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if recompute and model.supports_gradient_checkpointing:
        older: Any = model.gradient_checkpointing_enable  # which newer Transformers call deprecated
        getattr(model, "activation_checkpointing_enable", older)({"use_reentrant": False})


def merge_lora(model: nn.Module) -> None:
    """Folds LoRA into the weights: what is left has the size and the speed of a full fine-tune."""
    from peft.tuners.lora import LoraLayer

    for path, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, module.get_base_layer())
