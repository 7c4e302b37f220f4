"""The example package adds a signal that Otter does not know, by its files alone."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_base
from word_tokenizer import TEMPLATE, WORDS, tokenizer

RUN = Path(__file__).parents[1] / "examples" / "own_signal" / "run.py"


def run(*arguments: str) -> dict[str, object]:
    result = subprocess.run(
        [sys.executable, str(RUN), "--json", *arguments], capture_output=True, text=True, env=os.environ, check=False
    )
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


def test_the_package_is_installed_and_does_everything(tmp_path: Path) -> None:
    tiny_base(vocab_size=len(WORDS)).save_pretrained(tmp_path)
    tokenizer(TEMPLATE).save_pretrained(tmp_path)
    report = run("--base", str(tmp_path))
    assert report.pop("files_outside") == 0
    assert report == dict.fromkeys(("trained", "reloaded_equal", "coloured", "streamed", "scored", "exact"), True)
    # It was installed into a folder of its own.
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("own-signal")


@pytest.mark.slow
def test_the_package_on_a_real_base() -> None:
    assert run()["trained"]
