"""An engine's drafts come from the heads and from a lookup, and their number changes no request's tokens."""

from pathlib import Path

import pytest
from engines import answers, greedy, make_folder, prompts, tokens_of
from oracle import TEXTS
from vllm import SamplingParams

PROMPTS = prompts(6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("chosen"), signals=("reward", "draft"))


def test_repeats_are_copied_and_seeds_hold(folder: Path) -> None:
    """The lookup guesses what random heads do not, and more than three heads could. A request that samples with a seed
    of its own has no drafts: how many there are depends on the machine, and the seed's samples on how many."""
    repeating = greedy(max_tokens=60, allowed_token_ids=[70])
    seeded = [SamplingParams(temperature=1.0, max_tokens=20, seed=index, ignore_eos=True) for index in range(6)]
    mixed = [seeded[index] if index % 2 else repeating for index in range(6)]
    batches = ((PROMPTS, repeating), (PROMPTS, seeded), (PROMPTS, mixed))
    speculative = {"method": "custom_class", "model": "oracle.Eager", "num_speculative_tokens": 6}
    plain = answers(folder, *batches)
    *ours, counts = answers(folder, *batches, speculative_config=speculative, count=True)
    assert [tokens_of(batch) for batch in ours] == [tokens_of(batch) for batch in plain]
    texts = 6 + 3  # that repeat
    assert counts["accepted"] > texts * 46  # three drafts a step would be 45


def test_a_text_that_fills_the_context(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near its end vLLM would draft zeros for all texts of the batch, and verify them in vain."""
    (tmp_path / "texts.json").write_text("[]")
    monkeypatch.setenv(TEXTS, str(tmp_path / "texts.json"))
    batch = [{"prompt_token_ids": [5] * 44}, *({"prompt_token_ids": [5, 6, 7, index]} for index in range(8, 11))]
    how = greedy(max_tokens=20)
    (plain,) = answers(folder, (batch, how), max_model_len=64)
    speculative = {"method": "custom_class", "model": "oracle.Oracle", "num_speculative_tokens": 6}
    ours, counts = answers(folder, (batch, how), max_model_len=64, speculative_config=speculative, count=True)
    assert tokens_of(ours) == tokens_of(plain)
    assert [len(answer.tokens) for answer in ours] == [20] * 4
    assert not counts["drafted"]


def test_drafts_end_with_the_context(folder: Path) -> None:
    batch = [{"prompt_token_ids": [5, 6, 7, 8 + index]} for index in range(4)]
    repeating = greedy(max_tokens=60, allowed_token_ids=[70])
    speculative = {"method": "custom_class", "model": "oracle.Eager", "num_speculative_tokens": 6}
    (ours,) = answers(folder, (batch, repeating), max_model_len=64, speculative_config=speculative)
    assert tokens_of(ours) == [[70] * 60] * 4
