"""Streams that read blocks at their edge: exact on decoders of any kind, and the same however a text is read."""

import copy
import json
from dataclasses import replace
from typing import Any

import architectures
import pytest
import torch
from architectures import tiny_model
from conftest import add_tiny_adapter, close, refused, tiny_base, tiny_config, tiny_otter, tokens
from torch import Tensor
from transformers import AutoConfig, BertConfig, BertLMHeadModel, DynamicCache

from otterlm.config import OtterConfig
from otterlm.decoding.search import CandidateSearch
from otterlm.decoding.speculative import SpeculativeDecoding
from otterlm.model import OtterModel
from otterlm.plan import plan
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.signals.contrast.objective import ContrastObjective
from otterlm.signals.draft.config import DraftConfig
from otterlm.signals.guard.config import GuardConfig
from otterlm.signals.guard.objective import GuardTrainingConfig
from otterlm.signals.reward.config import RewardConfig
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig
from otterlm.taps import EdgeTaps, Visitor
from otterlm.training.data.packing import Example, collate
from otterlm.training.recipes import guard, reward_fit
from otterlm.training.sources import LiveBase, RecordedBase, read_batch
from otterlm.training.vocabulary_head import read_steps
from otterlm.verification import CASES

KINDS = {
    "llama": "a family whose inside is known, too",
    "bloom": "positions by a bias of attention",
    "mamba": "no attention at all",
    "qwen3_next": "linear and full attention in turn",
    "deepseek_v4": "a state of several streams",
    "gemma3n_text": "several streams, counted by the first axis",
    "longcat_flash": "two layers of the cache a block",
    "bart": "no norm after the last block",
}
SHAPE: dict[str, Any] = {"taps": "edge", "head_dim": 8}
ROWS_APART = ("mamba", "qwen3_next", "bart")
"""Kinds that do not keep packed branches apart."""


def edge_otter(kind: str, **config: Any) -> OtterModel:
    return tiny_otter(tiny_base() if kind == "llama" else tiny_model(kind), **(SHAPE | config))


def plain_model(kind: str) -> Any:
    return tiny_base() if kind == "llama" else tiny_model(kind)


def state_of(otter: OtterModel, ids: Tensor, **inputs: Any) -> Tensor:
    return otter(input_ids=ids, **inputs).signals["reward"].state.detach()


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def otter(kind: str) -> OtterModel:
    model = edge_otter(kind, layers=(0, 2))
    add_tiny_adapter(model, "other", seed=2, layers=(1,), hidden_size=16, embedding="table", **SHAPE)
    return model.eval()


@torch.no_grad()
def test_all_is_as_it_was(kind, otter) -> None:
    plain, ids, mask = plain_model(kind), tokens(2, 10), torch.ones(2, 10, dtype=torch.long)
    ids[1, :4], mask[1, :4] = 0, 0
    wrong = [case for case, run in CASES.items() if not torch.equal(run(otter, ids, mask), run(plain, ids, mask))]
    assert not wrong
    assert all(signal.state.isfinite().all() for signal in otter.signals.values())


@torch.no_grad()
def test_a_poisoned_adapter_leaves_the_logits(kind, otter) -> None:
    poisoned = copy.deepcopy(otter)
    for parameter in poisoned.adapters.parameters():
        parameter.fill_(float("nan"))
    output = poisoned(tokens(2, 9))
    assert not output.signals["reward"].prefix.isfinite().any()
    assert torch.equal(output.logits, plain_model(kind)(tokens(2, 9)).logits)


class Passes(Visitor):
    """Keeps the states that enter the final norm."""

    def __init__(self) -> None:
        self.hidden: list[Tensor] = []

    def final(self, hidden: Tensor, normed: Tensor) -> None:
        self.hidden.append(hidden)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "bloom", "qwen3_next", "bart"])
