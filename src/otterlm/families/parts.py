"""Reads parts of a block and their weights, whatever module holds them, for the stream and its initialisation."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from otterlm.causal import decoder_of
from otterlm.errors import OtterError
from otterlm.families.facts import decoder_config, layer_type, logit_transform, number
from otterlm.families.family import Family, Outline


def blocks_of(base: Any, family: Outline) -> Any:
    """Returns the blocks of a base."""
    return decoder_of(base).get_submodule(family.layers)


def part_of(block: nn.Module, path: str | None) -> nn.Module | None:
    """Returns a part by its path; None where the family or this block does not have it."""
    module: Any = block
    for name in (path or "").split("."):
        module = getattr(module, name, None) if path else None
    return module


def tensor_of(module: nn.Module, name: str) -> Tensor | None:
    """Returns a module's weight or bias. One that accelerate has offloaded is read for this one use."""
    tensor = getattr(module, name, None)
    if not isinstance(tensor, Tensor):
        return None
    hook: Any = getattr(module, "_hf_hook", None)
    for part in getattr(hook, "hooks", (hook,)) if tensor.is_meta else ():
        if getattr(part, "weights_map", None) is not None:
            return part.weights_map[name].to(part.execution_device)
    return tensor


def weight_of(module: nn.Module) -> Tensor:
    """Returns a module's weight, see `tensor_of`.

    Raises:
        OtterError: it has none.
    """
    weight = tensor_of(module, "weight")
    if weight is None:
        raise OtterError(f"the base's {type(module).__name__} has no weight")
    return weight


def device_of(module: nn.Module) -> torch.device:
    """Returns the device that a module, or its first part with weights, computes on.

    Raises:
        OtterError: no part has weights.
    """
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
        if (parameter := next(part.parameters(recurse=False), None)) is not None:
            return parameter.device
    raise OtterError(f"the base's {type(module).__name__} has no weight")


def is_biased(block: nn.Module, path: str) -> bool:
    """Returns whether a projection adds a bias."""
    return getattr(block.get_submodule(path), "bias", None) is not None


def inputs_of(module: nn.Module) -> int:
    """Returns how many channels a projection reads."""
    features = getattr(module, "in_features", None)
    return int(weight_of(module).shape[0] if features is None else features)  # GPT-2's Conv1D is transposed


def norm_eps(norm: nn.Module) -> float:
    """Returns a norm's epsilon, whatever its name there; of a norm for each head, the first one's."""
    for part in norm.modules():
        for name in ("variance_epsilon", "eps"):
            if hasattr(part, name):
                return float(getattr(part, name))
    raise OtterError(f"{type(norm).__name__} has no epsilon: is it a norm?")


def matrix(block: nn.Module, path: str) -> tuple[Tensor, Tensor | None]:
    """Returns weight `[out, in]` and bias of a projection; of a quantised one, dequantised.

    Raises:
        OtterError: it has none that can be sliced.
    """
    module = block.get_submodule(path)
    weight = tensor_of(module, "weight")
    if weight is not None and type(weight.data) is not Tensor:
        weight = weight.dequantize()  # such as torchao's
    if weight is None or not weight.is_floating_point() or weight.dim() != 2:
        raise OtterError(f"the base's {path} cannot be sliced (quantised?): choose initialization random or normal")
    return weight.T if isinstance(module, Conv1D) else weight, tensor_of(module, "bias")


Rows = tuple[Tensor, Tensor | None]


def query_key_value(
    block: nn.Module, family: Family, heads: int, kv_heads: int, head_dim: int
) -> tuple[Rows, Rows, Rows]:
    """Returns the three projections, apart, `[heads * head_dim, d]` each, and their biases."""
    projections = [matrix(block, path) for path in family.query_key_value]
    if len(projections) == 3:
        return projections[0], projections[1], projections[2]
    weight, bias = projections[0]
    groups = heads // kv_heads
    row = torch.arange(weight.shape[0], device=weight.device)
    if family.fused == "stacked":
        parts = row.split((heads * head_dim, kv_heads * head_dim, kv_heads * head_dim))
    else:
        grouped = row.view(kv_heads, groups + 2, head_dim)
        parts = grouped[:, :-2].flatten(), grouped[:, -2].flatten(), grouped[:, -1].flatten()
    query, key, value = ((weight[part], None if bias is None else bias[part]) for part in parts)
    return query, key, value


def gate_up(block: nn.Module, family: Family) -> list[Rows]:
    """Returns the projections into the FFN's units: gate and up, or up alone; none for experts."""
    projections = [matrix(block, path) for path in family.gate_up]
    if not family.gated or len(projections) != 1:
        return projections
    weight, bias = projections[0]
    biases = (None, None) if bias is None else bias.chunk(2)
    return list(zip(weight.chunk(2), biases, strict=True))


def embedding_slice(base: Any, family: Outline, width: int) -> Tensor:
    """Returns the first channels of all tokens' embeddings, `[V, width]`, as they enter the first block."""
    embedding = decoder_of(base).get_submodule(family.embedding)
    table = weight_of(embedding)[: decoder_config(base).vocab_size, :width]
    table = table * getattr(embedding, family.embedding_scale, 1)
    multiplier = number(decoder_config(base), family.embedding_multiplier)
    return table if multiplier is None else table * multiplier


def base_logits(base: Any, family: Outline, normed: Tensor) -> Tensor:
    """Returns a base's logits, `[..., V]`, of its last state after the final norm, `[..., d]`."""
    logits = base.get_output_embeddings()(normed)
    factor, cap = logit_transform(decoder_config(base), family)
    logits = logits if factor is None else logits * factor
    return logits if cap is None else cap * torch.tanh(logits / cap)


def rotary_table(base: Any, family: Family, layer: int, state: Tensor, positions: Tensor) -> Any:
    """Returns cos and sin of positions, `[B, T, rotated channels]` each, as a block reads them; None without RoPE.

    Args:
        base: the model.
        family: its family.
        layer: the block.
        state: of the dtype and on the device that are wanted.
        positions: `[B, T]`.
    """
    if family.rotary is None:
        return None
    rotary = decoder_of(base).get_submodule(family.rotary)
    if not hasattr(rotary, "layer_types"):
        return rotary(state, positions)
    return rotary(state, positions, layer_type(decoder_config(base), family, layer))
