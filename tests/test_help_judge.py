"""The judge of helpfulness learns words from pairs, at equal length."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_bench_bases import FOLDER, script

pytest.importorskip("sklearn", reason="of the extra bench")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Fifty pairs: the better response says `certainly` and the question's word again; the worse one is as long."""
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"Tell me of {word}{n}", "chosen": f"certainly {word}{n} then", "rejected": "nothing here at all"}
        for n in range(10)
        for word in ("apples", "bridges", "candles", "dragons", "engines")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_held_out_pairs(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script("help_judge").main(["--data", str(pairs)])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["judge"], row["cut"]) for row in rows] == [
        (name, cut) for cut in (False, True) for name in ("helpful", "topical")
    ]
    assert all(row["accuracy"] == 1 and row["pairs"] == 10 for row in rows)


def test_as_a_scorer(pairs: Path) -> None:
    """It is loaded by name, as `--judge` does, and length is nothing to it."""
    code = (
        "from otterlm.training.teachers.scorers import load_scorer\n"
        "prompts = [(('user', 'What are bridges?'),)] * 3\n"
        "texts = ['Certainly bridges.', 'Nothing.', 'Nothing. ' * 9]\n"
        "print(load_scorer('help_judge:helpful')(prompts, texts), load_scorer('help_judge:topical')(prompts, texts))"
    )
    path = os.pathsep.join([str(FOLDER), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HELPFUL": str(pairs), "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    helpful, topical = (json.loads(f"[{part.strip(' []')}]") for part in done.stdout.strip().split("] ["))
    assert helpful[0] > helpful[1] == pytest.approx(helpful[2])
    assert topical == [1.0, 0.0, 0.0]
