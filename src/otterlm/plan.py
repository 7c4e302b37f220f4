"""Computes what an adapter costs, from configurations alone: models are built on the meta device, none is loaded."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from otterlm.adapter import Adapter
from otterlm.causal import check_causal
from otterlm.config import OtterConfig
from otterlm.detection import recognize
from otterlm.errors import OtterError, reason


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan has the space and the work of the base and of what is inserted.

    Attributes:
        base_parameters, inserted_parameters: counts.
        derived_parameters: numbers that are in memory but not in files: up projections folded with the unembedding.
        extra_space_saved: 1 - (inserted + derived) / base: against a separate model of the base's size.
        base_bytes, inserted_bytes: of the parameters (and derived ones) in `dtype`.
        base_kv_bytes_per_token, inserted_kv_bytes_per_token: of the KV cache in `dtype`.
        base_flops_per_token, inserted_flops_per_token: two for each multiply-add of a matrix product, at `context`
            tokens.
        context: tokens attended to.
        dtype: of parameters and cache.
    """

    base_parameters: int
    inserted_parameters: int
    derived_parameters: int
    extra_space_saved: float
    base_bytes: int
    inserted_bytes: int
    base_kv_bytes_per_token: int
    inserted_kv_bytes_per_token: int
    base_flops_per_token: int
    inserted_flops_per_token: int
    context: int
    dtype: str

    def to_dict(self) -> dict[str, int | float | str]:
        """Returns the plan for JSON."""
        return asdict(self)


def plan(
    base_config: PretrainedConfig, config: OtterConfig, dtype: torch.dtype = torch.float32, context: int = 512
) -> Plan:
    """Computes the costs of an adapter on a base.

    Raises:
        OtterError: the architecture is neither known nor recognised, or the adapter does not fit it.
    """
    base = _without_weights(base_config, dtype)
    check_causal(base)
    family = recognize(base)
    with torch.device("meta"):
        adapter = Adapter(config, base, family, dtype)
    widths, size = adapter.stream.widths, dtype.itemsize
    vocabulary = base.get_output_embeddings().weight.shape[0]
    derived = config.signal.derived_parameters(vocabulary)
    base_parameters, inserted = _count(base), _count(adapter)
    layers = widths.depth
    base_attention = 4 * context * layers * widths.base_heads * widths.base_head_dim
    extra_attention = 4 * context * len(widths.layers) * widths.heads * widths.head_dim
    # The unembedding is a product with every token; the embedding is a look-up.
    base_products = 2 * (_linear(base.get_decoder()) + base.get_output_embeddings().weight.numel())
    return Plan(
        base_parameters=base_parameters,
        inserted_parameters=inserted,
        derived_parameters=derived,
        extra_space_saved=1 - (inserted + derived) / base_parameters,
        base_bytes=base_parameters * size,
        inserted_bytes=(inserted + derived) * size,
        base_kv_bytes_per_token=2 * layers * widths.base_kv_heads * widths.base_head_dim * size,
        inserted_kv_bytes_per_token=2 * len(widths.layers) * widths.kv_heads * widths.head_dim * size,
        base_flops_per_token=base_products + base_attention,
        inserted_flops_per_token=2 * (_linear(adapter) + derived) + extra_attention,
        context=context,
        dtype=str(dtype).removeprefix("torch."),
    )


def _without_weights(config: PretrainedConfig, dtype: torch.dtype) -> Any:
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype)
    except Exception as error:
        raise OtterError(
            f"no causal language model can be made of this {config.model_type!r}: {reason(error)}"
        ) from error


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _linear(module: nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear | Conv1D))
