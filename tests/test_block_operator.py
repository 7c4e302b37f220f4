"""The C++ operator of widened blocks computes what `InsertedLayer` does, and is not needed."""

import logging
from typing import Any

import pytest
import torch
from conftest import needs_compiler, tiny_base, tiny_otter
from hypothesis import given, settings
from hypothesis import strategies as st

from otterlm.cache import CacheSlot
from otterlm.engines.vllm.events import logger
from otterlm.engines.vllm.kernels import building
from otterlm.engines.vllm.kernels.block import PackedBlock, Requests, cache_of, fits
from otterlm.errors import OtterError
from otterlm.rotary import Rotation
from otterlm.taps import LayerTaps

BLOCK, BLOCKS, POSITIONS = 64, 12, 200


def layer_of(model_type: str, dtype: torch.dtype = torch.float32, **config: Any) -> Any:
    base = tiny_base(model_type, hidden_size=48, head_dim=32, max_position_embeddings=POSITIONS)
    layer: Any = tiny_otter(base, dtype=dtype, **config).adapter("reward").stream.layers["1"]
    return layer


def expected(layer: Any, read: dict[str, torch.Tensor], angles: torch.Tensor, window: int | None) -> torch.Tensor:
    """Returns h' after the block for a whole text, in float64, `[T, d']`."""
    double: dict[str, Any] = {name: tensor.double()[None] for name, tensor in read.items()}
    inserted, tokens = double.pop("inserted"), len(read["inserted"])
    cos, sin = (torch.cat((table, table), dim=-1)[None] for table in (angles.cos(), angles.sin()))
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    mask = (distance >= 0) & (distance < (window or tokens))
    taps = LayerTaps(cache=None, rotary=(cos, sin), mask=mask[None, None], **double)
    rotation = Rotation(cos, sin, 1, "halves", torch.float64)
    with torch.no_grad():
        return layer.forward(inserted, taps, CacheSlot(0, 0, 0), rotation)[0]


@needs_compiler
@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["llama", "qwen2", "qwen3", "mistral"]),
    st.lists(st.tuples(st.integers(0, 90), st.integers(1, 9)), min_size=1, max_size=5),
    st.sampled_from([(1, 1), (3, 1), (4, 2), (2, 2)]),
    st.sampled_from([16, 32]),
    st.integers(1, 47),
    st.integers(1, 48),
    st.booleans(),
    st.sampled_from([None, 1, 20]),
    st.sampled_from([1, 3]),
)
def test_the_operator_is_the_layer(
    library, model_type, requests, heads, head_dim, width, units, narrow, window, threads
) -> None:
    """Requests have been read in part; the rest of all is read in one step. The cache's blocks are in any order."""
    layer = layer_of(
        model_type,
        hidden_size=width,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=head_dim,
        intermediate_size=units,
    )
    if narrow:
        layer.bfloat16().float()
    assert fits(layer)
    packed, widths = PackedBlock(library, layer), layer.attention.widths
    generator = torch.Generator().manual_seed(width)
    rotary_dim = head_dim if model_type == "llama" else head_dim // 2
    angles = torch.rand(POSITIONS, rotary_dim // 2, generator=generator, dtype=torch.float64)
    numbers = torch.full((BLOCKS, widths.kv_heads, BLOCK, 2 * head_dim), torch.nan)
    cache = cache_of(numbers, table := torch.cat((angles.cos(), angles.sin()), dim=-1).float(), window)
    assert table.shape == (POSITIONS, rotary_dim)
    sizes = {
        "hidden": widths.base,
        "attention_input": widths.base,
        "heads": widths.base_heads * widths.base_head_dim,
        "middle": widths.base,
        "ffn_input": widths.base,
        "units": widths.base_units,
        "inserted": width,
    }
    texts = [
        {name: torch.randn(before + new, size, generator=generator) for name, size in sizes.items()}
        for before, new in requests
    ]
    blocks = torch.randperm(BLOCKS, generator=generator)[: 2 * len(requests)].view(-1, 2).int()

    def step(parts: list[tuple[int, int]]) -> torch.Tensor:
        """Reads some tokens of each text, from one to another."""
        counts = torch.tensor([end - start for start, end in parts])
        positions = torch.cat([torch.arange(start, end) for start, end in parts])
        owners = torch.arange(len(parts)).repeat_interleave(counts)
        slots = blocks[owners, positions // BLOCK].long() * BLOCK + positions % BLOCK
        starts = torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0))).int()
        lengths = torch.tensor([end for _, end in parts], dtype=torch.int32)
        requests = Requests(starts, lengths, blocks, slots)
        read = {
            name: torch.cat([text[name][start:end] for text, (start, end) in zip(texts, parts, strict=True)])
            for name in sizes
        }
        middle = packed.attend(
            read["attention_input"],
            read["hidden"],
            read["inserted"],
            read["heads"],
            positions,
            requests.batch(),
            cache,
        )
        return packed.feed(read["ffn_input"], read["middle"], middle, read["units"])

    torch.set_num_threads(threads)
    step([(0, before) for before, _ in requests])
    ours = step([(before, before + new) for before, new in requests])
    torch.set_num_threads(1)
    layer.double()
    theirs = torch.cat(
        [
            expected(layer, text, angles[: before + new], window)[before:]
            for text, (before, new) in zip(texts, requests, strict=True)
        ]
    )
    scale = max(1.0, float(theirs.abs().max()))  # summands are about 1, and may cancel
    torch.testing.assert_close(ours.double(), theirs, rtol=2e-5, atol=2e-5 * scale)


