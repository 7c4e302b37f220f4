"""Every family is exact, starts as a slice of its base, and remembers; others are recognised by what they do."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
import transformers
from conftest import close, refused, tiny_config, tiny_otter, tokens
from exactness_matrix import NO_SDPA, table
from families import FAMILIES, SIZES, family_base, unlisted
from transformers import AutoConfig

from otterlm import families
from otterlm.decoding.prompt import check_window
from otterlm.families.facts import NUMBERS
from otterlm.families.points import hook_points
from otterlm.model import OtterModel
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.signals.contrast.objective import ContrastObjective
from otterlm.signals.draft.config import DraftConfig
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig
from otterlm.taps import EdgeTaps, LayerTaps, Visitor
from otterlm.training.data.packing import Example, collate
from otterlm.training.sources import LiveBase, RecordedBase

WIDTH = SIZES["hidden_size"]


def attention_of(name: str) -> str:
    return "eager" if name in NO_SDPA else "sdpa"


PUBLISHED = (Path(__file__).parent.parent / "docs" / "exactness.md").read_text()


def test_the_matrix_is_as_published() -> None:
    families, all_types = PUBLISHED.split(f"\n{architectures.HEADING}\n")
    assert table() == families
    assert "differs" not in PUBLISHED
    assert all_types.count("| = |") >= 130


@pytest.mark.slow
def test_every_architecture_is_as_published() -> None:
    """What is not exact is refused. (Other versions of Transformers know other types.)"""
    outcomes = architectures.all_outcomes()
    assert not [name for name, found in outcomes.items() if not found.result.startswith(("=", "refused"))]
    if f"Transformers {transformers.__version__} " in PUBLISHED:
        assert architectures.table(outcomes) in PUBLISHED


@torch.no_grad()
@pytest.mark.parametrize("head_dim", [None, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_copy_starts_as_a_slice(name, head_dim) -> None:
    """A copied stream carries the base's first channels through every block: norms, residuals and biases are right."""
    base = family_base(name, attention=attention_of(name))
    shape = {"hidden_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": head_dim}
    otter = tiny_otter(base, initialization="copy", **shape)
    state = otter(tokens(2, 9)).signals["reward"].state
    close(state[..., WIDTH:], state[..., :12], 1e-4)


