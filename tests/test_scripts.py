"""Every script of `benchmarks/`, `examples/` and `recipes/` can be imported, which does nothing."""

import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = (path for folder in ("benchmarks", "examples", "recipes") for path in (ROOT / folder).rglob("*.py"))
SCRIPTS = sorted(path for path in FILES if not (path.parent / "__init__.py").exists())  # a package is installed first
ENGINE = {"vllm", "httpx", "psutil"}
"""Of the engine's environment (make test-vllm), which pins a Transformers of its own."""


def test_there_are_scripts() -> None:
    assert {path.parent.name for path in SCRIPTS} >= {"benchmarks", "examples", "paper"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_importing_does_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(path.parent))  # as Python does for a script
    monkeypatch.setattr(sys, "argv", [str(path), "--nonsense"])  # a script that reads them exits
    environment, modules = dict(os.environ), set(sys.modules)
    spec = util.spec_from_file_location(f"imported_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    try:
        spec.loader.exec_module(util.module_from_spec(spec))
    except ModuleNotFoundError as error:
        if error.name not in ENGINE:
            raise
        pytest.skip(f"{error.name} is of the engine's environment: make test-vllm")
    assert dict(os.environ) == environment
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert "vllm" not in set(sys.modules) - modules


def test_where_a_step_spends_its_time(tmp_path: Path) -> None:
    """Its import of a module that was gone had not been noticed."""
    command = [sys.executable, str(ROOT / "benchmarks" / "training_step.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--batch-size" in done.stdout