@needs_compiler
def test_bfloat16_is_rounded_at_the_end(library) -> None:
    layer = layer_of("llama", torch.bfloat16, head_dim=32)
    packed, widths = PackedBlock(library, layer), layer.attention.widths
    x, hidden, inserted, units = (
        torch.randn(5, size).bfloat16() for size in (widths.base, widths.base, widths.inserted, widths.base_units)
    )
    ours = packed.feed(x, hidden, inserted, units)
    single = PackedBlock(library, layer.float()).feed(x.float(), hidden.float(), inserted.float(), units.float())
    assert torch.equal(ours, single.bfloat16())


@needs_compiler
def test_other_dtypes_are_refused(library) -> None:
    """An engine that changes what it gives must not have wrong memory read."""
    layer = layer_of("llama", head_dim=32)
    packed, widths = PackedBlock(library, layer), layer.attention.widths
    x, inserted, units = (torch.randn(2, size) for size in (widths.base, widths.inserted, widths.base_units))
    with pytest.raises(OtterError, match=r"float64.*float32.*OTTER_KERNELS=0"):
        packed.feed(x.double(), x, inserted, units)
    numbers = torch.tensor([0, 2])
    with pytest.raises(OtterError, match=r"int64.*int32"):
        Requests(numbers, numbers[1:].int(), numbers[None].int(), numbers).batch()


@pytest.mark.parametrize("model_type", ["gpt2", "gemma"])
def test_other_maths_does_not_fit(model_type) -> None:
    layer: Any = tiny_otter(tiny_base(model_type)).adapter("reward").stream.layers["1"]
    assert not fits(layer)


@pytest.mark.parametrize(
    ("compiler", "message"),
    [("no-such-compiler", "there is no C++ compiler 'no-such-compiler': install g++"), ("false", "false: it failed")],
)
def test_without_a_compiler_one_line_says_so(monkeypatch, tmp_path, caplog, compiler, message) -> None:
    monkeypatch.setattr(building, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(logger, "parent", logging.getLogger())  # as vLLM's keeps its lines
    monkeypatch.setenv("CXX", compiler)
    building.library.cache_clear()
    assert building.library() is None
    (line,) = caplog.messages
    assert "slower" in line
    assert message in line
    building.library.cache_clear()


def test_it_can_be_turned_off(monkeypatch, caplog) -> None:
    monkeypatch.setenv(building.SWITCH, "0")
    building.library.cache_clear()
    assert building.library() is None
    assert not caplog.messages
    building.library.cache_clear()
