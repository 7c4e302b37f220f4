"""The engine says what a guard says in Transformers, stops where it stops, and steers as it steers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engines import Answer, answers, assert_rewards, greedy, make_folder, prompts, tokens_of
from torch import Tensor

from otterlm import client
from otterlm.decoding import GuardStop, RewardGuidance, judge_prompt, label_sequences
from otterlm.engines.exported import load_exported

PROMPTS = prompts(8)
LABELS = ("rude", "threat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("guarded"), signals=("moderator", "reward"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load_exported(folder)


def generated(model: Any, **settings: Any) -> list[list[int]]:
    """Returns the new tokens that Transformers generates after each prompt."""
    defaults = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    results = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt["prompt_token_ids"]])
        results.append(model.generate(ids, **defaults | settings)[0, ids.shape[1] :].tolist())
    return results


def middle(values: Tensor) -> float:
    """Returns a number in the widest gap of the middle of some numbers: batches round differently."""
    ranked = values.flatten().sort().values
    inner = ranked[len(ranked) // 3 : -len(ranked) // 3]
    widest = int(inner.diff().argmax())
    return float(inner[widest] + inner[widest + 1]) / 2


@pytest.fixture(scope="module")
def levels(model: Any) -> Tensor:
    """Returns the probabilities beside the new tokens, `[8, 12, 2]`."""
    rows = []
    for prompt, new in zip(PROMPTS, generated(model), strict=True):
        ids = torch.tensor([[*prompt["prompt_token_ids"], *new]])
        rows.append(label_sequences(model, ids, torch.ones_like(ids), "moderator")[0, -12:])
    return torch.stack(rows)


@pytest.fixture(scope="module")
def alarms(levels: Tensor) -> list[dict[str, Any]]:
    rude, threat = middle(levels[..., 0]), middle(levels[..., 1])
    return [
        {"guard": "moderator"},  # the stored one
        {"alarm": middle(levels)},
        {"alarm": middle(levels), "hits": 2, "window": 3},
        {"alarm": {"threat": threat}},
        {"alarm": {"rude": rude, "threat": threat}, "hits": 3, "window": 4},
        {"alarm": 1.5},  # never
    ]


@pytest.fixture(scope="module")
def served(folder: Path, alarms: list[dict[str, Any]]) -> list[list[Answer]]:
    """Returns what one engine answers: everything beside tokens; steered; refusing; beside the tokens of prompts, which
    are read in parts; and with each alarm."""
    asked: list[dict[str, Any]] = [
        {"guards": 1, "rewards": 1, "prompt": 1},
        {"weight": 3.0, "signal": "moderator"},
        {"refuse": 1, "prompt": 1, "guards": 1},
        {"prompt_tokens": 1},
        *({"guards": 1} | alarm for alarm in alarms),
    ]
    batches = [(PROMPTS, greedy(**client.request(folder, **settings))) for settings in asked]
    return answers(folder, *batches, max_num_batched_tokens=64)


def test_probabilities_stand_beside_tokens(model: Any, served: list[list[Answer]]) -> None:
    assert tokens_of(served[0]) == generated(model)
    assert_rewards(model, served[0], "moderator", "reward")
    for answer in served[0]:
        with torch.no_grad():
            signal = model(torch.tensor([[*answer.prompt, *answer.tokens]])).signals["moderator"]
        before = slice(len(answer.prompt) - 1, -1)
        for index, label in enumerate(LABELS):
            ours = torch.tensor(answer.guards["moderator"][label])
            torch.testing.assert_close(ours, signal.probabilities[0, before, index].detach(), atol=1e-4, rtol=0)
        ours = torch.tensor(answer.spans["moderator"]["threat"])
        torch.testing.assert_close(ours, signal.span_probabilities[0, before, 0].detach(), atol=1e-4, rtol=0)


def test_the_prompt_is_judged_as_in_transformers(model: Any, served: list[list[Answer]]) -> None:
    """A flagged prompt gets no token, if the request wants that; the others get theirs."""
    flagged = []
    for answer, refused in zip(served[0], served[2], strict=True):
        (expected,) = judge_prompt(model, torch.tensor([answer.prompt]), adapter_name="moderator")
        ours = answer.at_prompt["guards"]["moderator"]
        shares = ours.pop("probabilities")
        assert shares == pytest.approx(expected.probabilities, abs=1e-4)
        assert ours == {
            "label": expected.label,
            "probability": shares[expected.label],
            "flagged": expected.flagged,
        }
        assert answer.at_prompt["rewards"]["reward"] == answer.rewards["reward"][0]
        assert refused.at_prompt["guards"]["moderator"]["label"] == expected.label
        flagged.append(expected.flagged)
        assert refused.tokens == ([] if expected.flagged else answer.tokens)
        assert refused.stop_reason == (f"otter: {expected.label} in the prompt" if expected.flagged else None)
    assert 0 < sum(flagged) < len(flagged)


def test_the_tokens_of_prompts_have_numbers(model: Any, served: list[list[Answer]]) -> None:
    for answer, other in zip(served[3], served[0], strict=True):
        with torch.no_grad():
            signals = model(torch.tensor([answer.prompt])).signals
        tokens = answer.at_prompt.pop("tokens")
        assert answer.at_prompt["guards"]["moderator"]["label"] == other.at_prompt["guards"]["moderator"]["label"]
        for name in ("moderator", "reward"):
            ours = torch.tensor(tokens["rewards"][name])
            torch.testing.assert_close(ours, signals[name].prefix[0].detach(), atol=1e-4, rtol=0)
        ours = torch.tensor([tokens["guards"]["moderator"][label] for label in LABELS]).T
        torch.testing.assert_close(ours, signals["moderator"].probabilities[0].detach(), atol=1e-4, rtol=0)
        ours = torch.tensor(tokens["spans"]["moderator"]["threat"])
        torch.testing.assert_close(ours, signals["moderator"].span_probabilities[0, :, 0].detach(), atol=1e-4, rtol=0)
        assert answer.tokens == other.tokens


def test_responses_end_where_guard_stop_ends_them(
    model: Any, served: list[list[Answer]], alarms: list[dict[str, Any]]
) -> None:
    whole, ends = tokens_of(served[0]), set()
    for alarm, ended in zip(alarms, served[4:], strict=True):
        settings = {name: value for name, value in alarm.items() if name != "guard"}
        for index, answer in enumerate(ended):
            stop = GuardStop(model, **settings, adapter_name="moderator")
            ids = torch.tensor([answer.prompt])
            output = model.generate(
                ids, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0, stopping_criteria=[stop]
            )
            (label,) = stop.labels or [None]
            # Transformers returns the token that was chosen meanwhile.
            length = output.shape[1] - ids.shape[1] - (label is not None)
            assert answer.tokens == whole[index][:length]
            assert answer.stop_reason == (None if label is None else f"otter: {label}")
            assert all(len(answer.guards["moderator"][name]) == length for name in LABELS)
            ends.add((label, length))
    assert {label for label, _ in ends} == {None, *LABELS}
    assert len({length for _, length in ends}) > 3


def test_a_guard_steers(model: Any, served: list[list[Answer]]) -> None:
    guidance = RewardGuidance(model, 3.0, adapter_name="moderator")
    assert tokens_of(served[1]) == generated(model, logits_processor=[guidance]) != tokens_of(served[0])
