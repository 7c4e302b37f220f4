"""Drafting never changes what is said: greedy output is the base's, samples have its distribution, ends are kept."""

import math
from contextlib import contextmanager
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Listener, add_tiny_adapter, close, randomize, refused, tiny_base, tiny_config, tokens
from drafts import TREES, continued
from families import family_base
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import StoppingCriteria

from otterlm.decoding import (
    DraftTree,
    GuardStop,
    RewardGuidance,
    RewardStop,
    SpeculativeDecoding,
    label_sequences,
)
from otterlm.decoding.draft_growth import propose
from otterlm.model import OtterModel
from otterlm.signals.draft.config import DraftConfig
from otterlm.signals.draft.objective import DraftObjective, frequent_tokens, measured_accuracy
from otterlm.signals.guard.config import GuardConfig
from otterlm.training.data.packing import Example, collate
from otterlm.training.evaluation.detection import alarm_levels
from otterlm.training.sources import LiveBase
from otterlm.training.trainer import TrainingConfig, train

NEW = 12


def drafting(sequential: bool = True, **signal: Any) -> OtterModel:
    """Makes a base with an untrained draft adapter."""
    torch.manual_seed(0)
    draft = DraftConfig(heads=3, width=24, rank=8, vocabulary_size=60, sequential=sequential, **signal)
    otter = OtterModel(tiny_base(), tiny_config(signal=draft))
    randomize(otter.adapter().head, 3)
    return otter.eval()


