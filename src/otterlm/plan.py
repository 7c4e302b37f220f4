"""Computes what an adapter costs, from configurations alone: models are built on the meta device, none is loaded."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from otterlm.adapter import Adapter
from otterlm.causal import check_causal, decoder_of
from otterlm.config import OtterConfig
from otterlm.detection import recognize
from otterlm.errors import OtterError, reason
from otterlm.families import Family
from otterlm.widths import sizes_inside


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan has the space and the work of the base and of what is inserted.

    Attributes:
        base_parameters, inserted_parameters: counts.
        derived_parameters: numbers that are in memory but not in files: up projections folded with the unembedding.
        extra_space_saved: 1 - (inserted + derived) / base: against a separate model of the base's size.
        base_bytes, inserted_bytes: of the parameters (and derived ones) in `dtype`.
        base_kv_bytes_per_token, inserted_kv_bytes_per_token: of the KV cache in `dtype`; None where the base's blocks
            are not known inside.
        base_flops_per_token, inserted_flops_per_token: two for each multiply-add of a matrix product, at `context`
            tokens; of blocks that are not known inside, without their attention.
        context: tokens attended to.
        dtype: of parameters and cache.
        taps: how the adapter reads blocks, `inside` or `edge`.
        edge_because: why the base's blocks can be read at their edge alone; None where they are known inside.
    """

    base_parameters: int
    inserted_parameters: int
    derived_parameters: int
    extra_space_saved: float
    base_bytes: int
    inserted_bytes: int
    base_kv_bytes_per_token: int | None
    inserted_kv_bytes_per_token: int
    base_flops_per_token: int
    inserted_flops_per_token: int
    context: int
    dtype: str
    taps: str
    edge_because: str | None

    def to_dict(self) -> dict[str, int | float | str | None]:
        """Returns the plan for JSON."""
        return asdict(self)


def plan(
    base_config: PretrainedConfig, config: OtterConfig, dtype: torch.dtype = torch.float32, context: int = 512
) -> Plan:
    """Computes the costs of an adapter on a base.

    Raises:
        OtterError: the architecture cannot be read, or the adapter does not fit it.
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
    base_attention, base_kv = 0, None
    if isinstance(family, Family):
        of_base = sizes_inside(base, family)
        base_attention = 4 * context * widths.depth * of_base["base_heads"] * of_base["base_head_dim"]
        base_kv = 2 * widths.depth * of_base["base_kv_heads"] * of_base["base_head_dim"] * size
    extra_attention = 4 * context * len(widths.layers) * widths.heads * widths.head_dim
    # The unembedding is a product with every token; the embedding is a look-up.
    base_products = 2 * (_linear(decoder_of(base)) + base.get_output_embeddings().weight.numel())
    return Plan(
        base_parameters=base_parameters,
        inserted_parameters=inserted,
        derived_parameters=derived,
        extra_space_saved=1 - (inserted + derived) / base_parameters,
        base_bytes=base_parameters * size,
        inserted_bytes=(inserted + derived) * size,
        base_kv_bytes_per_token=base_kv,
        inserted_kv_bytes_per_token=2 * len(widths.layers) * widths.kv_heads * widths.head_dim * size,
        base_flops_per_token=base_products + base_attention,
        inserted_flops_per_token=2 * (_linear(adapter) + derived) + extra_attention,
        context=context,
        dtype=str(dtype).removeprefix("torch."),
        taps="inside" if adapter.stream.inside else "edge",
        edge_because=None if isinstance(family, Family) else family.why,
    )


def _without_weights(config: PretrainedConfig, dtype: torch.dtype) -> Any:
    try:
        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(config, dtype=dtype)
        return made.to("meta")  # some classes make parameters elsewhere
    except Exception as error:
        raise OtterError(
            f"no causal language model can be made of this {config.model_type!r}: {reason(error)}"
        ) from error


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _linear(module: nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear | Conv1D))
