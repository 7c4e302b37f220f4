"""Compiled engines, which vLLM makes by default, have plain vLLM's tokens and the signals of Transformers.

vLLM traces the hooks with the model. From the third widened block on, PyTorch's compiler once read a product before it
was computed.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import Answer, answers, assert_rewards, greedy, make_folder, prompts, tokens_of
from oracle import STATES

from otterlm import client
from otterlm.engines.exported import load_exported

PROMPTS = prompts(8)
DRAFTS: dict[str, Any] = {"method": "custom_class", "model": "oracle.Recorder", "num_speculative_tokens": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("compiled"), signals=("draft", "reward"), num_hidden_layers=5)


@pytest.fixture(autouse=True)
def _compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own makes it compile."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))


def served(folder: Path, **settings: Any) -> tuple[list[Answer], list[Answer], list[Answer]]:
    """Returns a compiled engine's answers: without settings, with rewards, and steered."""
    asked: list[dict[str, Any]] = [{}, {"rewards": 1}, {"weight": 3.0}]
    batches = [(PROMPTS, greedy(**client.request(folder, **each) if each else {})) for each in asked]
    innocent, rewarded, steered = answers(folder, *batches, enforce_eager=False, **settings)
    return innocent, rewarded, steered


@pytest.fixture(scope="module")
def plain(folder: Path) -> list[Answer]:
    (texts,) = answers(folder.parent / "base", (PROMPTS, greedy()))
    return texts


def test_signals(folder: Path, plain: list[Answer]) -> None:
    """Guidance stands outside the graph, and chooses what it chooses in an eager engine."""
    innocent, rewarded, steered = served(folder)
    assert tokens_of(innocent) == tokens_of(rewarded) == tokens_of(plain) != tokens_of(steered)
    assert_rewards(load_exported(folder), rewarded)
    (eager,) = answers(folder, (PROMPTS, greedy(**client.request(folder, weight=3.0))))
    assert tokens_of(steered) == tokens_of(eager)


def test_drafts(folder: Path, plain: list[Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and signals beside drafts are those without. The states that drafts are guessed from are Transformers'."""
    monkeypatch.setenv(STATES, str(tmp_path / "states.jsonl"))
    innocent, rewarded, steered = served(folder, speculative_config=DRAFTS)
    assert tokens_of(innocent) == tokens_of(rewarded) == tokens_of(plain) != tokens_of(steered)
    model = load_exported(folder)
    assert_rewards(model, rewarded)
    lines = [json.loads(line) for line in (tmp_path / "states.jsonl").read_text().splitlines()]
    assert len(lines) > 100
    for text, state in lines:  # that of the last token is not there yet
        with torch.no_grad():
            expected = model(torch.tensor([text])).signals["draft"].state[0, -2]
        torch.testing.assert_close(torch.tensor(state), expected, atol=1e-3, rtol=1e-3)


def test_half_precision(folder: Path) -> None:
    """Roundings of bfloat16 change rewards by less than their spread, as they do in an eager engine."""
    (texts,) = answers(folder.parent / "base", (PROMPTS, greedy()), enforce_eager=False, dtype="bfloat16")
    innocent, rewarded, steered = served(folder, dtype="bfloat16")
    assert tokens_of(innocent) == tokens_of(rewarded) == tokens_of(texts) != tokens_of(steered)
    model, pairs = load_exported(folder, dtype=torch.bfloat16), []
    for answer in rewarded:
        with torch.no_grad():
            expected = model(torch.tensor([[*answer.prompt, *answer.tokens]])).signals["reward"].prefix[0]
        rewards = torch.tensor(answer.rewards["reward"])
        pairs.append(torch.stack((rewards, expected[len(answer.prompt) - 1 : -1].float())))
    ours, theirs = torch.cat(pairs, dim=1)
    assert (ours - theirs).abs().max() < 0.4 * theirs.std(), ((ours - theirs).abs().max(), theirs.std())
