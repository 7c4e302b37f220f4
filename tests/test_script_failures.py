"""The scripts of benchmarks and recipes treat bad input as `otter` does."""

import subprocess
import sys
from pathlib import Path

import pytest

from otterlm.cli.scripts import run_script
from otterlm.errors import OtterError

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    path
    for folder in ("benchmarks", "recipes/paper")
    for path in (ROOT / folder).glob("*.py")
    if "__main__" in (text := path.read_text(encoding="utf-8")) and "otterlm" in text.split('"""', 2)[2]
)


def raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OtterError("no rows:\nmake some"), 2, "made.py: no rows: make some\n"),
        (
            FileNotFoundError(2, "No such file or directory", "x"),
            2,
            "made.py: [Errno 2] No such file or directory: 'x'\n",
        ),
        (KeyboardInterrupt(), 130, "made.py: interrupted\n"),
        (BrokenPipeError(32, "Broken pipe"), 0, ""),
    ],
)
def test_what_is_wrong_is_one_line(error, code, line, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["folder/made.py"])
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: raising(error))
    assert ended.value.code == code
    assert capsys.readouterr().err == line


def test_a_fault_of_the_script_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_script(lambda: raising(ZeroDivisionError()))


def test_a_script_from_the_shell(tmp_path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "bases.py"), "table", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"bases.py: {tmp_path} holds no rows: make some with preference, guard or cost\n"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_script_runs_so(path) -> None:
    assert path.read_text(encoding="utf-8").endswith('if __name__ == "__main__":\n    run_script(main)\n')
