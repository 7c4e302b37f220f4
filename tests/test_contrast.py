"""Contrast: the objective is each side's language-model loss, decoding is DExperts' formula, and it works."""

import copy
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import batch, close, generate, randomize, refused, tiny_base, tiny_config, tiny_otter, tokens
from torch import Tensor

from otterlm.decoding import ContrastGuidance, ReadAlongModel, TwoModelContrast
from otterlm.decoding.steering import FEW, nucleus
from otterlm.model import OtterModel
from otterlm.peers.dexperts import DExperts, FineTunedExpert
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.signals.contrast.objective import ContrastObjective
from otterlm.training.data.corpora import UNWANTED, WANTED, read_labelled, read_texts
from otterlm.training.data.packing import Example, collate
from otterlm.training.sources import LiveBase
from otterlm.training.trainer import TrainingConfig, train


def contrasting() -> OtterModel:
    """Makes a base with a random contrast adapter."""
    otter = tiny_otter(tiny_base(), signal=ContrastConfig(rank=4))
    return otter.eval()


def corpora(count: int = 40) -> list[Example]:
    """Wanted texts are made of tokens 10 to 19, unwanted ones of 20 to 29."""
    draw = random.Random(0)

    def text(low: int) -> tuple[int, ...]:
        return tuple(draw.randrange(low, low + 10) for _ in range(draw.randint(3, 6)))

    sides = [(WANTED, 10), (UNWANTED, 20)] * (count // 2)
    return [Example(row, (1,), (text(low),), label=side) for row, (side, low) in enumerate(sides)]


@pytest.mark.parametrize("sample", [False, True])
def test_alpha_zero_gives_the_tokens_of_the_base(sample) -> None:
    otter = contrasting()
    settings = {"do_sample": sample, "top_k": 0} if sample else {}
    torch.manual_seed(3)
    expected = generate(otter.base_model, **settings)
    torch.manual_seed(3)
    assert torch.equal(generate(otter, logits_processor=[ContrastGuidance(otter, 0.0, 0.5)], **settings), expected)


@torch.no_grad()
def test_guidance_is_the_formula_of_dexperts() -> None:
    otter, ids = contrasting(), tokens(2, 7)
    output = otter(ids)
    head, state = otter.adapter().head, output.signals["contrast" if "contrast" in output.signals else "reward"].state
    unembedding = otter.base_model.lm_head.weight
    sides = [
        output.logits[:, -1] + state[:, -1] @ side.down.weight.T @ side.up.weight.T @ unembedding.T
        for side in (head.expert, head.anti_expert)
    ]
    scores = ContrastGuidance(otter, 1.5, 0.7)(ids, output.logits[:, -1])
    inside = nucleus(output.logits[:, -1], 0.7)
    close(scores[inside], (output.logits[:, -1] + 1.5 * (sides[0] - sides[1]))[inside], 1e-4)
    assert scores[~inside].eq(-torch.inf).all()


def test_nucleus() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.7, 0.1, 0.1, 0.1]]).log()
    assert nucleus(scores, 0.7).tolist() == [[False, True, False, True], [True, False, False, False]]
    assert nucleus(scores, 0.76)[0].tolist() == [False, True, True, True]
    assert nucleus(scores, 0.76)[1].sum() == 2  # of three that are equally likely, one
    assert nucleus(scores, 1e-9).sum(dim=-1).tolist() == [1, 1]
    assert nucleus(scores, 1.0).all()


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
def test_a_nucleus_of_many_tokens(spread) -> None:
    """Also where the few that are tried first do not hold it."""
    scores = spread * torch.randn(3, 3 * FEW, generator=torch.Generator().manual_seed(0))
    inside, chances = nucleus(scores, 0.9), scores.softmax(dim=-1)
    for row, shares in zip(inside, chances, strict=True):
        assert shares[row].min() > shares[~row].max()
        assert shares[row].sum() >= 0.9 > shares[row].sum() - shares[row].min()
    assert (spread < 5) == bool((inside.sum(dim=-1) > FEW).all())


