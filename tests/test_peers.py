"""The rivals do what their papers say: ARGS equals whole passes, its cache changes nothing, CARDS judges segments."""

import math
from functools import partial
from typing import Any

import conftest
import pytest
import torch
from conftest import Listener, batch, close, randomize, refused, tiny_base, tiny_otter, tokens
from torch import Tensor
from training_runs import preferences

from otterlm.decoding import RejectionSampling
from otterlm.decoding.rejection import Segments
from otterlm.decoding.steering import plausible
from otterlm.model import OtterModel
from otterlm.peers.args import ARGS
from otterlm.peers.cards import CARDS
from otterlm.peers.dexperts import FineTunedExpert
from otterlm.training.data.packing import Example, collate
from otterlm.training.teachers.reward_model import SeparateRewardModel

NEW = 8


generate = partial(conftest.generate, max_new_tokens=NEW)


@pytest.fixture(scope="module")
def rewarding() -> SeparateRewardModel:
    """Makes a random reward model."""
    model = SeparateRewardModel.of(tiny_base(seed=3)).requires_grad_(False).eval()
    randomize(model.classifier.score, 7)
    return model


@torch.no_grad()
@pytest.mark.parametrize("cached", [True, False])
def test_args_is_the_formula(rewarding, cached) -> None:
    base = tiny_base()
    processor = ARGS(rewarding, 0.8, top_k=4, cached=cached, attention_mask=batch()["attention_mask"])
    results = generate(base, logits_processor=[processor])
    assert not torch.equal(results, generate(base))
    for row in range(2):
        ids = results[row, 3 * row :]
        for end in range(len(ids) - NEW, len(ids)):
            logits, likely = base(ids[None, :end]).logits[0, -1].topk(4)
            texts = torch.stack([torch.cat((ids[:end], token[None])) for token in likely])
            scores = logits + 0.8 * rewarding.read(input_ids=texts)[:, -1]
            assert int(likely[scores.argmax()]) == int(ids[end])


def test_the_cache_reads_k_tokens_a_step(rewarding, monkeypatch) -> None:
    sizes, read = [], rewarding.read

    def counted(**inputs):
        sizes.append(inputs["input_ids"].shape[1])
        return read(**inputs)

    monkeypatch.setattr(rewarding, "read", counted)
    generate(tiny_base(), logits_processor=[ARGS(rewarding, 0.8, top_k=4, attention_mask=batch()["attention_mask"])])
    assert sizes == [7] + [4] * NEW


@torch.no_grad()
def test_a_text_that_has_ended_is_not_read_again(rewarding, monkeypatch) -> None:
    sizes, read = [], rewarding.read

    def counted(**inputs):
        sizes.append(inputs["input_ids"].shape[1])
        return read(**inputs)

    base, mask = tiny_base(), batch()["attention_mask"]
    alone = ARGS(rewarding, 0.8, top_k=4, attention_mask=mask)
    first = int(generate(base, logits_processor=[alone])[0, 7])
    anew = ARGS(rewarding, 0.8, top_k=4, cached=False, attention_mask=mask)
    expected = generate(base, logits_processor=[anew], eos_token_id=first, pad_token_id=5)
    assert expected[0, 7:].tolist() == [first] + [5] * (NEW - 1)
    monkeypatch.setattr(rewarding, "read", counted)
    cached = ARGS(rewarding, 0.8, top_k=4, attention_mask=mask, pad_token_id=5)
    assert torch.equal(generate(base, logits_processor=[cached], eos_token_id=first, pad_token_id=5), expected)
    assert sizes == [7] + [4] * NEW


@torch.no_grad()
def test_args_stays_inside_the_plausible_tokens(rewarding) -> None:
    scores, ids = torch.randn(2, 97, generator=torch.Generator().manual_seed(1)), tokens(2, 5)
    free, bound = (ARGS(rewarding, 9.0, top_k=6, min_p=min_p)(ids, scores) for min_p in (0.0, 0.6))
    inside = torch.isfinite(bound)
    assert 2 <= int(inside.sum()) < 12
    assert torch.equal(inside, torch.isfinite(free) & plausible(scores, 0.6))
    assert torch.equal(bound[inside], free[inside])


@torch.no_grad()
def test_args_reads_again_what_it_did_not_choose(rewarding) -> None:
    """Beams reorder the text, and another processor may choose a token that was no candidate."""
    processor = ARGS(rewarding, 0.8, top_k=3)
    ids = tokens(2, 5)
    for step in range(4):
        scores = torch.randn(2, 97, generator=torch.Generator().manual_seed(step))
        expected = ARGS(rewarding, 0.8, top_k=3, cached=False)(ids, scores)
        close(processor(ids, scores), expected, 1e-4)
        ids = torch.cat((ids.flip(0) if step == 1 else ids, tokens(2, 1, seed=step)), dim=-1)