def test_a_copy_starts_as_a_slice(name) -> None:
    """h' follows h through every block, though nothing of a block is known."""
    otter, passes, ids = edge_otter(name, initialization="copy"), Passes(), tokens(2, 9)
    with otter.visit(passes):
        otter.base_model(ids)
    state = state_of(otter, ids)
    scale = (passes.hidden[0].square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt()
    close(state[..., -8:], passes.hidden[0][..., :8] * scale, 1e-4)


@torch.no_grad()
def test_a_generation_says_what_the_whole_text_says(kind, otter) -> None:
    """The extra heads see token by token, over a KV cache and behind padding, what they see in one pass."""
    ids, mask = tokens(2, 8), torch.ones(2, 8, dtype=torch.long)
    ids[1, :3], mask[1, :3] = 0, 0
    settings = {"do_sample": False, "eos_token_id": None}
    text = otter.generate(ids, attention_mask=mask, max_new_tokens=4, **settings)
    last = otter.signal("reward").state[:, -1]
    # The decoder of BART counts padding among its positions.
    for row, start in ((0, 0),) if kind == "bart" else ((0, 0), (1, 3)):
        whole = text[row : row + 1, start:-1]
        otter.generate(whole, max_new_tokens=1, **settings)  # one pass, with the positions of a generation
        close(last[row], otter.signal("reward").state[0, -1], 2e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_a_text_in_pieces_with_masks_of_all_kinds(name) -> None:
    otter, ids = edge_otter(name), tokens(2, 9)
    whole = state_of(otter, ids)
    mask = torch.ones(2, 9, dtype=torch.long)
    for masks in ({}, {"attention_mask": mask}):
        cache, steps = DynamicCache(config=otter.base_model.config), []
        for start, stop in ((0, 4), (4, 5), (5, 8), (8, 9)):
            inputs = {name: part[:, :stop] for name, part in masks.items()}
            steps.append(state_of(otter, ids[:, start:stop], past_key_values=cache, use_cache=True, **inputs))
        close(torch.cat(steps, dim=1), whole, 1e-4)


@torch.no_grad()
def test_a_static_cache() -> None:
    otter, plain = edge_otter("llama"), tiny_base()
    settings = {"max_new_tokens": 5, "do_sample": False, "cache_implementation": "static"}
    ids = otter.generate(tokens(2, 6), **settings)
    assert torch.equal(ids, plain.generate(tokens(2, 6), **settings))
    close(otter.signal("reward").state[:, -1], state_of(otter, ids[:, :-1])[:, -1], 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "mamba", "qwen3_next"])
def test_a_cache_that_was_filled_without_the_adapter_is_refused(name) -> None:
    otter, ids = edge_otter(name), tokens(1, 6)
    key = "cache_params" if name == "mamba" else "past_key_values"
    with otter.disable_adapter():
        cache = otter(input_ids=ids[:, :5], use_cache=True)[key]
    refused(lambda: otter(input_ids=ids[:, 5:], use_cache=True, **{key: cache}), "while the adapter was off")


EXAMPLES = [Example(0, (5, 6, 7), ((8, 9), (10, 11, 12))), Example(1, (20,), ((21, 22, 23), (24, 25)))]


@pytest.mark.parametrize("name", ["llama", "bloom", "qwen3_next", "bart", "deepseek_v4"])
def test_recorded_training_is_live_training(name, tmp_path) -> None:
    otter = edge_otter(name, layers=(0, 2))
    losses = []
    for source in (LiveBase(otter), RecordedBase(otter, EXAMPLES, tmp_path)):
        otter.zero_grad()
        metrics = RewardObjective(otter, source, RewardTrainingConfig())(collate(EXAMPLES))
        metrics["loss"].backward()
        trained = [p for p in otter.adapters.parameters() if p.requires_grad]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
        losses.append(metrics["preference"].detach())
    close(losses[1], losses[0], 5e-2)
    numbers = 2 * 2 * 32 + 32  # of two blocks h and what is added, of the last norm h
    assert (tmp_path / "recording.bf16").stat().st_size == 2 * numbers * sum(map(len, EXAMPLES))


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "mamba", "qwen3_next", "bart"])
def test_packed_branches_do_not_see_each_other(name) -> None:
    """A packed pair says what its two texts say alone, also where the base would mix them up."""
    otter = edge_otter(name)
    assert otter.family.branches == (name not in ROWS_APART)
    packed = read_batch(otter, LiveBase(otter), collate(EXAMPLES), "reward").prefix
    for row, example in enumerate(EXAMPLES):
        start = len(example.prefix)
        for branch in example.branches:
            alone = otter(torch.tensor([example.prefix + branch])).signals["reward"].prefix[0]
            close(packed[row, start : start + len(branch)], alone[len(example.prefix) :], 1e-4)
            start += len(branch)


