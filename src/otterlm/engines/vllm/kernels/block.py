"""Calls the operator of `block.cpp`, with the weights of a layer in the order that it reads.

The operator needs nothing of an engine but memory: tensors are flat, `[T, channels]`, and the cache is an engine's own,
`[blocks, heads, block_size, 2 * head_dim]`, of which the operator writes and reads the insides as it likes.
"""

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from otterlm.engines.vllm.kernels.building import SWITCH
from otterlm.errors import OtterError
from otterlm.stream import InsertedLayer

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
POINTER, COUNT = ctypes.c_void_p, ctypes.c_int64


def _structure(name: str, **fields: str) -> type[ctypes.Structure]:
    """Makes a structure of fields of each type, in the order of `block.cpp`."""
    types = {"counts": COUNT, "numbers": ctypes.c_float, "switches": ctypes.c_int32, "pointers": POINTER}
    pairs = [(field, types[kind]) for kind, names in fields.items() for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": pairs})


Layer = _structure(
    "Layer",
    counts="base inserted heads kv_heads head_dim base_heads units base_units",
    numbers="scaling epsilon head_epsilon",
    switches="narrow",
    pointers="qkv out gate_up down qkv_bias out_bias gate_up_bias down_bias "
    "attention_norm ffn_norm query_norm key_norm",
)
Batch = _structure("Batch", counts="requests table_stride", pointers="starts lengths table slots")
Cache = _structure("Cache", pointers="numbers rotary", counts="block_stride head_stride block_size window rotary_dim")


def fits(layer: InsertedLayer) -> bool:
    """Says whether the operator has the maths of a layer: RMS norms before, gated units with SiLU."""
    norms = layer.attention_norm, layer.ffn_norm
    return (
        all(norm is not None and not norm.centred and norm.bias is None for norm in norms)
        and not layer.parallel
        and layer.residual == 1
        and layer.attention_post_norm is None
        and layer.ffn_post_norm is None
        and layer.ffn.gated
        and type(layer.ffn.activation) is type(ACT2FN["silu"])
        and layer.attention.widths.head_dim % 16 == 0
        and layer.attention.qkv.weight.dtype in DTYPES
    )


class Requests(NamedTuple):
    """The requests of a step have its tokens in a row.

    Attributes:
        starts: the first token of each, and how many there are, `[R + 1]` int32.
        lengths: tokens of each, with those of earlier steps, `[R]` int32.
        table: the blocks of the cache that each one has, `[R, blocks]` int32.
        slots: where the cache holds each token, `[T]` int64: block * block_size + offset; negative: nowhere.
    """

    starts: Tensor
    lengths: Tensor
    table: Tensor
    slots: Tensor

    def batch(self) -> Any:
        """Returns them as the operator reads them. The tensors must outlive it.

        Raises:
            OtterError: a tensor has another dtype.
        """
        expected = torch.int32, torch.int32, torch.int32, torch.int64
        pointers = [_address(each, dtype) for each, dtype in zip(self, expected, strict=True)]
        return Batch(len(self.lengths), self.table.stride(0), *pointers)


class PackedBlock(nn.Module):
    """Holds a layer's weights in the operator's order, and runs it.

    Weights that are exactly those of bfloat16 are stored so: a pass reads half as much, and the sums are the same.

    Args:
        library: the built operator.
        layer: one that `fits`.
    """

    def __init__(self, library: ctypes.CDLL, layer: InsertedLayer) -> None:
        super().__init__()
        attention, ffn, widths = layer.attention, layer.ffn, layer.attention.widths
        norm: Any = layer.attention_norm
        linears = {"qkv": attention.qkv, "out": attention.out, "gate_up": ffn.gate_up, "down": ffn.down}
        narrow = all(torch.equal(each.weight, each.weight.bfloat16().to(each.weight)) for each in linears.values())
        self._tensors = {name: _packed(library, each.weight, narrow) for name, each in linears.items()}
        panel: int = library.otter_panel()
        vectors: dict[str, Tensor | None] = {f"{name}_bias": each.bias for name, each in linears.items()}
        norms: dict[str, Any] = {"query_norm": attention.query_norm, "key_norm": attention.key_norm}
        norms |= {"attention_norm": layer.attention_norm, "ffn_norm": layer.ffn_norm}
        vectors |= {name: None if each is None else each.weight for name, each in norms.items()}
        for name, vector in vectors.items():
            if vector is not None:
                padding = -len(vector) % panel
                self._tensors[name] = nn.functional.pad(vector.detach().float(), (0, padding)).contiguous()
        self._layer = Layer(
            base=widths.base,
            inserted=widths.inserted,
            heads=widths.heads,
            kv_heads=widths.kv_heads,
            head_dim=widths.head_dim,
            base_heads=widths.base_heads * widths.base_head_dim,
            units=widths.units,
            base_units=widths.base_units,
            scaling=attention.scaling,
            epsilon=float(norm.eps),
            head_epsilon=0.0 if attention.query_norm is None else attention.query_norm.eps,
            narrow=narrow,
            **{name: tensor.data_ptr() for name, tensor in self._tensors.items()},
        )
        dtype = attention.qkv.weight.dtype
        self._dtype = dtype
        self._attend = _function(library, f"otter_attend_{DTYPES[dtype]}", 3, 7)
        self._feed = _function(library, f"otter_feed_{DTYPES[dtype]}", 1, 6)
        self._reference = ctypes.byref(self._layer)
        # What the operator stores between its products, in float32: numbers a token. Each width is rounded up.
        channels = (widths.heads + 2 * widths.kv_heads) * widths.head_dim
        heads = [2 * widths.inserted, channels, widths.heads * widths.head_dim]
        units = [2 * widths.inserted, 2 * widths.units, widths.units]
        if dtype != torch.float32:
            heads += [widths.base, self._layer.base_heads]
            units += [widths.base, widths.base_units]
        self._attend_buffer, self._feed_buffer = (sum(parts) + panel * (len(parts) + 1) for parts in (heads, units))

    def attend(
        self, x: Tensor, hidden: Tensor, inserted: Tensor, heads: Tensor, positions: Tensor, batch: Any, cache: Any
    ) -> Tensor:
        """Adds what the extra heads give, and writes their keys and values to the cache.

        Args:
            x: what the base's attention reads, `[T, d]`.
            hidden: h before the block, `[T, d]`.
            inserted: h' before the block, `[T, d']`.
            heads: of the base, `[T, H * head_dim]`.
            positions: of the tokens, `[T]` int64.
            batch: of `Requests.batch`.
            cache: of `cache_of`.

        Returns:
            h' in the middle of the block, `[T, d']`.

        Raises:
            OtterError: a tensor has another dtype than the layer.
        """
        tensors = [each.contiguous() for each in (x, hidden, inserted, heads)]
        read = [_address(each, self._dtype) for each in tensors]
        out, buffer = torch.empty_like(tensors[2]), torch.empty(len(inserted) * self._attend_buffer)
        references = self._reference, ctypes.byref(batch), ctypes.byref(cache)
        at = _address(positions, torch.int64)
        self._attend(*references, len(inserted), *read, at, buffer.data_ptr(), out.data_ptr())
        return out

    def feed(self, x: Tensor, hidden: Tensor, inserted: Tensor, units: Tensor) -> Tensor:
        """Adds what the extra units give.

        Args:
            x: what the base's FFN reads, `[T, d]`.
            hidden: h in the middle of the block, `[T, d]`.
            inserted: h' in the middle of the block, `[T, d']`.
            units: of the base, `[T, f]`.

        Returns:
            h' after the block, `[T, d']`.

        Raises:
            OtterError: a tensor has another dtype than the layer.
        """
        tensors = [each.contiguous() for each in (x, hidden, inserted, units)]
        read = [_address(each, self._dtype) for each in tensors]
        out, buffer = torch.empty_like(tensors[2]), torch.empty(len(inserted) * self._feed_buffer)
        self._feed(self._reference, len(inserted), *read, buffer.data_ptr(), out.data_ptr())
        return out


def cache_of(numbers: Tensor, rotary: Tensor, window: int | None) -> Any:
    """Returns a layer's cache as the operator reads it. The tensors must outlive it.

    Args:
        numbers: `[blocks, heads, block_size, 2 * head_dim]`.
        rotary: cosines and sines, `[positions, rotary_dim]` float32.
        window: how many tokens a query sees, itself among them; None: all.
    """
    block_stride, head_stride, *_ = numbers.stride()
    sizes = block_stride, head_stride, numbers.shape[2], -1 if window is None else window, rotary.shape[1]
    return Cache(numbers.data_ptr(), rotary.data_ptr(), *sizes)


def _function(library: ctypes.CDLL, name: str, structures: int, tensors: int) -> Callable[..., None]:
    function = getattr(library, name)
    function.argtypes = [POINTER] * structures + [COUNT] + [POINTER] * tensors
    function.restype = None
    return function


def _address(tensor: Tensor, dtype: torch.dtype) -> int:
    if tensor.dtype != dtype:
        raise OtterError(f"a tensor of the engine is {tensor.dtype}, not {dtype}: start it with {SWITCH}=0")
    return tensor.data_ptr()


def _padded(size: int, panel: int) -> int:
    return -(-size // panel) * panel


def _packed(library: ctypes.CDLL, weight: Tensor, narrow: bool) -> Tensor:
    outputs, channels = weight.shape
    rows = weight.detach().float().contiguous()
    dtype = torch.bfloat16 if narrow else torch.float32
    packed = torch.empty(_padded(outputs, library.otter_panel()) * channels, dtype=dtype)
    library.otter_pack(POINTER(rows.data_ptr()), COUNT(outputs), COUNT(channels), narrow, POINTER(packed.data_ptr()))
    return packed