def test_weight_zero_is_the_base(rewarding) -> None:
    assert torch.equal(generate(tiny_base(), logits_processor=[ARGS(rewarding, 0.0)]), generate(tiny_base()))
    refused(lambda: ARGS(rewarding, math.nan), "weight must be a finite number, got nan")
    refused(lambda: ARGS(rewarding, 1.0, top_k=0), "top_k must be a whole number")


@torch.no_grad()
def test_a_reward_model_is_a_classifier_of_transformers(rewarding, tmp_path) -> None:
    rewarding.save_pretrained(tmp_path / "reward")
    loaded = SeparateRewardModel.from_pretrained(tmp_path / "reward")
    ids = tokens(2, 6)
    assert torch.equal(loaded.read(input_ids=ids), rewarding.read(input_ids=ids))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    tiny_base().save_pretrained(tmp_path / "base")
    refused(lambda: SeparateRewardModel.from_pretrained(tmp_path / "base"), "one label")
    refused(lambda: SeparateRewardModel.from_pretrained(tmp_path / "nothing"), "nothing is not a reward model")


def test_a_shared_copy_takes_no_memory_and_reads_the_same() -> None:
    base = tiny_base()
    shared, copied = (SeparateRewardModel.of(base, shared) for shared in (True, False))
    for model in (shared, copied):
        randomize(model.classifier.score, 7)
    with torch.no_grad():
        assert torch.equal(shared.read(input_ids=tokens(2, 6)), copied.read(input_ids=tokens(2, 6)))
    known = {weight.data_ptr() for weight in base.parameters()}
    assert [n for n, p in shared.named_parameters() if p.data_ptr() not in known] == ["classifier.score.weight"]
    assert not known & {weight.data_ptr() for weight in copied.parameters()}
    assert all(weight.requires_grad for weight in copied.parameters())


def test_lora_leaves_shared_weights_as_they_are() -> None:
    base = tiny_base()
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    model = SeparateRewardModel.lora(base, rank=2, shared=True).train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    known = {weight.data_ptr() for weight in base.parameters()}
    others = [name for name, weight in model.named_parameters() if weight.data_ptr() not in known]
    assert all("lora_" in name or name == "classifier.score.weight" for name in others)
    assert len(others) == len(trained)
    model(collate(preferences(4)))["loss"].backward()
    torch.optim.SGD(trained).step()
    assert bool(model.classifier.score.weight.any())
    assert all(torch.equal(before[name], weight) for name, weight in base.state_dict().items())


@pytest.mark.parametrize("recompute", [True, False])
def test_lora_learns_the_same_whether_blocks_are_computed_again(recompute) -> None:
    """Under autocast to bfloat16, too, as on a GPU."""
    torch.manual_seed(0)
    model = SeparateRewardModel.lora(tiny_base(), rank=2, recompute=recompute).train()
    assert any(getattr(part, "gradient_checkpointing", False) for part in model.modules()) == recompute
    randomize(model.classifier.score, 7)
    for autocast in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(collate(preferences(4)))["loss"].backward()
        learned = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        assert learned.keys() == {name for name, weight in model.named_parameters() if weight.requires_grad}
        assert {grad.dtype for grad in learned.values()} == {torch.float32}
        # B starts at 0, so A learns nothing yet.
        assert all(bool(torch.any(grad)) == ("lora_A" not in name) for name, grad in learned.items())


def test_lora_is_merged_without_a_trace() -> None:
    base = tiny_base()
    model = SeparateRewardModel.lora(base, rank=2).eval()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or name == "classifier.score.weight" for name in trained)
    randomize(model.classifier.score, 7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
        expected = model.read(input_ids=tokens(2, 6))
        plain = SeparateRewardModel.of(base)
        plain.classifier.score = model.classifier.score
        assert not torch.allclose(expected, plain.read(input_ids=tokens(2, 6)), atol=1e-2)
        merged = model.merge()
        close(merged.read(input_ids=tokens(2, 6)), expected, 1e-3)
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in plain.named_parameters()}


def test_lora_trains_in_float32_beside_half_the_precision() -> None:
    base = tiny_base(dtype=torch.bfloat16)
    expert = FineTunedExpert.lora(base, rank=2).train()
    trained = {name: parameter for name, parameter in expert.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name and parameter.dtype == torch.float32 for name, parameter in trained.items())
    example = Example(0, (), (tuple(tokens(9).tolist()),))
    expert(collate([example]))["loss"].backward()
    assert all(parameter.grad is not None for parameter in trained.values())
    assert {parameter.dtype for parameter in expert.merge().parameters()} == {torch.bfloat16}
    assert expert.identity["lora"] == 2
    assert not any("lora_" in name for name, _ in base.named_parameters())


