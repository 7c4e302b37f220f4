"""Runs the code of a notebook, cell after cell. To write what the cells print into the notebook:

python tests/notebook.py
"""

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parent.parent / "examples" / "quickstart.ipynb"


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the cells that run."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(notebook: dict[str, Any]) -> list[str]:
    """Returns what each cell with code prints. The cells share their names, as in a notebook."""
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    for number, cell in enumerate(code_cells(notebook), start=1):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        printed.append(out.getvalue())
    return printed


def main() -> None:
    """Runs the notebook in its folder and writes its outputs."""
    os.chdir(NOTEBOOK.parent)
    notebook = json.loads(NOTEBOOK.read_text())
    for number, (cell, text) in enumerate(zip(code_cells(notebook), run(notebook), strict=True), start=1):
        stream = {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
        cell |= {"execution_count": number, "outputs": [stream] if text else []}
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