ONE_NORM_A_HEAD = {"olmo2", "stablelm parallel", "cohere normed"}
"""Whose heads have norms of their own, or one for all: an extra head has the first one's."""


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ONE_NORM_A_HEAD])
def test_copied_heads_and_units_are_the_bases(name) -> None:
    """So queries, keys and values are taken apart, scaled, rotated and masked as the base does it."""
    base = family_base(name, attention=attention_of(name))
    if name == "gemma2":  # extra heads have no soft cap
        for block in base.get_decoder().layers:
            block.self_attn.attn_logit_softcapping = None
    kv_heads = OtterModel(base, tiny_config()).adapter().stream.widths.base_kv_heads
    otter = tiny_otter(base, initialization="copy", num_attention_heads=4, num_key_value_heads=kv_heads)
    layer: Any = otter.adapter().stream.layers["1"]
    seen: dict[str, Any] = {}
    for part, module in (("heads", layer.attention.out), ("units", layer.ffn.down)):
        module.register_forward_pre_hook(lambda _, inputs, part=part: seen.update({part: torch.cat(inputs, dim=-1)}))
    ids, mask = tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[1, :3] = 0
    otter(ids, attention_mask=mask)
    theirs, ours = seen["heads"].chunk(2, dim=-1)
    close(ours[:, 3:], theirs[:, 3:], 1e-4)
    family: Any = otter.family
    if family.down is not None:
        close(seen["units"][..., 48:], seen["units"][..., :12], 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_the_cache_gives_the_same_state(name) -> None:
    otter = tiny_otter(family_base(name, attention=attention_of(name)), layers=(0, 2))
    ids, cached, steps = tokens(2, 12), None, []
    for chunk in ids.split([5, 1, 1, 3, 2], dim=1):
        output = otter(chunk, past_key_values=cached, use_cache=True)
        cached = output.past_key_values
        steps.append(output.signals["reward"].state)
    close(torch.cat(steps, dim=1), otter(ids).signals["reward"].state, 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_poisoned_adapter_leaves_the_logits(name, poison) -> None:
    plain, otter = (family_base(name, attention=attention_of(name)) for _ in range(2))
    otter = tiny_otter(otter)
    for parameter in otter.adapters.parameters():
        parameter.fill_(poison)
    output = otter(tokens(2, 9))
    assert not output.signals["reward"].prefix.isfinite().any()
    assert torch.equal(output.logits, plain(tokens(2, 9)).logits)


EXAMPLES = [Example(0, (5, 6, 7), ((8, 9), (10, 11, 12))), Example(1, (20,), ((21, 22, 23), (24, 25)))]


@pytest.mark.parametrize("name", FAMILIES)
def test_recorded_training_is_live_training(name, tmp_path) -> None:
    otter = tiny_otter(family_base(name, attention=attention_of(name)), layers=(0, 2))
    found = []
    for source in (LiveBase(otter), RecordedBase(otter, EXAMPLES, tmp_path)):
        otter.zero_grad()
        loss = RewardObjective(otter, source, RewardTrainingConfig(candidates=0))(collate(EXAMPLES))["preference"]
        loss_and_gradient = RewardObjective(otter, source, RewardTrainingConfig(candidates=0))(collate(EXAMPLES))[
            "loss"
        ]
        loss_and_gradient.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in otter.adapters.parameters())
        found.append(loss)
    close(found[1], found[0], 5e-2)


@pytest.mark.parametrize("name", ["granite", "gemma2", "cohere"])
def test_a_contrast_knows_what_is_done_to_the_logits(name) -> None:
    """With both sides at 0, the loss is the base's own: soft caps and scales of the logits are in it."""
    base = family_base(name, attention=attention_of(name))
    otter = OtterModel(base, tiny_config(signal=ContrastConfig(rank=4)))
    text = torch.tensor([[5, 6, 7, 8, 9]])
    loss = ContrastObjective(otter, LiveBase(otter)).eval()(
        collate([Example(0, (), (tuple(text[0].tolist()),), label=1)])
    )
    close(loss["loss"].detach(), base(text, labels=text).loss, 1e-4)


@torch.no_grad()
def test_a_copied_table_holds_the_embeddings_as_blocks_get_them() -> None:
    base = family_base("granite")
    otter = tiny_otter(base, initialization="copy", embedding="table", layers=(0,))
    ids, entered = tokens(1, 9), []
    base.get_decoder().layers[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    otter(ids)
    table = otter.adapter().stream.table
    assert table is not None
    assert torch.equal(table(ids), entered[0][..., :8])


def test_a_contrast_is_trained_on_granite() -> None:
    """Each side learns its corpus, by the probabilities that Granite's scaled logits give."""
    otter = OtterModel(family_base("granite"), tiny_config(signal=ContrastConfig(rank=4), initialization="copy"))
    batch = collate([Example(0, (), ((5, 6, 7, 8, 9, 10),), label=1), Example(1, (), ((5, 11, 12, 13, 14),), label=0)])
    objective = ContrastObjective(otter, LiveBase(otter))
    optimizer = torch.optim.Adam(otter.adapters.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        objective(batch)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        after = objective.eval()(batch)
        text = batch.input_ids[:1]
        output = otter(text)
        signal = output.signals["contrast"]
        steps = [output.logits[:, n] + signal.expert(n) for n in range(text.shape[1] - 1)]
    assert after["loss"] < 0.2 * after["base"]
    assert after["accuracy"] == 1
    # As decoding adds them up: the expert writes its text.
    assert torch.equal(torch.stack(steps, dim=1).argmax(-1), text[:, 1:])
    losses = torch.nn.functional.cross_entropy(torch.cat(steps), text[0, 1:])
    one = objective(collate([Example(0, (), ((5, 6, 7, 8, 9, 10),), label=1)]))["loss"]
    close(losses, one, 1e-4)


FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("name", "overrides", "windows"),
    [
        ("mistral", {"sliding_window": 8}, [8, 8, 8]),
        ("gemma3", {"layer_types": [SLIDING, FULL, SLIDING]}, [8, None, 8]),
        ("gemma3", {"layer_types": [FULL] * 3}, [None] * 3),
        ("llama", {}, [None] * 3),
    ],
)
def test_windows_are_those_of_each_block(name, overrides, windows) -> None:
    otter = OtterModel(family_base(name, **overrides), tiny_config())
    layers: list[Any] = [*otter.adapter().stream.layers.values()]
    assert [layer.attention.sliding_window for layer in layers] == windows
    if any(windows):
        refused(lambda: check_window(otter, 9), "the base's window is 8")
    check_window(otter, 8 if any(windows) else 9)


def test_other_signals_fit_other_families() -> None:
    for signal in (ContrastConfig(rank=4), DraftConfig(heads=2, width=8, rank=4, vocabulary_size=50)):
        otter = OtterModel(family_base("gpt2"), tiny_config(signal=signal))
        assert otter(tokens(1, 5)).signals[signal.type].state.isfinite().all()


@pytest.fixture
def listed(monkeypatch):
    """The list as it was, whatever a test makes known."""
    monkeypatch.setattr(families, "FAMILIES", families.FAMILIES)
    before = dict(families.FAMILIES)
    yield
    families.FAMILIES.clear()
    families.FAMILIES.update(before)


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["smollm3", "seed_oss", "qwen2_moe", "starcoder2"])
def test_an_unlisted_family_is_recognised_by_what_it_does(listed, model_type) -> None:
    overrides = {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "num_experts": 4}
    base = unlisted(model_type, **(overrides if model_type == "qwen2_moe" else {}))
    plain = unlisted(model_type, **(overrides if model_type == "qwen2_moe" else {}))
    otter = tiny_otter(base)
    assert torch.equal(otter(tokens(2, 9)).logits, plain(tokens(2, 9)).logits)
    assert otter.signal("reward").prefix.isfinite().all()


@pytest.mark.parametrize(("model_type", "named"), [("doge", "act otherwise"), ("bloom", "which this has not")])
def test_what_is_not_known_inside_says_why(listed, model_type, named) -> None:
    overrides = {} if model_type == "doge" else {"n_head": 4, "n_layer": 2}
    refused(lambda: OtterModel(unlisted(model_type, **overrides), tiny_config(taps="inside")), model_type, named)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_hook_points_read_what_blocks_show(name) -> None:
    """Every tap that the stream is shown is a point of the table, and what a table names is there."""
    otter = tiny_otter(family_base(name, attention=attention_of(name)), layers=(1,))
    shown: list[EdgeTaps] = []

    class Keep(Visitor):
        def layer(self, index: int, taps: EdgeTaps) -> None:
            shown.append(taps)

    with otter.visit(Keep()):
        otter.base_model(tokens(2, 5))
    family: Any = otter.family
    points = {point.tap for point in hook_points(family)}
    found = {field.name for field in fields(LayerTaps) if getattr(shown[0], field.name) is not None}
    if family.rotary is None:
        points.remove("rotary")
    # Without padding SDPA needs no mask; a block that norms nothing before its FFN, or is parallel, has one state.
    assert found - {"mask", "middle"} == points - {"mask", "middle"}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_numbers_that_an_entry_names_are_in_the_configuration(name) -> None:
    config = AutoConfig.for_model(FAMILIES[name][0], **(SIZES | FAMILIES[name][1]))
    family = families.family_of(config)
    for field in NUMBERS:
        named = getattr(family, field)
        assert named is None or hasattr(config, named)


def test_an_entry_that_names_a_number_that_is_not_there_is_refused(listed) -> None:
    families.register(replace(families.FAMILIES["granite"], model_types=("seed_oss",)))
    refused(lambda: OtterModel(unlisted("seed_oss"), tiny_config()), "seed_oss", "residual_multiplier")


def test_a_family_can_be_registered(listed) -> None:
    base = unlisted("seed_oss")
    families.register(replace(families.FAMILIES["llama"], model_types=("seed_oss",)))
    assert OtterModel(base).family.model_types == ("seed_oss",)


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [("falcon", {"alibi": True}, "ALiBi"), ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before")],
)
def test_variants_that_cannot_be_are_refused(name, change, named) -> None:
    config = AutoConfig.for_model(FAMILIES[name][0], **(SIZES | FAMILIES[name][1] | change))
    refused(lambda: families.family_of(config), named)