@pytest.fixture
def otter() -> OtterModel:
    return tiny_otter(tiny_base())


def rewards(otter: OtterModel, sequences: Tensor) -> list[float]:
    with torch.no_grad():
        ends = [otter(input_ids=sequences[row, 3 * row :][None]).signals["reward"].prefix[0, -1] for row in range(2)]
    return [float(end) for end in ends]


SAMPLE = {"do_sample": True, "top_k": 0, "return_dict_in_generate": True}


def test_rejection_raises_the_reward(otter) -> None:
    def mean(threshold: float) -> float:
        torch.manual_seed(0)
        total = 0.0
        for _ in range(12):
            loop = RejectionSampling(threshold, alpha=1.0, beta=0.05, shortest=2, longest=3, attempts=12)
            total += sum(rewards(otter, generate(otter, custom_generate=loop, **SAMPLE).sequences))
        return total / 24

    low, high = mean(-50.0), mean(50.0)
    assert high > low + 0.5


def judgements(monkeypatch) -> list[tuple[int, int, float, bool]]:
    """Fills up with what is judged: the prompt's length, the response's, its reward, and whether it was accepted."""
    judge, results = Segments.judge, []

    def judged(row: Segments, reward: float, accepted: bool, attempts: int) -> tuple[list[int], list[int]]:
        response = len(row.response)
        results.append((len(row.tokens) - response, response, reward, accepted))
        return judge(row, reward, accepted, attempts)

    monkeypatch.setattr(Segments, "judge", judged)
    return results


def test_segments_are_accepted_by_the_formula(otter, monkeypatch) -> None:
    results = judgements(monkeypatch)
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(0.6))
    ids = batch()["input_ids"]
    threshold, alpha, beta = 2.0, 0.25, 0.7
    loop = RejectionSampling(threshold, alpha, beta, entropy=0.0, shortest=2, attempts=6)
    torch.manual_seed(0)
    generate(otter, custom_generate=loop, **SAMPLE)
    starts = {7: rewards(otter, ids)[0], 4: rewards(otter, ids)[1]}
    for prompt, response, reward, accepted in results:
        first = (1 - alpha) * starts[prompt] + alpha * threshold
        wanted = min(threshold, first + response / NEW * (threshold - first))
        assert accepted == (math.exp(min(0.0, (reward - wanted) / beta)) > 0.6)
    assert {accepted for *_, accepted in results} == {True, False}


def test_the_best_is_taken_where_none_is_accepted(otter, monkeypatch) -> None:
    results = judgements(monkeypatch)
    loop = RejectionSampling(1e6, shortest=NEW, longest=NEW, attempts=5)
    torch.manual_seed(0)
    output = generate(otter, custom_generate=loop, **SAMPLE)
    assert (output.segments, output.attempts) == ([1, 1], [5, 5])
    for prompt, reward in zip((7, 4), rewards(otter, output.sequences), strict=True):
        assert max(value for length, _, value, _ in results if length == prompt) == pytest.approx(reward, abs=1e-3)


@pytest.mark.parametrize("entropy", [0.0, 3.9, 1e9])
def test_segments_end_where_the_base_is_unsure(otter, entropy) -> None:
    torch.manual_seed(0)
    loop = RejectionSampling(-1e6, entropy=entropy, shortest=2, longest=4)
    ids, new = tokens(1, 5), 12
    output = otter.generate(ids, max_new_tokens=new, eos_token_id=None, custom_generate=loop, **SAMPLE)
    with torch.no_grad():
        logits = otter.base_model(output.sequences).logits[0]
    unsure = torch.distributions.Categorical(logits=logits).entropy() >= entropy
    segments = length = 0
    for position in range(5, 5 + new):
        length += 1
        if length == 4 or (length >= 2 and unsure[position]) or position == 4 + new:
            segments, length = segments + 1, 0
    assert output.segments == output.attempts == [segments]


def test_what_was_rejected_leaves_no_trace_in_the_cache(otter) -> None:
    """Every reward that is judged is that of the text so far, by a plain pass."""
    seen: list[Any] = []

    class Watched(RejectionSampling):
        def _rewards(self, model, output, rows, judged):
            rewards = super()._rewards(model, output, rows, judged)
            seen.extend((rows[index].tokens.clone(), value) for index, value in zip(judged, rewards, strict=True))
            return rewards

    torch.manual_seed(1)
    loop = Watched(50.0, alpha=0.9, beta=0.3, shortest=1, longest=3, entropy=1.0, attempts=4)
    output = generate(otter, custom_generate=loop, **SAMPLE)
    assert sum(output.attempts) > sum(output.segments) >= 4
    with torch.no_grad():
        for text, value in seen:
            close(otter(input_ids=text[None]).signals["reward"].prefix[0, -1], torch.tensor(value), 1e-3)
    assert output.sequences.shape == (2, 7 + NEW)


