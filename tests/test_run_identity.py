"""A run knows what it depends on: what its scorer imports, which tokens are special, from which weights it starts."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refused, tiny_base, tiny_config, tiny_otter
from training_runs import SHORT, run
from transformers import BertConfig, BertForSequenceClassification
from word_tokenizer import TEMPLATE, WORDS, tokenizer

from otterlm.identity import identity, of_inserted, of_weights, read_checked
from otterlm.model import OtterModel
from otterlm.signals.draft.config import DraftConfig
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig
from otterlm.training.data import encoding
from otterlm.training.data.encoding import stored_tokens
from otterlm.training.data.packing import Example
from otterlm.training.data.rows import PairRow, read_rows
from otterlm.training.data.tokens import Limits
from otterlm.training.sources import LiveBase
from otterlm.training.teachers.responses import Sampling, of_texts, scored_responses
from otterlm.training.teachers.rollouts import PrefixJudge, Rollouts
from otterlm.training.teachers.scorers import load_scorer

PROMPTS = [(("user", word),) for word in "abcde"]


def test_a_scorer_depends_on_the_modules_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "words_of_two.py").write_text("import json\nimport torch, otterlm\ndef count(text): return 1.0\n")
    (tmp_path / "scorer_of_two.py").write_text(
        "from words_of_two import count\ndef score(texts): return [count(text) for text in texts]\n"
    )
    first = load_scorer("scorer_of_two:score").identity
    assert load_scorer("scorer_of_two:score").identity == first
    assert set(first) == {"spec", "source", "helpers"}
    assert first["helpers"]["count"] == 1
    (tmp_path / "words_of_two.py").write_text("def count(text): return 2.0  # another\n")
    for name in ("scorer_of_two", "words_of_two"):
        sys.modules.pop(name)
    importlib.invalidate_caches()
    second = load_scorer("scorer_of_two:score").identity
    assert second["source"] == first["source"]
    assert second["helpers"] != first["helpers"]


def test_a_scorer_depends_on_its_tokenizer(tmp_path: Path) -> None:
    shape = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForSequenceClassification(BertConfig(**shape, intermediate_size=16)).save_pretrained(tmp_path)
    identities = []
    for template in (None, TEMPLATE):
        tokenizer(template).save_pretrained(tmp_path)
        identities.append(load_scorer(f"hf:{tmp_path}").identity)
    assert identities[0]["model"] == identities[1]["model"]
    assert identities[0]["tokenizer"] != identities[1]["tokenizer"]


def test_responses_without_a_mark_are_of_nobody(tmp_path: Path) -> None:
    """Whichever of them are left."""
    rate = load_scorer("regex:a")

    def sample(seed: int) -> list[Example]:
        sampling = Sampling(per_prompt=2, max_new_tokens=4, batch_size=2, seed=seed)
        base = tiny_base(vocab_size=len(WORDS))
        return scored_responses(base, tokenizer(TEMPLATE), PROMPTS, of_texts(rate), rate.identity, sampling, tmp_path)

    sample(0)
    (tmp_path / "identity.json").unlink()
    (tmp_path / "part-00000.parquet").unlink()
    refused(lambda: sample(1), "no identity.json says of what")


def test_judged_prefixes_depend_on_whole_prompts(tmp_path: Path) -> None:
    """The base reads the end of a long prompt, and the scorer all of it."""
    rate, sampling = load_scorer("regex:a"), Sampling(max_new_tokens=3)
    judge = PrefixJudge(tiny_base(vocab_size=len(WORDS)), tokenizer(TEMPLATE), rate, 0.5, sampling, Rollouts(1, 1))
    examples = [Example(0, (8, 7), ((10, 11),), (1.0,))]
    judge.judge([(("user", "a b"),)], examples, tmp_path / "shares.jsonl")
    refused(lambda: judge.judge([(("user", "c b"),)], examples, tmp_path / "shares.jsonl"), "with other prompts")


def objective(folder: Path) -> RewardObjective:
    otter = OtterModel.from_pretrained(tiny_base(num_hidden_layers=2), folder)
    return RewardObjective(otter, LiveBase(otter), RewardTrainingConfig(candidates=0))


def test_a_loaded_adapter_is_trained_on_from_its_own_weights(tmp_path: Path) -> None:
    """A checkpoint of another start would be taken as finished, and its weights as this adapter's."""
    for seed in (1, 2):
        tiny_otter(tiny_base(num_hidden_layers=2), seed=seed).save_pretrained(tmp_path / str(seed))
    first = run(tmp_path / "run", objective(tmp_path / "1"), SHORT)
    again = run(tmp_path / "run", objective(tmp_path / "1"), SHORT)
    assert all(torch.equal(first[name], again[name]) for name in first)
    refused(lambda: run(tmp_path / "run", objective(tmp_path / "2"), SHORT), "with other start")


def test_weights_in_buffers_are_weights() -> None:
    """Layers of some quantised models have no parameter but buffers of whole numbers."""
    layers = [torch.nn.Module() for _ in range(2)]
    for value, layer in enumerate(layers):
        layer.register_buffer("qweight", torch.full((4, 4), value, dtype=torch.int32))
        layer.register_buffer("derived", torch.full((4,), 1.0 + value), persistent=False)
    assert of_weights(layers[0]) != of_weights(layers[1])
    next(layers[1].buffers()).zero_()
    assert of_weights(layers[0]) == of_weights(layers[1])


def test_what_was_measured_belongs_to_an_adapter() -> None:
    parts: list[Any] = []
    for accuracy in (((0.5,), (0.2,)), ((0.9,), (0.8,))):
        torch.manual_seed(0)
        config = tiny_config(signal=DraftConfig(2, 8, 4, 20, accuracy=accuracy), initialization="copy")
        parts.append(of_inserted(OtterModel(tiny_base(), config).adapter()))
    assert parts[0]["weights"] == parts[1]["weights"]
    assert parts[0] != parts[1]


def test_stored_tokens_know_what_ends_a_response(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTTER_HOME", str(tmp_path))
    rows = [row for row in read_rows(str(pairs)) if isinstance(row, PairRow)]
    expected = [list(stored_tokens(rows, tokenizer(eos_token=end), Limits())) for end in ("<eos>", "<unk>")]
    assert expected[0] != expected[1]
    monkeypatch.setattr(encoding, "IN_MEMORY", 10)
    for end, examples in zip(("<eos>", "<unk>"), expected, strict=True):
        assert list(stored_tokens(rows, tokenizer(eos_token=end), Limits())) == examples


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path, this = tmp_path / "row.json", identity("row", seed=1)
    path.write_text(json.dumps({"identity": this, "value": 3}))
    assert read_checked(path, this)["value"] == 3
    refused(lambda: read_checked(path, identity("row", seed=2)), "seed (1 there, 2 now)")
    for text in ("", '{"identity": {', "[]", '{"value": 3}'):
        path.write_text(text)
        refused(lambda: read_checked(path, this), "row.json is damaged", "delete it")