@pytest.fixture(scope="module", params=[True, False], ids=["sequential", "independent"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OtterModel:
    """Makes a draft adapter that has memorised a few continuations."""
    otter = drafting(request.param).train()
    examples = continued(otter.base_model)
    with torch.no_grad():
        otter.adapter().head.vocabulary.copy_(frequent_tokens(examples, 60, 97))
    objective = DraftObjective(otter, LiveBase(otter))
    how = TrainingConfig(epochs=40, batch_size=8, learning_rate=1e-2, evaluations_per_epoch=1, patience=40)
    metrics = train(objective, examples, examples, how, tmp_path_factory.mktemp("draft"))
    assert metrics["accuracy_0_0"] > 0.6
    otter.accuracy = measured_accuracy(metrics, 3)
    return otter.eval()


def batch() -> dict[str, Tensor]:
    """Three prompts; the second is left-padded, the third was trained on."""
    ids = torch.cat((tokens(2, 5), tokens(1, 5, seed=9)))
    mask = torch.ones_like(ids)
    ids[1, :2], mask[1, :2] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, **settings):
    defaults = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(**batch(), **(defaults | settings))


@pytest.mark.parametrize("tree", TREES)
def test_greedy_output_is_the_bases(trained, tree) -> None:
    loop = SpeculativeDecoding(tree=TREES[tree])
    output = generate(trained, custom_generate=loop, return_dict_in_generate=True)
    assert torch.equal(output.sequences, generate(trained.base_model))
    assert output.acceptance_length > 1.1
    depth = max(TREES[tree].depths)
    for row in output.accepted:
        assert max(row) <= depth
        # Each pass gives the drafts that were kept and one more; the last may have more than was wanted.
        assert NEW <= 1 + sum(drafts + 1 for drafts in row) <= NEW + depth


def test_unlikely_drafts_are_not_verified(trained) -> None:
    results = {}
    for confidence in (0.0, 0.3, 1.0):
        loop = SpeculativeDecoding(tree=TREES["bush"], confidence=confidence)
        passes: list[Any] = []
        with counted(trained, passes):
            output = generate(trained, custom_generate=loop, return_dict_in_generate=True)
        assert torch.equal(output.sequences, generate(trained.base_model))
        results[confidence] = output.acceptance_length, passes
    assert set(results[0.0][1]) == {len(TREES["bush"])}
    assert len(set(results[0.3][1])) > 1
    assert max(results[0.3][1]) < len(TREES["bush"])
    assert 1.1 < results[0.3][0] <= results[0.0][0]
    assert results[1.0] == (1.0, [1] * (NEW - 1))


@contextmanager
def counted(otter: OtterModel, passes: list[int]):
    """Notes how many tokens each pass reads, the one over the prompt aside."""
    hook = otter.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        yield
    finally:
        hook.remove()
        del passes[0]


@pytest.mark.parametrize("drafts", [1, 2, 4, 9])
def test_a_step_verifies_so_many_drafts_at_most(trained, drafts) -> None:
    passes: list[Any] = []
    with counted(trained, passes):
        output = generate(trained, custom_generate=SpeculativeDecoding(drafts))
    assert torch.equal(output, generate(trained.base_model))
    assert max(passes) == 1 + drafts


@pytest.mark.parametrize("confidence", [0.0, 0.2, 0.45])
def test_the_tree_holds_what_is_likely(trained, confidence) -> None:
    """Node by node: its chance is that of a path of guesses, each head's after the guesses before it."""
    tree = TREES["bush"]
    with torch.no_grad():
        signal = trained(tokens(2, 6, seed=9)).signals["draft"]
        state, root = signal.state[:, -1], tokens(2, 1)[:, 0]
        drafts, reduced = propose(signal, state, root, tree, confidence)
        tokens_of, chances, codes = [root], [torch.ones(2)], [None]
        for node in range(1, len(tree)):
            parent, head = tree.parents[node], tree.depths[node] - 1
            code = signal.code(head, state, tokens_of[parent], codes[parent])
            shares, order = signal.scores(head, code).softmax(dim=-1).sort(descending=True)
            tokens_of.append(signal.vocabulary[order[:, tree.ranks[node]]])
            chances.append(chances[parent] * shares[:, tree.ranks[node]])
            codes.append(code)
    nodes = [node for node, chance in enumerate(chances) if chance.max() >= confidence]
    assert reduced == tree.only(nodes)
    assert reduced.depths == tuple(tree.depths[node] for node in nodes)
    assert torch.equal(drafts, torch.stack([tokens_of[node] for node in nodes], dim=1))
    assert len(nodes) == len(tree) if not confidence else len(nodes) < len(tree)


def test_untrained_drafts_change_nothing() -> None:
    otter = drafting()
    assert torch.equal(generate(otter, custom_generate=SpeculativeDecoding()), generate(otter.base_model))


@pytest.mark.parametrize("length", range(1, 8))
def test_the_length_is_kept_inside_an_accepted_run(trained, length) -> None:
    loop = SpeculativeDecoding(tree=TREES["chain"])
    results = generate(trained, custom_generate=loop, max_new_tokens=length)
    assert torch.equal(results, generate(trained.base_model, max_new_tokens=length))


@pytest.mark.parametrize("position", range(NEW))
def test_ends_are_kept_inside_an_accepted_run(trained, position) -> None:
    end = int(generate(trained.base_model)[2, 5 + position])
    for stop in (end, [end, 96]):
        expected = generate(trained.base_model, eos_token_id=stop)
        assert torch.equal(generate(trained, custom_generate=SpeculativeDecoding(), eos_token_id=stop), expected)


def test_the_context_can_be_filled_to_its_end() -> None:
    """Learned positions end with the context; drafts may reach beyond it."""
    base = family_base("gpt2")
    draft = DraftConfig(heads=3, width=24, rank=8, vocabulary_size=60)
    otter = OtterModel(base, tiny_config(signal=draft)).eval()
    last = base.config.n_positions
    ids = tokens(2, last - 3)
    settings = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    results = otter.generate(ids, custom_generate=SpeculativeDecoding(), **settings)
    assert torch.equal(results, base.generate(ids, **settings))


def test_criteria_of_the_user_are_asked_after_every_token(trained) -> None:
    class Count(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
            return (input_ids[:, 5:] % 2).sum(dim=-1) >= 3

    # With an end of sequence, however rare, the base pads a row that a criterion has ended.
    settings = {"stopping_criteria": [Count()], "eos_token_id": 96}
    results = generate(trained, custom_generate=SpeculativeDecoding(), **settings)
    assert torch.equal(results, generate(trained.base_model, **settings))


def test_processors_of_the_user_are_obeyed(trained) -> None:
    settings = {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "min_new_tokens": 5, "eos_token_id": 40}
    results = generate(trained, custom_generate=SpeculativeDecoding(), **settings)
    assert torch.equal(results, generate(trained.base_model, **settings))


def test_reward_guidance_and_drafts_in_one_pass(trained) -> None:
    if "reward" not in trained.adapters:
        add_tiny_adapter(trained, "reward", seed=4, layers=(1, 3))
        trained.eval()
    guidance = {"logits_processor": [RewardGuidance(trained, 3.0, top_k=6)]}
    expected = generate(trained, **guidance)
    assert not torch.equal(expected, generate(trained.base_model))
    loop = SpeculativeDecoding(tree=TREES["bush"])
    assert torch.equal(generate(trained, custom_generate=loop, **guidance), expected)
    stop = [RewardStop(trained, 0.0)]
    refused(
        lambda: generate(trained, custom_generate=loop, stopping_criteria=stop),
        "RewardStop counts them together: one row",
    )
    for row in range(3):
        one = {name: value[row : row + 1] for name, value in batch().items()}
        settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        with trained.use_adapters(["reward"]):
            ended = trained.generate(**one, **settings, stopping_criteria=[RewardStop(trained, 0.0, 2)])
        drafted = trained.generate(
            **one, **settings, custom_generate=loop, stopping_criteria=[RewardStop(trained, 0.0, 2)]
        )
        assert torch.equal(drafted, ended)


def outcomes(base, prompt: Tensor, top_k: int, length: int, temperature: float = 1.0) -> dict[tuple[int, ...], float]:
    """Returns the exact probability of every continuation under top-k sampling."""
    chances: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        longer = {}
        for response, chance in chances.items():
            ids = torch.cat((prompt, prompt.new_tensor([response]).long().view(1, -1)), dim=-1)
            with torch.no_grad():
                best, likely = (base(ids).logits[0, -1] / temperature).topk(top_k)
            for token, share in zip(likely.tolist(), best.softmax(dim=-1).tolist(), strict=True):
                longer[(*response, token)] = chance * share
        chances = longer
    return chances


def chi_square(counts: dict[tuple[int, ...], int], expected: dict[tuple[int, ...], float]) -> float:
    """Returns Pearson's statistic in standard deviations from its mean: about N(0, 1) if they agree."""
    total, degrees = sum(counts.values()), len(expected) - 1
    assert set(counts) <= set(expected)
    statistic = sum((counts.get(key, 0) - total * p) ** 2 / (total * p) for key, p in expected.items())
    return (statistic - degrees) / math.sqrt(2 * degrees)


def test_samples_have_the_distribution_of_the_base(trained) -> None:
    prompt, rows = tokens(1, 5, seed=9), 4000
    expected = outcomes(trained.base_model, prompt, top_k=3, length=3)
    torch.manual_seed(0)
    output = trained.generate(
        prompt.expand(rows, -1),
        max_new_tokens=3,
        do_sample=True,
        top_k=3,
        eos_token_id=None,
        pad_token_id=0,
        custom_generate=SpeculativeDecoding(tree=TREES["bush"]),
        return_dict_in_generate=True,
    )
    assert output.acceptance_length > 1.1
    counts: dict[tuple[int, ...], int] = {}
    for response in map(tuple, output.sequences[:, 5:].tolist()):
        counts[response] = counts.get(response, 0) + 1
    assert chi_square(counts, expected) < 4
    # The test would see a distribution that is a little too sharp.
    sharper = outcomes(trained.base_model, prompt, top_k=3, length=3, temperature=0.85)
    assert chi_square(counts, sharper) > 4


def test_tokens_are_streamed(trained) -> None:
    heard, ids = Listener(), tokens(1, 5, seed=9)
    responses = trained.generate(
        ids,
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        custom_generate=SpeculativeDecoding(),
        streamer=heard,
    )
    assert heard.tokens == [*responses[0].tolist(), -1]


def test_what_cannot_be_drafted_is_refused(trained) -> None:
    refused(lambda: SpeculativeDecoding(drafts=0), "drafts must be a whole number")
    refused(lambda: SpeculativeDecoding(confidence=1.5), "confidence")
    refused(
        lambda: generate(trained, custom_generate=SpeculativeDecoding(tree=DraftTree.chain(4))), "more than 3 heads"
    )
    wide = DraftTree((-1, 0), (0, 60))
    refused(lambda: generate(trained, custom_generate=SpeculativeDecoding(tree=wide)), "vocabulary")
    refused(lambda: generate(trained, custom_generate=SpeculativeDecoding(), num_beams=2), "num_beams")
    refused(lambda: generate(trained, custom_generate=SpeculativeDecoding(adapter_name="x")), "unknown signal 'x'")
    refused(
        lambda: RewardGuidance(trained, 1.0, adapter_name="draft"),
        "'draft' (draft) is not one that scores every next token",
    )
    refused(lambda: DraftTree((-1, 2, 1), (0, 0, 0)), "before its children")
    refused(lambda: DraftTree((0,), (0,)), "starts with its root (parent -1)")


def test_the_tree_is_shaped_by_what_was_measured(trained) -> None:
    otter = drafting(accuracy=((0.5, 0.3), (0.4,), (0.1,)))
    tree = SpeculativeDecoding(drafts=3)._policy(otter, 1).tree
    assert tree == DraftTree((-1, 0, 0, 1, 2, 3, 4), (0, 0, 1, 0, 0, 0, 0))  # all that the measured guesses can make
    assert DraftTree.best(((0.5, 0.3), (0.4,), (0.1,)), 3) == DraftTree((-1, 0, 0, 1), (0, 0, 1, 0))
    assert all(len(row) == 16 and sum(row) <= 1.001 for row in trained.accuracy)
    assert SpeculativeDecoding(drafts=9)._policy(drafting(), 1).tree == DraftTree.chain(9)  # 6 for the lookup alone


def expected_length(tree: DraftTree, accuracy) -> float:
    chances = [1.0]
    for node in range(1, len(tree)):
        chances.append(chances[tree.parents[node]] * accuracy[tree.depths[node] - 1][tree.ranks[node]])
    return sum(chances)


@given(st.lists(st.lists(st.floats(0, 0.5), min_size=1, max_size=3), min_size=1, max_size=3), st.integers(1, 6))
def test_no_tree_of_its_size_is_better(accuracy, drafts) -> None:
    accuracy = [sorted(row, reverse=True) for row in accuracy]
    tree = DraftTree.best(accuracy, drafts)
    nodes = [path for n in range(1, len(accuracy) + 1) for path in product(*(range(len(row)) for row in accuracy[:n]))]
    assert len(tree) == 1 + min(drafts, len(nodes))
    chances = sorted((math.prod(accuracy[i][r] for i, r in enumerate(path)) for path in nodes), reverse=True)
    assert expected_length(tree, accuracy) == pytest.approx(1 + sum(chances[:drafts]))


def test_the_loss_is_the_heads_cross_entropy_on_later_tokens() -> None:
    otter = drafting().train()
    examples = [Example(0, (5, 6, 7), ((8, 9, 10, 11, 59, 95),)), Example(1, (4,), ((3, 12),))]
    objective = DraftObjective(otter, LiveBase(otter))
    with torch.no_grad():
        loss = objective(collate(examples))["loss"]
        totals: list[list[Tensor]] = [[], [], []]
        for example in examples:
            text = [*example.prefix, *example.branches[0]]
            signal = otter(torch.tensor([text])).signals["draft"]
            for start in range(len(example.prefix) - 1, len(text)):
                code = None
                for head in range(3):
                    if start + 2 + head < len(text):
                        code = signal.code(head, signal.state[0, start], torch.tensor(text[start + 1 + head]), code)
                        target = text[start + 2 + head]
                        if target < 60:  # the draft vocabulary
                            totals[head].append(-signal.scores(head, code).log_softmax(dim=-1)[target])
    weights = [1.0, 0.8, 0.64]
    means = torch.stack([torch.stack(total).mean() for total in totals])
    close(loss, (torch.tensor(weights) * means).sum() / sum(weights), 1e-4)


def test_frequent_tokens_come_first() -> None:
    examples = [Example(0, (1,), ((7, 7, 9, 9, 9, 50),)), Example(1, (1,), ((7, 9),))]
    assert frequent_tokens(examples, 2, 97).tolist() == [7, 9]
    assert frequent_tokens(examples, 5, 97).tolist() == [0, 1, 7, 9, 50]


@torch.no_grad()
def test_a_draft_adapter_is_saved_whole(tmp_path: Path, trained) -> None:
    trained.save_pretrained(tmp_path, "draft", dtype=torch.bfloat16)
    again = OtterModel.from_pretrained(tiny_base(), tmp_path)
    assert torch.equal(again.adapter().head.vocabulary, trained.adapter("draft").head.vocabulary)
    assert torch.equal(generate(again, custom_generate=SpeculativeDecoding()), generate(again.base_model))
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "adapter_model.safetensors")
    for ids in (weights["head.vocabulary"] + 90, weights["head.vocabulary"] - 90):
        save_file(weights | {"head.vocabulary": ids}, tmp_path / "adapter_model.safetensors")
        refused(lambda: OtterModel.from_pretrained(tiny_base(), tmp_path), "no tokens of the base")
    save_file(weights | {"head.vocabulary": weights["head.vocabulary"].float()}, tmp_path / "adapter_model.safetensors")
    refused(lambda: OtterModel.from_pretrained(tiny_base(), tmp_path), "head.vocabulary is F32; expected I64")


@pytest.mark.parametrize(("hits", "window"), [(1, 1), (2, 3)])
def test_a_guard_stops_beside_drafts_where_it_stops_without(trained, hits, window) -> None:
    add_tiny_adapter(trained, "guard", seed=4, signal=GuardConfig(("rude", "threat"), vocabulary_rank=0))
    try:
        ids = tokens(1, 5, seed=9)
        settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        plain = trained.generate(ids, **settings)
        beside = label_sequences(trained, plain, torch.ones_like(plain))[0, 5:]  # [N, L]
        levels = torch.stack([alarm_levels(beside[:, label], hits, window) for label in range(2)]).amax(dim=0)
        edges = sorted({0.0, *levels.tolist(), 1.0})
        ends, lengths = set(), []
        for alarm in [(low + high) / 2 for low, high in pairwise(edges)]:
            alone, drafted = (GuardStop(trained, alarm, hits, window) for _ in range(2))
            expected = trained.generate(ids, stopping_criteria=[alone], **settings)
            loop = SpeculativeDecoding(tree=TREES["chain"])
            output = trained.generate(
                ids, stopping_criteria=[drafted], custom_generate=loop, return_dict_in_generate=True, **settings
            )
            assert torch.equal(output.sequences, expected)
            assert drafted.labels == alone.labels
            assert drafted.stopped is not None
            assert alone.stopped is not None
            assert torch.equal(drafted.stopped, alone.stopped)
            ends.add(expected.shape[1])
            lengths.append(output.acceptance_length or 1.0)
        assert len(ends) > 1  # at several tokens
        assert max(lengths) > 1.1  # also where drafts were accepted
    finally:
        trained.delete_adapter("guard")
