"""The commands of the tutorial run one after the other, as they stand there, on a tiny base."""

import json
import re
import shlex
from pathlib import Path

import pytest
from readability import ROOT
from word_tokenizer import WORDS

PAGE = (ROOT / "docs" / "tutorial.md").read_text()
SHAPE = "--layers 0-3:2 --hidden-size 8 --heads 2 --kv-heads 1 --intermediate-size 8"
TRAINING = "--value-prompts 20 --value-responses 2 --value-new-tokens 4 --epochs 1"


def commands(base: Path) -> list[list[str]]:
    """Returns the page's commands, for a base of four blocks."""
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)).replace("\\\n", " ").splitlines()
    tiny = (line.replace("smollm2-135m", str(base)).replace("--layers 11-29:2", SHAPE) for line in lines)
    words = [shlex.split(line) for line in tiny if line]
    return [each + shlex.split(TRAINING) if each[1] == "train" else each for each in words]


def write_pairs(path: Path, rows: int) -> None:
    header = re.findall(r"^prompt,.*$", PAGE, flags=re.MULTILINE)
    lines = (f"{WORDS[10 + row % 8]} {WORDS[10 + row // 8]},a b,i j" for row in range(rows))
    path.write_text("\n".join((*header, *lines)) + "\n")


def test_the_tutorial(otter, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.csv", 40)
    write_pairs(tmp_path / "more-pairs.csv", 16)
    outputs = {}
    for program, *arguments in commands(base):
        assert program == "otter"
        code, out, err = otter(*arguments)
        assert code == 0, f"{arguments}: {err}"
        outputs[arguments[0]] = out
    assert list(outputs) == ["plan", "train", "score", "verify", "generate", "calibrate", "export"]
    assert "on 16 pairs" in outputs["score"]
    assert (tmp_path / "scored.html").exists()
    assert "final reward" in outputs["generate"]
    assert json.loads((tmp_path / "my-reward" / "adapter_config.json").read_text())["signal"]["calibration"]
    assert (tmp_path / "served" / "otter.safetensors").exists()
