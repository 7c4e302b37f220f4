"""Sets the values that the inserted parameters start from.

In the paper slices of the base's parameters are better than noise.

`copy` makes the stream start as an exact slice: h' is h's first d' channels at every widened block (where all are
widened). Inside a block, A holds the matching rows of W, and B is zero; at its edge, h' takes its slice of what the
block adds. The columns that read the extra heads and units are zero: as in LoRA, one factor starts at zero.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from otterlm.causal import decoder_of
from otterlm.config import OtterConfig
from otterlm.edge import EdgeLayer
from otterlm.families import Family, Outline
from otterlm.families.facts import decoder_config
from otterlm.families.parts import (
    blocks_of,
    embedding_slice,
    gate_up,
    matrix,
    query_key_value,
    tensor_of,
)
from otterlm.norms import HeadNorm, InsertedNorm
from otterlm.stream import InsertedLayer, InsertedStream
from otterlm.widths import Widths


@torch.no_grad()
def initialize(stream: InsertedStream, config: OtterConfig, base: PreTrainedModel, family: Outline) -> None:
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
        elif isinstance(module, InsertedNorm | HeadNorm):
            nn.init.ones_(module.weight)
            if isinstance(module, InsertedNorm) and module.bias is not None:
                nn.init.zeros_(module.bias)
    if config.initialization == "copy":
        _copy_slices(stream, base, family)


@torch.no_grad()
def fit_table(stream: InsertedStream, base: PreTrainedModel, family: Outline) -> None:
    """Resizes the stream's table, where it has one, to a row for each token that the base has now.

    Rows for tokens that it does not know yet start as slices of the base's.
    """
    rows = decoder_config(base).vocab_size
    if stream.table is not None and stream.table.num_embeddings != rows:
        former = stream.table.weight
        stream.resize_table(rows)
        stream.table.weight.copy_(embedding_slice(base, family, stream.widths.inserted))
        shared = min(rows, len(former))
        stream.table.weight[:shared] = former[:shared]


def _copy_slices(stream: InsertedStream, base: PreTrainedModel, family: Outline) -> None:
    width = stream.widths.inserted
    if stream.table is not None:
        stream.table.weight.copy_(embedding_slice(base, family, stream.widths.inserted))
    if stream.projection is not None:
        stream.projection.weight.copy_(torch.eye(width, stream.widths.base))
    for index, layer in stream.layers.items():
        if isinstance(family, Family):
            _copy_layer(layer, blocks_of(base, family)[int(index)], family, stream.widths)
        else:
            _follow_state(layer, stream.widths)
    if isinstance(family, Family):
        _copy_norm(stream.final_norm, decoder_of(base).get_submodule(family.final_norm), torch.arange(width), family)


def _follow_state(layer: nn.Module, widths: Widths) -> None:
    """Lets h' take its slice of what a block adds: it starts as a slice of h, though there is nothing to copy."""
    assert isinstance(layer, EdgeLayer)
    layer.attention.out.weight.zero_()
    layer.ffn.down.weight.copy_(torch.eye(widths.inserted, widths.base + widths.units))


def _copy_layer(layer: nn.Module, block: nn.Module, family: Family, widths: Widths) -> None:
    assert isinstance(layer, InsertedLayer)
    queries = _head_rows(widths, family, widths.heads // widths.kv_heads, widths.base_heads // widths.base_kv_heads)
    keys = _head_rows(widths, family, 1, 1)
    attention, ffn = layer.attention, layer.ffn
    projections = query_key_value(block, family, widths.base_heads, widths.base_kv_heads, widths.base_head_dim)
    _fill(attention.qkv, [(*rows, index) for rows, index in zip(projections, (queries, keys, keys), strict=True)])
    inserted, units = torch.arange(widths.inserted), torch.arange(widths.units)
    _fill(attention.out, [(*matrix(block, family.attention_output), inserted)])
    if family.down is None:
        # Experts: h' takes its slice of their output; the inserted units have no model to copy.
        _fill(ffn.down, [(torch.eye(widths.base, device=ffn.down.weight.device), None, inserted)])
    else:
        _fill(ffn.gate_up, [(*rows, units) for rows in gate_up(block, family)])
        _fill(ffn.down, [(*matrix(block, family.down), inserted)])
    for norm, path in (
        (layer.attention_norm, family.attention_norm),
        (layer.attention_post_norm, family.attention_post_norm),
        (layer.ffn_norm, family.ffn_norm),
        (layer.ffn_post_norm, family.ffn_post_norm),
    ):
        if norm is not None and path is not None:
            _copy_norm(norm, block.get_submodule(path), inserted, family)
    channels = _head_channels(widths, family)
    for head_norm, path in ((attention.query_norm, family.query_norm), (attention.key_norm, family.key_norm)):
        if head_norm is not None and path is not None:
            # Where the base's heads have a norm each, or one over all of them, the first head's.
            weights = (tensor_of(part, "weight") for part in block.get_submodule(path).modules())
            weight = next((weight for weight in weights if weight is not None), None)
            if weight is not None:
                head_norm.weight.copy_(weight.reshape(-1, widths.base_head_dim)[0][channels] + family.norm_offset)


def _fill(target: nn.Linear, parts: list[tuple[Tensor, Tensor | None, Tensor]]) -> None:
    """Sets A to the named rows of each part's weight (and bias), and B to 0."""
    weight = torch.cat([weight[rows] for weight, _, rows in parts])
    target.weight.zero_()
    target.weight[:, : weight.shape[1]] = weight
    if target.bias is not None:
        target.bias.copy_(torch.cat([bias[rows] for _, bias, rows in parts if bias is not None]))


def _copy_norm(norm: InsertedNorm, base_norm: nn.Module, channels: Tensor, family: Family) -> None:
    weight, bias = tensor_of(base_norm, "weight"), tensor_of(base_norm, "bias")
    if weight is not None:
        norm.weight.copy_(weight[channels] + family.norm_offset)
    if norm.bias is not None and bias is not None:
        norm.bias.copy_(bias[channels])


def _head_channels(widths: Widths, family: Family) -> Tensor:
    """Returns the channels of a base head that a smaller head has. Channels that RoPE pairs stay a pair."""
    stride = widths.base_head_dim // widths.head_dim
    if family.rotation == "pairs":
        first = torch.arange(0, widths.base_head_dim, 2)[::stride]
        return torch.stack((first, first + 1), dim=1).flatten()
    half = torch.arange(widths.base_head_dim // 2)[::stride]
    return torch.cat((half, half + widths.base_head_dim // 2))


def _head_rows(widths: Widths, family: Family, copies: int, group: int) -> Tensor:
    """Returns the rows of a base projection that are copied.

    They are of the first key/value groups, `copies` heads out of the `group` in each.
    """
    heads = [kv * group + copy % group for kv in range(widths.kv_heads) for copy in range(copies)]
    return torch.cat([head * widths.base_head_dim + _head_channels(widths, family) for head in heads])