def test_each_side_is_trained_on_its_own_texts() -> None:
    otter = contrasting()
    randomize(otter.adapter().head, 5)
    objective, examples = ContrastObjective(otter, LiveBase(otter)), corpora(6)
    head, unembedding = otter.adapter().head, otter.base_model.lm_head.weight
    losses, base_losses, margins = [], [], []
    with torch.no_grad():
        for example in examples:
            text = torch.tensor([[*example.prefix, *example.branches[0]]])
            output = otter(text)
            state = next(iter(output.signals.values())).state[0, :-1]
            per_side = [
                F.cross_entropy(
                    output.logits[0, :-1] + side.direction(state) @ unembedding.T, text[0, 1:], reduction="none"
                )
                for side in (head.anti_expert, head.expert)
            ]
            label = example.label
            losses.append(per_side[label])
            margins.append(float((per_side[1 - label] - per_side[label]).sum()))
            base_losses.append(F.cross_entropy(output.logits[0, :-1], text[0, 1:], reduction="none"))
    expected = torch.cat(losses).mean()
    close(objective.train()(collate(examples))["loss"], expected, 1e-4)
    with torch.no_grad():
        measured = objective.eval()(collate(examples))
    close(measured["loss"], expected, 1e-4)
    close(measured["base"], torch.cat(base_losses).mean(), 1e-4)
    assert measured["accuracy"] == pytest.approx(sum(margin > 0 for margin in margins) / len(margins))
    # An expert's texts leave the anti-expert alone.
    objective.train()(collate([e for e in examples if e.label == WANTED]))["loss"].backward()
    assert head.expert.up.weight.grad.abs().sum() > 0
    assert not head.anti_expert.up.weight.grad.any()


def test_it_learns_to_tell_and_to_steer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    otter = OtterModel(tiny_base(), tiny_config(signal=ContrastConfig(rank=8))).train()
    examples = corpora(80)
    how = TrainingConfig(epochs=8, batch_size=8, learning_rate=1e-2, evaluations_per_epoch=1, patience=8)
    metrics = train(ContrastObjective(otter, LiveBase(otter)), examples[:64], examples[64:], how, tmp_path)
    assert metrics["accuracy"] > 0.9
    assert metrics["loss"] < 0.8 * metrics["base"]

    def wanted(alpha: float) -> float:
        start: dict[str, Any] = {"input_ids": torch.tensor([[1], [1]]), "attention_mask": torch.ones(2, 1)}
        # Of tokens that neither side has seen the difference says nothing.
        start["suppress_tokens"] = [*range(10), *range(30, 97)]
        responses = generate(otter.eval(), logits_processor=[ContrastGuidance(otter, alpha, 1.0)], **start)[:, 1:]
        return float(((responses >= 10) & (responses < 20)).float().mean())

    assert wanted(5.0) == 1.0
    assert wanted(-5.0) == 0.0


def plain_dexperts(base, expert, anti, alpha: float, top_p: float, row: int) -> list[int]:
    """Decodes greedily as DExperts does, by whole passes over one unpadded row."""
    ids = batch()["input_ids"][row : row + 1, 3 * row :]
    with torch.no_grad():
        for _ in range(6):
            scores, plus, minus = (model(ids).logits[:, -1] for model in (base, expert, anti))
            mixed = (scores + alpha * (plus - minus)).masked_fill(~nucleus(scores, top_p), -torch.inf)
            ids = torch.cat((ids, mixed.argmax(dim=-1, keepdim=True)), dim=-1)
    return ids[0, -6:].tolist()


def test_dexperts_reads_along_with_caches() -> None:
    base, expert, anti = (tiny_base(seed=seed) for seed in (0, 1, 2))
    for alpha in (0.0, 0.5):
        results = generate(base, logits_processor=[DExperts(expert, anti, **prompt(), alpha=alpha, top_p=0.8)])
        for row in range(2):
            if alpha:
                assert results[row, 7:].tolist() == plain_dexperts(base, expert, anti, alpha, 0.8, row)
            else:
                assert torch.equal(results, generate(base))


def prompt() -> dict[str, Tensor]:
    return {"prompt": batch()["input_ids"], "attention_mask": batch()["attention_mask"]}


def test_dexperts_follows_beams() -> None:
    """A companion whose history was reordered reads it again."""
    base, expert, anti = (tiny_base(seed=seed) for seed in (0, 1, 2))
    ids = tokens(1, 5)
    results = []
    for forget in (False, True):
        processor = DExperts(expert, anti, ids.expand(3, -1), alpha=0.5, top_p=1.0)
        if forget:
            for model in (processor.expert, processor.anti_expert):
                logits = model.logits

                def anew(generated, model=model, logits=logits):
                    model._cache = None
                    return logits(generated)

                model.logits = anew  # type: ignore[method-assign]
        settings = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
        results.append(base.generate(ids, logits_processor=[processor], **settings))
    assert torch.equal(*results)


