"""Computes the paper's widened pass naively: whole matrices [[W, 0], [A, B]], one head and one token at a time."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from otterlm.adapter import Adapter


def widen(base: nn.Linear, ours_weight: Tensor, ours_bias: Tensor | None, inserted: int) -> tuple[Tensor, Tensor]:
    """[[W, 0], [A, B]] and [b, b']; `inserted` is how many of the input's channels are ours."""
    zero = torch.zeros(base.weight.shape[0], inserted, dtype=torch.float64)
    weight = torch.cat((torch.cat((base.weight.double(), zero), dim=1), ours_weight.double()))
    none = [torch.zeros(len(base.weight)), torch.zeros(len(ours_weight))]
    biases = [bias if bias is not None else zeros for bias, zeros in zip((base.bias, ours_bias), none, strict=True)]
    return weight, torch.cat([bias.double() for bias in biases])


def norm(state: Tensor, base: Any, inserted: Any, width: int, eps: float) -> Tensor:
    """Normalises by statistics of the first `width` channels, weights of both."""
    scale = 1 / (state[:, :width].square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return state * scale * torch.cat((base.weight, inserted.weight)).double()


def rope(vector: Tensor, position: int, theta: float) -> Tensor:
    """Turns channel pairs (i, i + n / 2) of one head of one token."""
    size, turned = len(vector), torch.empty_like(vector)
    for i in range(size // 2):
        angle = torch.tensor(position * theta ** (-2 * i / size), dtype=torch.float64)
        left, right = vector[i], vector[i + size // 2]
        turned[i] = left * angle.cos() - right * angle.sin()
        turned[i + size // 2] = right * angle.cos() + left * angle.sin()
    return turned


def head_norm(vector: Tensor, module: Any, eps: float) -> Tensor:
    """Applies RMSNorm to one head of one token, where the family has it."""
    return vector if module is None else vector / (vector.square().mean() + eps).sqrt() * module.weight.double()


def attend(queries: list[Tensor], keys: list[Tensor], values: list[Tensor], window: int | None) -> list[Tensor]:
    """Computes one causal head over a sequence."""
    outputs = []
    for t, query in enumerate(queries):
        seen = range(0 if window is None else max(0, t - window + 1), t + 1)
        scores = torch.stack([query @ keys[s] / len(query) ** 0.5 for s in seen])
        outputs.append(sum(p * values[s] for p, s in zip(scores.softmax(0), seen, strict=True)))
    return outputs


@torch.no_grad()
def widened_states(base: PreTrainedModel, adapter: Adapter, ids: Tensor) -> Tensor:
    """Returns [h, h'] after the final norm for one sequence of ids, `[T, d + d']` float64."""
    config, stream, w, decoder = base.config, adapter.stream, adapter.stream.widths, base.get_decoder()
    theta, eps = config.rope_parameters["rope_theta"], config.rms_norm_eps
    window = getattr(config, "sliding_window", None)
    state = decoder.embed_tokens.weight[ids].double()
    inserted = None if stream.table is None else stream.table.weight[ids].double()
    for index, block in enumerate(decoder.layers):
        if index not in w.layers:
            state = _plain_block(block, state, w, theta, eps, window)
            continue
        if inserted is None:
            assert stream.projection is not None
            inserted = state @ stream.projection.weight.double().T
        both = _widened_block(
            block, stream.layers[str(index)], torch.cat((state, inserted), -1), w, config.hidden_act, theta, eps, window
        )
        state, inserted = both[:, : w.base], both[:, w.base :]
    assert inserted is not None
    return norm(torch.cat((state, inserted), -1), decoder.norm, stream.final_norm, w.base, eps)


def _widened_block(block, ours, state, w, activation, theta, eps, window):
    attention, extra = block.self_attn, ours.attention
    x = norm(state, block.input_layernorm, ours.attention_norm, w.base, eps)
    q, k, v = (w.heads * w.head_dim, w.kv_heads * w.head_dim, w.kv_heads * w.head_dim)
    weights = extra.qkv.weight.split((q, k, v))
    biases = (None,) * 3 if extra.qkv.bias is None else extra.qkv.bias.split((q, k, v))
    projected = []
    modules = (attention.q_proj, attention.k_proj, attention.v_proj)
    for module, weight, bias in zip(modules, weights, biases, strict=True):
        wide, wide_bias = widen(module, weight, bias, w.inserted)
        projected.append(x @ wide.T + wide_bias)
    heads = _heads(projected, attention, (w.base_heads, w.base_kv_heads, w.base_head_dim, 0, 0), theta, eps, window)
    start = (w.base_heads * w.base_head_dim, w.base_kv_heads * w.base_head_dim)
    norms = (extra.query_norm, extra.key_norm)
    heads += _heads(projected, norms, (w.heads, w.kv_heads, w.head_dim, *start), theta, eps, window)
    wide, wide_bias = widen(attention.o_proj, extra.out.weight, extra.out.bias, w.heads * w.head_dim)
    state = state + torch.cat(heads, dim=-1) @ wide.T + wide_bias

    x = norm(state, block.post_attention_layernorm, ours.ffn_norm, w.base, eps)
    assert activation == "silu"
    gates = []
    pieces = zip((block.mlp.gate_proj, block.mlp.up_proj), ours.ffn.gate_up.weight.chunk(2), strict=True)
    for module, weight in pieces:
        wide, wide_bias = widen(module, weight, None, w.inserted)
        gates.append(x @ wide.T + wide_bias)
    wide, wide_bias = widen(block.mlp.down_proj, ours.ffn.down.weight, ours.ffn.down.bias, w.units)
    return state + (F.silu(gates[0]) * gates[1]) @ wide.T + wide_bias


def _heads(projected, norms, sizes, theta, eps, window) -> list[Tensor]:
    count, kv_count, size, first_query, first_key = sizes
    if isinstance(norms, nn.Module):
        norms = (getattr(norms, "q_norm", None), getattr(norms, "k_norm", None))
    query, key, value = projected
    outputs = []
    for head in range(count):
        kv = first_key + head // (count // kv_count) * size
        at = first_query + head * size
        queries = [rope(head_norm(row[at : at + size], norms[0], eps), t, theta) for t, row in enumerate(query)]
        keys = [rope(head_norm(row[kv : kv + size], norms[1], eps), t, theta) for t, row in enumerate(key)]
        outputs.append(torch.stack(attend(queries, keys, [row[kv : kv + size] for row in value], window)))
    return outputs


def _plain_block(block, state, w, theta, eps, window):
    scale = 1 / (state.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    attention, x = block.self_attn, state * scale * block.input_layernorm.weight.double()
    projected = [_linear(module, x) for module in (attention.q_proj, attention.k_proj, attention.v_proj)]
    heads = _heads(projected, attention, (w.base_heads, w.base_kv_heads, w.base_head_dim, 0, 0), theta, eps, window)
    state = state + _linear(attention.o_proj, torch.cat(heads, dim=-1))
    scale = 1 / (state.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    x = state * scale * block.post_attention_layernorm.weight.double()
    return state + _linear(block.mlp.down_proj, F.silu(_linear(block.mlp.gate_proj, x)) * _linear(block.mlp.up_proj, x))


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, module.weight.double(), None if module.bias is None else module.bias.double())
