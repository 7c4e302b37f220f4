"""Guards the inserted stream's maths: against a naive widened pass, and itself with a cache, padding and crops."""

from functools import cache
from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES, LAYERS, WIDTH, add_tiny_adapter, close, refused, tiny_base, tiny_otter, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import widened_states
from transformers import DynamicCache

base_of = cache(tiny_base)


def state(otter, ids, name="reward", **kwargs):
    with torch.no_grad():
        return otter(ids, **kwargs).signals[name].state


@pytest.mark.parametrize("embedding", ["projection", "table"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_is_the_widened_model(model_type, attention, embedding) -> None:
    base = base_of(model_type, attention=attention)
    otter, ids = tiny_otter(base, embedding=embedding), tokens(1, 7)
    close(state(otter, ids)[0], widened_states(base, otter.adapter(), ids[0]))


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_shape_is_the_widened_model(data) -> None:
    base = base_of(data.draw(st.sampled_from(ARCHITECTURES)))
    plain = base_of(base.config.model_type, seed=0, attention="sdpa")
    kv_heads = data.draw(st.integers(1, 2))
    size = getattr(base.config, "head_dim", None) or 8
    shape = {
        "hidden_size": data.draw(st.integers(1, WIDTH)),
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * data.draw(st.integers(1, 3)),
        "head_dim": data.draw(st.sampled_from([None, *(n for n in (2, 4, 8, 16) if n <= size)])),
        "intermediate_size": data.draw(st.integers(1, 48)),
        "layers": data.draw(st.none() | st.sets(st.integers(0, LAYERS - 1), min_size=1).map(sorted).map(tuple)),
        "embedding": data.draw(st.sampled_from(["projection", "table"])),
    }
    otter, ids = tiny_otter(base, **shape), tokens(1, 5)
    close(state(otter, ids)[0], widened_states(base, otter.adapter(), ids[0]), 1e-3)
    with torch.no_grad():
        assert torch.equal(otter(ids).logits, plain(ids).logits)


def test_only_chosen_layers_are_inserted() -> None:
    otter = tiny_otter(base_of(), layers=(1, 2))
    assert list(otter.adapter().stream.layers) == ["1", "2"]
    with torch.no_grad():
        cached = otter(tokens(1, 5), use_cache=True).past_key_values
    assert len(cached.layers) == LAYERS + 2


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ({"layers": (LAYERS,)}, "layer 4"),
        ({"head_dim": 6}, "head_dim"),
        ({"hidden_size": WIDTH + 1}, "hidden_size"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, "num_key_value_heads"),
        ({"intermediate_size": 49}, "intermediate_size"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "multiple"),
        ({"layers": (2, 1)}, "layers"),
        ({"layers": ()}, "layers"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"embedding": "rows"}, "embedding"),
        ({"initialization": "zero"}, "initialization"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape, named) -> None:
    refused(lambda: tiny_otter(base_of(), **shape), named)


@pytest.mark.parametrize("head_dim", [None, 4])
@pytest.mark.parametrize("embedding", ["projection", "table"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_copy_starts_as_a_slice(model_type, embedding, head_dim) -> None:
    shape = {"hidden_size": 12, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": head_dim}
    otter = tiny_otter(base_of(model_type), initialization="copy", embedding=embedding, **shape)
    both = state(otter, tokens(2, 9))
    close(both[..., WIDTH:], both[..., :12], 1e-4)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_copied_heads_and_units_are_the_bases(model_type) -> None:
    otter = tiny_otter(base_of(model_type), initialization="copy", num_attention_heads=4, num_key_value_heads=2)
    layer: Any = otter.adapter().stream.layers["2"]
    seen: dict[str, Any] = {}
    for name, module in (("heads", layer.attention.out), ("units", layer.ffn.down)):
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: torch.cat(inputs, dim=-1)}))
    state(otter, tokens(2, 9))
    theirs, ours = seen["heads"].chunk(2, dim=-1)
    close(ours, theirs)
    close(seen["units"][..., 48:], seen["units"][..., :12])


def test_smaller_copied_heads_keep_rope_pairs() -> None:
    base = base_of()
    otter = tiny_otter(base, initialization="copy", head_dim=4)
    rows = torch.tensor([0, 2, 4, 6])
    layer: Any = otter.adapter().stream.layers["0"]
    block, qkv = base.get_decoder().layers[0].self_attn, layer.attention.qkv.weight
    assert torch.equal(qkv[:4, :WIDTH], block.q_proj.weight[rows])
    assert torch.equal(qkv[4:8, :WIDTH], block.q_proj.weight[8 + rows])
    assert torch.equal(qkv[8:12, :WIDTH], block.k_proj.weight[rows])
    assert torch.equal(qkv[12:, :WIDTH], block.v_proj.weight[rows])


@pytest.mark.parametrize("embedding", ["projection", "table"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_cache_gives_the_same_state(model_type, embedding) -> None:
    otter, ids, cached = (
        tiny_otter(base_of(model_type), embedding=embedding, layers=(0, 2)),
        tokens(2, 12),
        DynamicCache(),
    )
    steps = [state(otter, chunk, past_key_values=cached) for chunk in ids.split([5, 1, 1, 3, 2], dim=1)]
    close(torch.cat(steps, dim=1), state(otter, ids))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_left_padding_changes_nothing(model_type, attention) -> None:
    otter, ids = tiny_otter(base_of(model_type, attention=attention)), tokens(1, 7)
    other = tokens(1, 11, seed=1)
    batch = torch.cat((torch.cat((torch.zeros(1, 4, dtype=torch.long), ids), dim=1), other))
    mask = torch.ones_like(batch)
    mask[0, :4] = 0
    padded = state(otter, batch, attention_mask=mask)
    close(padded[:1, 4:], state(otter, ids))
    close(padded[1:], state(otter, other))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_an_adapter_in_another_precision(dtypes, attention) -> None:
    base = base_of(dtype=dtypes[0], attention=attention)
    otter, ids = tiny_otter(base, dtype=dtypes[1]), tokens(1, 7)
    batch = torch.cat((torch.zeros(1, 4, dtype=torch.long), ids), dim=1)
    mask = (batch > 0).long()
    padded = state(otter, batch, attention_mask=mask)
    assert padded.dtype == dtypes[1]
    close(padded[:, 4:].float(), state(otter, ids).float(), 0.15)


def test_crop_takes_back_tokens() -> None:
    otter, cached = tiny_otter(base_of()), DynamicCache()
    ids, retry = tokens(2, 8), tokens(2, 3, seed=5)
    state(otter, ids, past_key_values=cached)
    cached.crop(-3)
    again = state(otter, retry, past_key_values=cached)
    close(again, state(otter, torch.cat((ids[:, :5], retry), dim=1))[:, 5:])


def test_reorder_and_repeat_follow_the_base() -> None:
    otter, cached = tiny_otter(base_of()), DynamicCache()
    ids, further = tokens(2, 6), tokens(4, 2, seed=5)
    state(otter, ids, past_key_values=cached)
    cached.batch_repeat_interleave(2)
    order = torch.tensor([3, 0, 1, 3])
    cached.reorder_cache(order)
    rows = ids.repeat_interleave(2, dim=0)[order]
    close(state(otter, further, past_key_values=cached), state(otter, torch.cat((rows, further), dim=1))[:, 6:])


def test_cache_filled_while_off_is_refused() -> None:
    otter, cached = tiny_otter(base_of()), DynamicCache()
    with otter.disable_adapter():
        otter(tokens(1, 5), past_key_values=cached)
    refused(lambda: otter(tokens(1, 2), past_key_values=cached), "filled while the adapter was off")


@pytest.mark.parametrize("configured", [True, False])
def test_sliding_window(configured) -> None:
    base, plain = tiny_base("mistral", sliding_window=4), tiny_base("mistral", sliding_window=4)
    otter, ids = tiny_otter(base), tokens(2, 14)
    whole = state(otter, ids)
    close(whole[0], widened_states(base, otter.adapter(), ids[0]))
    ours, theirs = (DynamicCache(config=base.config) if configured else DynamicCache() for _ in range(2))
    steps = []
    for chunk in ids.split([6, 1, 1, 3, 1, 2], dim=1):
        steps.append(state(otter, chunk, past_key_values=ours))
        with torch.no_grad():
            expected = plain(chunk, past_key_values=theirs).logits
            assert torch.equal(plain.lm_head(steps[-1][..., :WIDTH]), expected)
    close(torch.cat(steps, dim=1), whole)


@pytest.mark.parametrize("first_on", [True, False])
def test_full_and_sliding_layers_with_two_adapters(first_on) -> None:
    kinds = ["full_attention", "sliding_attention"] * 2
    base = tiny_base("qwen2", use_sliding_window=True, sliding_window=4, layer_types=kinds)
    otter, ids, cached = tiny_otter(base), tokens(2, 12), DynamicCache(config=base.config)
    add_tiny_adapter(otter, "other", seed=2, layers=(1, 2))
    names = ["reward", "other"] if first_on else ["other"]
    with otter.use_adapters(names):
        whole = {name: state(otter, ids, name) for name in names}
        steps: dict[str, list[Any]] = {name: [] for name in names}
        for chunk in ids.split([6, 1, 1, 3, 1], dim=1):
            with torch.no_grad():
                signals = otter(chunk, past_key_values=cached).signals
            for name in names:
                steps[name].append(signals[name].state)
    for name in names:
        close(torch.cat(steps[name], dim=1), whole[name])


@torch.no_grad()
def test_given_embeddings() -> None:
    base, ids = base_of(), tokens(2, 6)
    otter = tiny_otter(base)
    embedded = base.get_input_embeddings()(ids)
    close(otter(inputs_embeds=embedded).signals["reward"].state, state(otter, ids))
    table = tiny_otter(base, embedding="table")
    refused(lambda: table(inputs_embeds=embedded), "input_ids")


@torch.no_grad()
def test_vocabulary_head_scores_tokens() -> None:
    otter = tiny_otter(base_of())
    for _ in range(2):
        signal = otter(tokens(2, 6)).signals["reward"]
        head, chosen = otter.adapter().head, tokens(2, 5, seed=3)
        towers = head.vocabulary
        state = towers.state_out(torch.nn.functional.silu(towers.state_in(signal.state[:, -1])))
        table = towers.token_out(torch.nn.functional.silu(towers.token_in(otter.base_model.lm_head.weight)))
        expected = signal.prefix[:, -1:] + state @ table.T
        close(signal.vocabulary(), expected, 1e-4)
        close(signal.vocabulary(chosen), expected.gather(1, chosen), 1e-4)
        towers.token_out.weight.add_(0.1)