@torch.no_grad()
def test_rows_apart_are_packed_again() -> None:
    otter = edge_otter("llama")
    together = read_batch(otter, LiveBase(otter), collate(EXAMPLES), "reward").state
    otter.family = replace(otter.family, branches=False)
    apart = read_batch(otter, LiveBase(otter), collate(EXAMPLES), "reward").state
    inside = collate(EXAMPLES).segments >= 0
    close(apart[inside], together[inside], 1e-5)


@torch.no_grad()
def test_what_needs_branches_is_refused() -> None:
    otter, ids = edge_otter("mamba"), tokens(1, 5)
    add_tiny_adapter(otter, "draft", **SHAPE | {"signal": DraftConfig(heads=2, width=8, rank=4, vocabulary_size=8)})
    for call in (
        lambda: otter.generate(ids, max_new_tokens=3, custom_generate=CandidateSearch(1.0)),
        lambda: otter.generate(ids, max_new_tokens=3, custom_generate=SpeculativeDecoding(adapter_name="draft")),
        lambda: read_steps(otter, EXAMPLES),
    ):
        refused(call, "'mamba' cannot keep them apart")


def test_steering_heads_learn_in_training_where_candidates_cannot_be_read() -> None:
    reward = edge_otter("mamba", signal=RewardConfig(vocabulary_rank=4))
    RewardObjective(reward, LiveBase(reward), RewardTrainingConfig())
    assert all(each.requires_grad for each in reward.adapter().head.vocabulary.parameters())
    assert reward_fit.learn_to_steer(reward, EXAMPLES, RewardTrainingConfig(), 0) == {}
    moderator = edge_otter("mamba", signal=GuardConfig(("rude",), vocabulary_rank=4))
    assert guard.learn_to_steer(moderator, EXAMPLES, GuardTrainingConfig(), 0) == {}


def test_what_needs_the_logits_is_refused() -> None:
    otter = OtterModel(tiny_model("roberta"), tiny_config(signal=ContrastConfig(rank=4), head_dim=8))
    refused(lambda: ContrastObjective(otter, LiveBase(otter)), "does to its logits is not known")


@pytest.mark.parametrize("name", ["bloom", "gemma3n_text"])
def test_a_contrast_knows_what_is_done_to_the_logits(name) -> None:
    base, text = tiny_model(name), tokens(1, 6)
    otter = OtterModel(base, tiny_config(signal=ContrastConfig(rank=4), head_dim=8))
    batch = collate([Example(0, (), (tuple(text[0].tolist()),), label=1)])
    loss = ContrastObjective(otter, LiveBase(otter)).eval()(batch)["loss"].detach()
    close(loss, base(text, labels=text).loss, 1e-4)


