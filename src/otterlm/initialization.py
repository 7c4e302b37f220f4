"""Values the inserted parameters start from. The paper found slices of the base's own parameters better than noise.

`copy` makes the stream start as an exact slice: A holds the matching rows of W, B is zero, and so h' is h's first d'
channels at every widened block (where all are widened). The columns that read the extra heads and units are zero too,
as in LoRA one side of a product must be: the other side then decides what they learn.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.families import Family, family_of
from otterlm.stream import InsertedLayer, InsertedStream, Widths


@torch.no_grad()
def initialize(stream: InsertedStream, config: OtterConfig, base: PreTrainedModel) -> None:
    """Fills the parameters of a new stream, as `config.initialization` says.

    Raises:
        OtterError: `copy`, and the base's weights cannot be sliced (they are quantised).
    """
    for module in stream.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            if config.initialization == "normal":
                nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
            else:
                module.reset_parameters()
        elif isinstance(weight := getattr(module, "weight", None), nn.Parameter):
            nn.init.ones_(weight)
    if config.initialization == "copy":
        _copy_slices(stream, base)


def _copy_slices(stream: InsertedStream, base: PreTrainedModel) -> None:
    family, decoder, width = family_of(base.config), base.get_decoder(), stream.widths.inserted
    if stream.table is not None:
        stream.table.weight.copy_(decoder.get_submodule(family.embedding).weight[:, :width])
    if stream.projection is not None:
        stream.projection.weight.copy_(torch.eye(width, stream.widths.base))
    for index, layer in stream.layers.items():
        block = decoder.get_submodule(family.layers)[int(index)]
        _copy_layer(layer, block, family, stream.widths)
    stream.final_norm.weight.copy_(decoder.get_submodule(family.final_norm).weight[:width])


def _copy_layer(layer: nn.Module, block: nn.Module, family: Family, widths: Widths) -> None:
    assert isinstance(layer, InsertedLayer)

    def linear(path: str) -> tuple[Tensor, Tensor | None]:
        module = block.get_submodule(path)
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.dim() != 2:
            raise OtterError(f"the base's {path} cannot be sliced (quantised?): choose initialization random or normal")
        return weight, getattr(module, "bias", None)

    queries = _head_rows(widths, widths.heads // widths.kv_heads, widths.base_heads // widths.base_kv_heads)
    keys = _head_rows(widths, 1, 1)
    attention, ffn = layer.attention, layer.ffn
    rows = ((family.query, queries), (family.key, keys), (family.value, keys))
    _fill(attention.qkv, [(*linear(path), index) for path, index in rows])
    inserted, units = torch.arange(widths.inserted), torch.arange(widths.units)
    _fill(attention.out, [(*linear(family.attention_output), inserted)])
    _fill(ffn.gate_up, [(*linear(path), units) for path in (family.gate, family.up)])
    _fill(ffn.down, [(*linear(family.down), inserted)])
    for norm, path in ((layer.attention_norm, family.attention_norm), (layer.ffn_norm, family.ffn_norm)):
        _copy_norm(norm, block.get_submodule(path), inserted)
    channels = _head_channels(widths)
    for head_norm, where in ((attention.query_norm, family.query_norm), (attention.key_norm, family.key_norm)):
        if head_norm is not None and where is not None:
            _copy_norm(head_norm, block.get_submodule(where), channels)


def _fill(target: nn.Linear, parts: list[tuple[Tensor, Tensor | None, Tensor]]) -> None:
    """A = the named rows of each part's weight (and bias), B = 0."""
    weight = torch.cat([weight[rows] for weight, _, rows in parts])
    target.weight.zero_()
    target.weight[:, : weight.shape[1]] = weight
    if target.bias is not None:
        target.bias.copy_(torch.cat([bias[rows] for _, bias, rows in parts if bias is not None]))


def _copy_norm(norm: nn.Module, base_norm: nn.Module, channels: Tensor) -> None:
    assert isinstance(norm.weight, Tensor)
    assert isinstance(base_norm.weight, Tensor)
    norm.weight.copy_(base_norm.weight[channels])


def _head_channels(widths: Widths) -> Tensor:
    """The channels of a base head that a smaller head keeps: RoPE's pairs (i, i + head_dim / 2) stay pairs."""
    half = torch.arange(widths.base_head_dim // 2)[:: widths.base_head_dim // widths.head_dim]
    return torch.cat((half, half + widths.base_head_dim // 2))


def _head_rows(widths: Widths, copies: int, group: int) -> Tensor:
    """Rows of a base projection that are copied: of the first key/value groups, `copies` heads out of the `group` in
    each."""
    heads = [kv * group + copy % group for kv in range(widths.kv_heads) for copy in range(copies)]
    return torch.cat([head * widths.base_head_dim + _head_channels(widths) for head in heads])