def test_a_processor_beside_reads_the_signals_of_its_text(otter) -> None:
    """Also where a rejected segment was read last."""
    seen = []

    def listen(input_ids: Tensor, scores: Tensor) -> Tensor:
        seen.append((input_ids.clone(), otter.signal("reward").prefix.clone()))
        return scores

    torch.manual_seed(1)
    loop = RejectionSampling(50.0, alpha=0.9, beta=0.3, shortest=1, longest=3, entropy=1.0, attempts=4)
    output = generate(otter, custom_generate=loop, logits_processor=[listen], **SAMPLE)
    assert sum(output.attempts) > sum(output.segments)
    mask = batch()["attention_mask"]
    with torch.no_grad():
        for number, (texts, values) in enumerate(seen):
            index = number % 2  # the rows in turn, each in all places
            text = torch.cat((texts[index, :7][mask[index].bool()], texts[index, 7:]))
            expected = otter(input_ids=text[None]).signals["reward"].prefix[0, -1]
            close(values[index, -1], expected, 1e-3)


def test_accepting_all_samples_from_the_base(otter) -> None:
    """With a threshold below every reward it is sampling: the first token has the base's distribution."""
    torch.manual_seed(0)
    ids = tokens(1, 5).expand(1500, -1)
    loop = RejectionSampling(-1e6, entropy=0.0, shortest=1)
    samples = otter.generate(ids, max_new_tokens=1, do_sample=True, top_k=4, eos_token_id=None, custom_generate=loop)
    with torch.no_grad():
        best, likely = otter.base_model(ids[:1]).logits[0, -1].topk(4)
    shares = [(samples[:, -1] == token).float().mean() for token in likely]
    close(torch.stack(shares), best.softmax(dim=-1), 0.05)


def test_ends_and_lengths_are_kept(otter) -> None:
    torch.manual_seed(0)
    loop = RejectionSampling(0.0, shortest=2, longest=4, attempts=3)
    ends = list(range(3, 40))
    output = generate(otter, custom_generate=loop, **SAMPLE, eos_token_id=ends)
    for row in output.sequences[:, 7:].tolist():
        ended = [position for position, token in enumerate(row) if token in ends]
        assert not ended or set(row[ended[0] + 1 :]) <= {0}
        assert len(row) <= NEW
    torch.manual_seed(0)
    expected = generate(otter.base_model, do_sample=True, top_k=0)
    torch.manual_seed(0)
    free = RejectionSampling(-math.inf)
    assert torch.equal(generate(otter, custom_generate=free, do_sample=True, top_k=0), expected)


def test_rejection_streams_what_was_taken(otter) -> None:
    heard = Listener()
    torch.manual_seed(0)
    loop = RejectionSampling(50.0, alpha=0.9, beta=0.3, shortest=1, longest=3, entropy=1.0, attempts=4)
    ids = tokens(1, 5)
    output = otter.generate(ids, max_new_tokens=NEW, eos_token_id=None, custom_generate=loop, streamer=heard, **SAMPLE)
    assert sum(output.attempts) > sum(output.segments)
    assert heard.tokens == [*output.sequences[0].tolist(), -1]


def test_cards_with_a_separate_model_judges_the_same_texts(rewarding) -> None:
    judged = []

    class Watched(CARDS):
        def _reward(self, index, text):
            value = super()._reward(index, text)
            judged.append((text.clone(), value))
            return value

    torch.manual_seed(0)
    loop = Watched(rewarding, 20.0, alpha=0.9, beta=0.3, shortest=1, longest=3, entropy=1.0, attempts=3)
    for _ in range(2):  # the second generation must not be confused by the first
        output = generate(OtterModel(tiny_base()), custom_generate=loop, **SAMPLE)
    assert sum(output.attempts) > sum(output.segments)
    with torch.no_grad():
        for text, value in judged:
            close(rewarding.read(input_ids=text[None])[0, -1], torch.tensor(value), 1e-3)


def test_bad_settings_are_refused(otter) -> None:
    refused(lambda: RejectionSampling(math.nan), "threshold must be a finite number, got nan")
    refused(lambda: RejectionSampling(0.0, beta=0.0), "beta must be above 0")
    refused(lambda: RejectionSampling(0.0, alpha=2.0), "alpha must be from 0 to 1")
    refused(lambda: RejectionSampling(0.0, attempts=0), "attempts")
    refused(lambda: generate(otter, custom_generate=RejectionSampling(0.0)), "do_sample")