@torch.no_grad()
def test_both_kinds_of_taps_on_one_base() -> None:
    ids, inside, edge = tokens(2, 7), tiny_otter(tiny_base()), edge_otter("llama")
    both = tiny_otter(tiny_base())
    add_tiny_adapter(both, "edge", **SHAPE)
    output = both(ids)
    assert torch.equal(output.logits, tiny_base()(ids).logits)
    assert torch.equal(output.signals["reward"].state, state_of(inside, ids))
    assert torch.equal(output.signals["edge"].state, state_of(edge, ids))
    text = both.generate(ids, max_new_tokens=3, do_sample=False)
    assert torch.equal(text, tiny_base().generate(ids, max_new_tokens=3, do_sample=False))


@torch.no_grad()
def test_a_saved_adapter_says_what_it_reads(tmp_path) -> None:
    ids = tokens(2, 7)
    for name, otter in (("inside", tiny_otter(tiny_base())), ("edge", edge_otter("llama"))):
        otter.save_pretrained(tmp_path / name)
        assert json.loads((tmp_path / name / "adapter_config.json").read_text())["taps"] == name
        again = OtterModel.from_pretrained(tiny_base(), tmp_path / name)
        assert torch.equal(state_of(again, ids), state_of(otter, ids))
    former = json.loads(tiny_config().to_json())
    del former["taps"]
    assert OtterConfig.from_json(json.dumps(former)).taps is None
    refused(lambda: tiny_config(taps="outside"), "taps must be one of inside, edge")


@torch.no_grad()
def test_blocks_that_are_not_known_inside_are_read_at_their_edge() -> None:
    otter = OtterModel(tiny_model("bloom"), tiny_config(head_dim=8))
    assert otter.adapter().config.taps == "edge"
    refused(lambda: otter.add_adapter(tiny_config(taps="inside"), "more"), "taps cannot be inside", "'bloom'")
    refused(lambda: otter.add_adapter(tiny_config(head_dim=7), "more"), "head_dim 7 must be even")


def test_plan_says_how_blocks_are_read() -> None:
    known = plan(tiny_base().config, tiny_config(taps="edge", head_dim=8))
    assert (known.taps, known.edge_because) == ("edge", None)
    assert known.base_kv_bytes_per_token == plan(tiny_base().config, tiny_config()).base_kv_bytes_per_token
    assert known.inserted_parameters == sum(p.numel() for p in edge_otter("llama").adapters.parameters())
    unknown = plan(tiny_model("bloom").config, tiny_config(head_dim=8))
    assert (unknown.taps, unknown.base_kv_bytes_per_token) == ("edge", None)
    assert "'bloom' is not known" in str(unknown.edge_because)


def test_an_encoder_reads_later_tokens() -> None:
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=97)
    refused(lambda: OtterModel(BertLMHeadModel(config)), "'bert'", "it reads later tokens, as encoders do")


@torch.no_grad()
def test_streams_side_by_side_are_read_as_their_mean() -> None:
    otter, ids = edge_otter("deepseek_v4", layers=(1,)), tokens(1, 5)
    entered: list[Tensor] = []
    shown: list[EdgeTaps] = []

    class Keep(Visitor):
        def layer(self, index: int, taps: EdgeTaps) -> None:
            shown.append(taps)

    block = otter.base_model.get_decoder().layers[1]
    handle = block.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    with otter.visit(Keep()):
        otter.base_model(ids)
    handle.remove()
    assert torch.equal(shown[0].hidden, entered[0].mean(dim=2))


def test_blocks_that_read_the_last_token_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"num_hidden_layers": 10, "num_kv_shared_layers": 4}
    monkeypatch.setitem(architectures.TYPES, "gemma4_text", architectures.TYPES["gemma4_text"] | settings)
    refused(lambda: OtterModel(tiny_model("gemma4_text")), "'gemma4_text'", "reads fewer tokens in its later blocks")


def test_large_latent_experts_are_tried_small() -> None:
    """The replica of DeepSeek-V3, 671 billion parameters, has few of all that is many."""
    cost = plan(AutoConfig.for_model("deepseek_v3"), OtterConfig())
    assert (cost.taps, cost.base_parameters > 600_000_000_000) == ("edge", True)
