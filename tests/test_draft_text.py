"""Text for drafts made in large batches is what the base generates, row by row; runs go on where they were stopped."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_base, tokens

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def engines(monkeypatch) -> Any:
    """Imports `benchmarks/draft_engines.py`."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("draft_engines")
    sys.modules.pop("draft_engines", None)


def alone(base: Any, prompt: list[int], limit: int, end: int) -> list[int]:
    """Returns the base's greedy continuation of one prompt, by Transformers' own loop."""
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": limit, "do_sample": False, "pad_token_id": 0, "eos_token_id": end}
    return base.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist()


@pytest.mark.parametrize("cache_tokens", [10_000, 150])
def test_greedy_rows_of_a_batch_are_those_of_the_base_alone(engines, cache_tokens) -> None:
    base, limit = tiny_base(), 40
    prompts = [row[: 3 + index % 7].tolist() for index, row in enumerate(tokens(12, 10, seed=1))]
    first = alone(base, prompts[0], limit, -1)
    end = first[5]  # ends some rows early, so that the batch leaves them out
    wanted = [alone(tiny_base(), prompt, limit, end) for prompt in prompts]
    assert len({len(each) for each in wanted}) > 1
    engine = engines.ByTransformers(base, 0, cache_tokens)
    base.generation_config.eos_token_id = None
    made = engine.generate(prompts, [None] * len(prompts), limit, end)
    assert [each.tokens for each in made] == wanted
    assert [each.ended for each in made] == [each[-1] == end for each in wanted]


def test_sampled_rows_repeat_by_their_seeds_and_leave_greedy_ones_alone(engines) -> None:
    base = tiny_base()
    prompts = tokens(6, 5, seed=2).tolist()
    engine = engines.ByTransformers(base, 0, 10_000)
    greedy = engine.generate(prompts, [None] * 6, 20, None)
    seeds = [None, 1, None, 2, 3, None]
    mixed = engine.generate(prompts, seeds, 20, None)
    assert mixed == engine.generate(prompts, seeds, 20, None)
    assert mixed != engine.generate(prompts, [None, 4, None, 2, 3, None], 20, None)
    assert [mixed[row] for row in (0, 2, 5)] == [greedy[row] for row in (0, 2, 5)]
    assert all(mixed[row] != greedy[row] for row in (1, 3, 4))


def test_draws_have_the_models_chances(engines) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(20_000, 1)
    draws = torch.arange(1, 20_000)
    chosen = engines.choose(logits, draws, torch.Generator().manual_seed(0))
    assert chosen[0] == 2
    shares = chosen[1:].bincount(minlength=3) / len(draws)
    assert torch.allclose(shares, logits[0].softmax(dim=-1), atol=0.015)
