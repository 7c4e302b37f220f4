"""The speed bench runs methods in turn on every prompt, compares outputs with the base's, and resumes after a kill."""

import json

import pytest
from conftest import add_tiny_adapter, randomize, tiny_base
from safetensors.torch import save_model
from word_tokenizer import WORDS

from otterlm.bench import speed
from otterlm.model import OtterModel
from otterlm.peers.medusa import MedusaHeads
from otterlm.signals.draft.config import MAX_GUESSES, DraftConfig


@pytest.fixture
def draft(tmp_path):
    """Makes a folder with a random draft adapter."""
    model = OtterModel(tiny_base(vocab_size=len(WORDS)))
    add_tiny_adapter(model, "draft", signal=DraftConfig(heads=3, width=16, rank=8, vocabulary_size=20))
    model.save_pretrained(tmp_path / "draft")
    return tmp_path / "draft"


@pytest.fixture
def medusa(tmp_path):
    """A folder with random Medusa heads, as `benchmarks/drafting.py` leaves it."""
    heads = MedusaHeads(tiny_base(vocab_size=len(WORDS)))
    randomize(heads, 3)
    (tmp_path / "medusa").mkdir()
    save_model(heads, str(tmp_path / "medusa" / "heads.safetensors"))
    shares = {f"accuracy_{head}_{rank}": 0.5**rank for head in range(4) for rank in range(MAX_GUESSES)}
    (tmp_path / "medusa" / "metrics.json").write_text(json.dumps(shares))
    return tmp_path / "medusa"


def test_command(answer, refusal, base, draft, medusa, tmp_path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(" ".join(WORDS[10 : 12 + n]) for n in range(6)))
    data = ("--base", base, "--data", tmp_path / "prompts.txt", "--limit", 3)
    methods = ("--adapter", f"mine={draft}", "--medusa", medusa, "--drafts", 2, "--drafts", 3)
    arguments = ("bench", "speed", *data, *methods, "--confidence", 0, "--confidence", 1)
    result = answer(*arguments, "--max-new-tokens", 8, "--out", tmp_path / "out")
    rows = {row["method"]: row for row in result["rows"]}
    sizes = ("2 drafts", "2 drafts above 1", "3 drafts", "3 drafts above 1")
    mine = [f"mine, {size}{alone}" for size in sizes for alone in ("", " without lookup")]
    drafted = [*mine, *(f"Medusa, {size}" for size in sizes)]
    assert list(rows) == ["base", *drafted, "prompt lookup"]
    assert all(rows[name]["acceptance_length"] == 1 for name in drafted if "above 1" in name)
    assert all(row["identical"] == row["prompts"] == 3 for row in rows.values())
    assert rows["base"]["speed_over_base"] == 1
    assert rows["base"]["extra_space_saved"] == 1
    assert rows["base"]["acceptance_length"] is rows["prompt lookup"]["acceptance_length"] is None
    assert rows["mine, 3 drafts"]["acceptance_length"] >= 1
    width = 32
    heads = sum(p.numel() for p in MedusaHeads(tiny_base(vocab_size=len(WORDS))).parameters())
    assert rows["Medusa, 2 drafts"]["extra_parameters"] == heads == 4 * (width * width + width + len(WORDS) * width)
    assert (tmp_path / "out" / "speed.png").stat().st_size > 1000
    written = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert written["rows"] == result["rows"]
    # All is measured; other settings are another run.
    assert answer(*arguments, "--max-new-tokens", 8, "--out", tmp_path / "out")["rows"] == result["rows"]
    refused = refusal(*arguments, "--max-new-tokens", 9, "--out", tmp_path / "out")
    assert "speed.jsonl" in refused
    assert "new_tokens (8 there, 9 now)" in refused
    # Another adapter in the same folder, of the same name, is another method.
    model = OtterModel(tiny_base(vocab_size=len(WORDS)))
    add_tiny_adapter(model, "draft", seed=9, signal=DraftConfig(heads=3, width=16, rank=8, vocabulary_size=20))
    model.save_pretrained(draft)
    refused = refusal(*arguments, "--max-new-tokens", 8, "--out", tmp_path / "out")
    assert "mine, 2 drafts.adapter" in refused
    # What drafts with nothing is said, and by its name.
    (medusa / "metrics.json").write_text("{")
    assert "Medusa heads" in refusal(*arguments)
    (medusa / "heads.safetensors").write_bytes(b"garbage")
    assert "Medusa heads" in refusal(*arguments)
    model = OtterModel(tiny_base(vocab_size=len(WORDS)))
    add_tiny_adapter(model, "reward")
    model.save_pretrained(draft)
    assert "no adapter drafts tokens; there are: mine" in refusal(*arguments)


def test_wrong_tokens_are_counted(monkeypatch) -> None:
    """What a method says is compared, whatever it is."""
    responses = iter([[1, 2], [1, 2], [1, 2], [1, 3], [1, 2], [1, 2]])
    monkeypatch.setattr(
        speed, "_generate", lambda *_: {"seconds": 1.0, "tokens": next(responses), "acceptance_length": None}
    )
    monkeypatch.setattr(speed, "encode_prompts", lambda prompts, *_: [[int(prompt[0][1])] for prompt in prompts])
    model = tiny_base()
    methods = {speed.BASE: speed.SpeedMethod(model), "other": speed.SpeedMethod(model)}
    stub = type("Tokenizer", (), {"pad_token_id": 0})()
    rows = speed.measure(methods, stub, [(("user", "7"),), (("user", "8"),)])
    assert [row.identical for row in rows] == [2, 1]
