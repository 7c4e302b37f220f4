"""The script of a contrast's strengths: a row for each alpha, raw and in chat."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import add_tiny_adapter, tiny_base
from test_bench_bases import script
from test_bench_detox import Vowels
from word_tokenizer import WORDS

from otterlm.model import OtterModel
from otterlm.signals.contrast.config import ContrastConfig


def test_a_row_for_each_strength(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    module, data = script("detox_strengths"), tmp_path / "data"
    monkeypatch.setattr(module, "Toxicity", lambda folder: Vowels())
    monkeypatch.setattr(module, "Profanity", Vowels)
    texts = [" ".join(WORDS[n + 4 : n + 16]) for n in range(6)]
    files: dict[str, list[dict[str, Any]]] = {
        "rtp_toxic_prompts/prompts.jsonl.gz": [{"prompt": {"text": text}} for text in texts],
        "jigsaw_10k/jigsaw_10k.json.gz": [{"text": text, "label": n % 2} for n, text in enumerate(texts)],
    }
    for name, rows in files.items():
        (data / name).parent.mkdir(parents=True)
        with gzip.open(data / name, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    model = OtterModel(tiny_base(vocab_size=len(WORDS)))
    add_tiny_adapter(model, "contrast", signal=ContrastConfig(rank=8))
    model.save_pretrained(tmp_path / "contrast")
    options = {"base": base, "adapter": tmp_path / "contrast", "data": data, "toxicity": data, "out": tmp_path / "out"}
    command = [f"--{name}={value}" for name, value in options.items()]
    module.main([*command, "--raw=4", "--chat=9", "--alphas", "0", "2"])
    rows = json.loads((tmp_path / "out" / "strengths.json").read_text())
    # Half of the six comments are toxic.
    assert [(row["alpha"], row["prompt_set"], row["prompts"]) for row in rows] == [
        (alpha, where, count) for alpha in (0, 2) for where, count in (("raw", 4), ("chat", 3))
    ]
    assert capsys.readouterr().out.count("| chat |") == 2
    (first, *_), (second, *_) = (
        json.loads((tmp_path / "out" / f"chat-{alpha}.jsonl").read_text().splitlines()[1])["continuations"]
        for alpha in (0, 2)
    )
    assert first != second
