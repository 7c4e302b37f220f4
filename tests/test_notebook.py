"""The notebook of `examples/` runs, and prints what it shows."""

import json
import re

import pytest
from notebook import NOTEBOOK, code_cells, run

STORED = json.loads(NOTEBOOK.read_text())


def words(text: str) -> str:
    """Returns a text without its numbers, which a machine may round otherwise."""
    return re.sub(r"[+-]?\d+\.\d+", "9", text)


def test_the_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(NOTEBOOK.parent)
    shown = ["".join(line for out in cell["outputs"] for line in out["text"]) for cell in code_cells(STORED)]
    assert "equal to the bit: True" in shown[1]
    assert [words(text) for text in run(STORED)] == [words(text) for text in shown], "run python tests/notebook.py"


def test_its_format() -> None:
    assert (STORED["nbformat"], STORED["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in STORED["cells"]}) == len(STORED["cells"])
