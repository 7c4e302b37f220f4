"""The wheel is small, holds the package alone, has one version everywhere, and works in a clean environment."""

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import yaml
from readability import ROOT

import otterlm

LARGEST = 1_000_000
"""Bytes of the wheel: adapters are not in it."""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_is_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.stat().st_size < LARGEST
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = message_from_string(archive.read(next(name for name in names if name.endswith("METADATA"))).decode())
        entries = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"otterlm", f"otter_lm-{otterlm.__version__}.dist-info"}
    source = ROOT / "src"
    there = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    there = {name for name in there if "__pycache__" not in name and ".egg-info" not in name}
    assert {name for name in names if name.startswith("otterlm/")} == there
    assert "otterlm/py.typed" in names
    assert metadata["Version"] == otterlm.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    for entry in ("otter = otterlm.cli:main", "[vllm.general_plugins]", "[vllm.logits_processors]"):
        assert entry in entries


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    releases = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert [project["version"], *citation, releases[0]] == [otterlm.__version__] * 3


def test_the_forge_runs_the_gate() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_issue_forms_can_be_read() -> None:
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert len(forms) == 2
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert form["name"]
        assert form["description"]
        assert all({"type", "attributes"} <= set(field) for field in form["body"])


@pytest.mark.slow
def test_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    """The wheel is installed with its dependencies; README's Python, the command and the demo run outside the checkout.

    This needs a package index. The adapters are at hand, as README says.
    """
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (tmp_path / "adapters").symlink_to(ROOT / "adapters")
    (python,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (tmp_path / "readme.py").write_text(python)

    def run(program: str, *arguments: object) -> str:
        command = [str(binaries / program), *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    run("python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    assert run("otter", "--version") == f"otter {otterlm.__version__}\n"
    where = run("python", "-c", "import otterlm; print(otterlm.__file__)")
    assert str(tmp_path) in where
    run("python", "readme.py")
    assert "inserted parameters" in run("otter", "demo", "--max-new-tokens", 4)