def test_two_prompts_contrast_without_training() -> None:
    base = tiny_base()
    good, bad = tokens(2, 9, seed=1), tokens(2, 4, seed=2)
    processor = TwoModelContrast(ReadAlongModel(base, good), ReadAlongModel(base, bad), 7, alpha=0.7, top_p=0.9)
    results = generate(base, logits_processor=[processor])
    ids = results[:, :7]
    with torch.no_grad():
        for step in range(6):
            response = results[:, 7 : 7 + step]
            scores = base(torch.cat((ids[:1], response[:1]), dim=-1)).logits[:, -1]
            plus, minus = (base(torch.cat((p[:1], response[:1]), dim=-1)).logits[:, -1] for p in (good, bad))
            mixed = (scores + 0.7 * (plus - minus)).masked_fill(~nucleus(scores, 0.9), -torch.inf)
            assert int(mixed.argmax()) == int(results[0, 7 + step])


def test_prompts_that_follow_each_other_are_read_once() -> None:
    """As `num_return_sequences` has them; what it says is what it says after reading every row."""
    base, prompt, mask = tiny_base(), tokens(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[1, :2] = 0
    responses = tokens(6, 2, seed=3)
    sizes = []
    base.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
    once = ReadAlongModel(base, prompt.repeat_interleave(3, dim=0), mask.repeat_interleave(3, dim=0))
    logits = torch.stack([once.logits(responses[:, :n]) for n in range(3)])
    assert sizes == [(2, 5), (6, 1), (6, 1), (6, 1)]
    every = [ReadAlongModel(base, prompt[row // 3, None], mask[row // 3, None]) for row in range(6)]
    expected = torch.stack(
        [torch.cat([each.logits(responses[row, None, :n]) for row, each in enumerate(every)]) for n in range(3)]
    )
    close(logits, expected, 1e-4)
    # Rows that do not come in groups of one size are read as they are.
    sizes.clear()
    ReadAlongModel(base, prompt[[0, 0, 1]], mask[[0, 0, 1]]).logits(responses[:3, :0])
    assert sizes == [(3, 6)]


def test_the_fine_tuned_rival_learns_its_corpus() -> None:
    base = tiny_base()
    before = copy.deepcopy(base.state_dict())
    objective, example = FineTunedExpert(base), corpora(2)[0]
    loss = objective(collate([example]))["loss"]
    text = torch.tensor([[*example.prefix, *example.branches[0]]])
    close(loss.detach(), base(text, labels=text).loss, 1e-5)
    loss.backward()
    assert all(parameter.grad is not None for parameter in objective.model.get_decoder().parameters())
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert not any(parameter.requires_grad for parameter in base.parameters())


def test_bad_settings_are_refused() -> None:
    otter = contrasting()
    refused(lambda: ContrastGuidance(otter, float("nan")), "alpha must be a finite number, got nan")
    refused(lambda: ContrastGuidance(otter, 1.0, top_p=0.0), "top_p must be above 0 and at most 1, got 0.0")
    refused(lambda: ContrastGuidance(otter, 1.0, top_p=1.5), "top_p must be above 0 and at most 1, got 1.5")
    refused(lambda: ContrastGuidance(tiny_otter(tiny_base()), 1.0), "no adapter moves the logits")
    refused(lambda: generate(otter.base_model, logits_processor=[ContrastGuidance(otter, 1.0)]), "OtterModel")
    short = TwoModelContrast(
        ReadAlongModel(otter.base_model, tokens(2, 3)), ReadAlongModel(otter.base_model, tokens(2, 3)), 9, 1.0
    )
    refused(lambda: generate(otter.base_model, logits_processor=[short]), "7 tokens, not 9")


def test_corpora_are_read(tmp_path: Path) -> None:
    nested = tmp_path / "texts.jsonl.gz"
    with gzip.open(nested, "wt") as file:
        file.writelines(json.dumps({"prompt": {"text": f"text {i}", "toxicity": 0.1}}) + "\n" for i in range(3))
    assert read_texts(nested, "prompt.text") == ["text 0", "text 1", "text 2"]
    (tmp_path / "lines.txt").write_text("one\n\ntwo\n")
    assert read_texts(tmp_path / "lines.txt") == ["one", "two"]
    table = tmp_path / "tweets.csv"
    table.write_text("class,tweet\n0,a\n1,b\n2,c\n7,d\n")
    corpora = read_labelled(table, ["2"], ["0", "1"], "tweet", "class")
    assert [list(side) for side in corpora] == [["c"], ["a", "b"]]
    refused(lambda: read_texts(nested, "text"), "row 1", "text is missing")
    refused(lambda: read_texts(nested, "prompt"), "row 1", "not a text")
    refused(lambda: read_labelled(table, ["5"], ["0"], "tweet", "class"), "positive", "5")
    refused(lambda: read_labelled(table, ["2"], ["0"], "tweet", "label"), "row 1: label is missing")
    (tmp_path / "empty.jsonl").write_text("")
    refused(lambda: read_texts(tmp_path / "empty.jsonl"), "empty.jsonl holds no rows")
