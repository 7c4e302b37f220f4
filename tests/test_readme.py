"""The commands and the Python of the README and the docs run as they stand there."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from otterlm.cli import main

ROOT = Path(__file__).parent.parent


def blocks(file: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), flags=re.DOTALL)


def commands() -> list[str]:
    """Returns `otter` commands of the README that name real files; those with PLACEHOLDERS are explained, not run."""
    lines = "\n".join(blocks("README.md", "bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("otter ") and not re.search(r"\s[A-Z]{3,}\b", line)]


def test_the_readme_has_commands() -> None:
    assert len(commands()) >= 3


# test_smollm2.py verifies the same adapter, and test_cli.py runs the command on a tiny base.
SLOW = "otter verify "


@pytest.mark.parametrize(
    "command",
    [pytest.param(each, marks=pytest.mark.slow if each.startswith(SLOW) else ()) for each in commands()],
)
def test_command(command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", shlex.split(command.replace("/tmp/", f"{tmp_path}/"), comments=True))
    with pytest.raises(SystemExit) as exit:
        main()
    assert not exit.value.code


PAGES = ["README.md", *(f"docs/{page}.md" for page in ("decoding", "detoxification", "acceleration", "families"))]


@pytest.mark.parametrize("file", PAGES)
def test_python(file, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    examples = blocks(file, "python")
    assert examples
    for block in examples:
        exec(compile(block, file, "exec"), {})


def test_the_hardware_table_is_what_the_plan_says() -> None:
    from otterlm.bench.shapes import SHAPES
    from otterlm.config import OtterConfig
    from otterlm.plan import plan

    names = {"smollm2-135m": "SmolLM2-135M", "llama-3.2-1b": "Llama-3.2-1B", "llama-2-7b": "Llama-2-7B"}
    assert set(names) == set(SHAPES)
    readme = (ROOT / "README.md").read_text()
    for shape, name in names.items():
        blocks = SHAPES[shape].num_hidden_layers
        layers = tuple(range(blocks - 2 * (blocks // 3) + 1, blocks, 2))
        cost = plan(SHAPES[shape], OtterConfig(layers=layers), torch.bfloat16)
        inserted = cost.inserted_parameters + cost.derived_parameters
        assert cost.base_kv_bytes_per_token
        cache = cost.inserted_kv_bytes_per_token / cost.base_kv_bytes_per_token
        cells = (
            name,
            f"{len(layers)} of {blocks}",
            f"{cost.base_bytes / 1e9:.2f} GB",
            f"{cost.inserted_bytes / 1e6:.0f} MB",
            f"{inserted / cost.base_parameters:.1%}",
            f"{cache:+.1%}",
        )
        assert f"| {' | '.join(cells)} |" in readme
