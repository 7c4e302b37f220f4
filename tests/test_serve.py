"""`otter serve` exports into the cache and starts vLLM's server: its command, environment and folder, without vLLM."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import add_tiny_adapter, refused, tiny_base

from otterlm.engines import cached_export as cache
from otterlm.engines.cached_export import cached_export, short_name
from otterlm.engines.exported import WEIGHTS, export
from otterlm.engines.vllm.upstream import starting
from otterlm.engines.vllm.upstream.starting import serve_command, serve_environment
from otterlm.model import OtterModel
from otterlm.signals.draft.config import DraftConfig


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OTTER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, dict[str, Path]]:
    """Makes a base and two adapters, in folders."""
    base = tiny_base()
    base.save_pretrained(tmp_path / "tiny")
    model = OtterModel(base)
    add_tiny_adapter(model, "reward", layers=(0, 2))
    add_tiny_adapter(model, "draft", seed=2, signal=DraftConfig(2, 8, 4, 20))
    for name in ("reward", "draft"):
        model.save_pretrained(tmp_path / name, name)
    return tmp_path / "tiny", {name: tmp_path / name for name in ("reward", "draft")}


def test_the_cache_has_a_folder_for_the_same_files(parts, home, monkeypatch) -> None:
    base, adapters = parts
    first = cached_export(str(base), {"reward": adapters["reward"]})
    assert first.parent == home / "served"
    assert first.name.startswith("tiny-")
    assert (first / WEIGHTS).is_file()
    with monkeypatch.context() as patch:
        patch.setattr(cache, "export", lambda *_: pytest.fail("it was exported before"))
        assert cached_export(str(base), {"reward": adapters["reward"]}) == first
    others = [cached_export(str(base), adapters), cached_export(str(base), {"other": adapters["reward"]})]
    config = adapters["reward"] / "adapter_config.json"
    config.write_text(config.read_text() + "\n")
    others.append(cached_export(str(base), {"reward": adapters["reward"]}))
    assert len({first, *others}) == 4
    assert not list(first.parent.glob(".*"))


def test_what_a_killed_run_left_is_no_folder(parts, home, monkeypatch) -> None:
    base, adapters = parts

    def killed(*arguments: object) -> None:
        export(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "export", killed)
    with pytest.raises(KeyboardInterrupt):
        cached_export(str(base), adapters)
    assert not [path for path in (home / "served").iterdir() if not path.name.startswith(".")]
    monkeypatch.setattr(cache, "export", export)
    assert (cached_export(str(base), adapters) / "config.json").is_file()
    (adapters["reward"] / "adapter_model.safetensors").unlink()
    refused(lambda: cached_export(str(base), adapters), "adapter_model.safetensors", "cannot be read")


def test_folders_that_nobody_used_for_a_month_are_removed(parts, home) -> None:
    base, adapters = parts

    def of(name: str) -> Path:
        return cached_export(str(base), {name: adapters["reward"]})

    def age(*folders: Path) -> None:
        for folder in folders:
            os.utime(folder, times=(0, time.time() - cache.UNUSED_DAYS * 24 * 3600 - 60))

    # Another process exports two folders and ends; a third one becomes another program that goes on.
    lines = "import sys; from otterlm.engines.cached_export import cached_export as e"
    lines += "; base, *adapters = sys.argv[1:]; folders = [e(base, {each: adapters[0]}) for each in adapters[1:]]"
    command = [sys.executable, "-c", f"{lines}; print(*folders)", base, adapters["reward"], "old", "again"]
    old, again = map(Path, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    becomes = f"{lines}; print(*folders, flush=True); import os; os.execvp('cat', ['cat'])"
    with subprocess.Popen(
        [sys.executable, "-c", becomes, base, adapters["reward"], "served"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        served = Path(server.stdout.readline().strip())
        age(old, again, served)
        assert of("again") == again
        new = of("new")
        assert {*(home / "served").iterdir()} == {again, served, new}
        assert (again / WEIGHTS).is_file()
        server.communicate()
    of("new")
    assert {*(home / "served").iterdir()} == {again, new}


def test_a_name_is_the_last_part(tmp_path) -> None:
    assert [short_name(name) for name in ("smollm2-135m", "org/model", f"{tmp_path}/")] == [
        "smollm2-135m",
        "model",
        tmp_path.name,
    ]


def test_the_command_drafts_where_an_adapter_can(parts) -> None:
    base, adapters = parts
    plain = cached_export(str(base), {"reward": adapters["reward"]})
    command = serve_command(plain, "tiny", ["--port", "9000", "-tp", "2"])
    assert command == [
        *(sys.executable, "-m", "otterlm.engines.vllm.upstream.launch", str(plain)),
        *("--served-model-name", "tiny", "--port", "9000", "-tp", "2"),
    ]
    drafting = cached_export(str(base), adapters)
    command = serve_command(drafting, "tiny", [])
    assert json.loads(command[-1]) == {
        "method": "custom_class",
        "model": "otterlm.engines.vllm.drafts.DraftProposer",
        "num_speculative_tokens": 2,
    }
    ngram = ["--speculative-config.method", "ngram"]
    assert serve_command(drafting, "tiny", ngram)[-4:] == ["--served-model-name", "tiny", *ngram]
    refused(lambda: serve_command(plain, "tiny", ["--model=x"]), "--model", "--base")


def test_the_environment_names_the_plugins_that_would_be_loaded(monkeypatch) -> None:
    points = {
        "vllm.general_plugins": ["otter", "resolver", "foreign"],
        "vllm.platform_plugins": ["chip"],
        "vllm.endpoint_plugins": ["otter", "foreign"],
    }
    found = lambda group: [SimpleNamespace(name=name) for name in points.get(group, ())]  # noqa: E731
    monkeypatch.setattr(starting, "entry_points", found)
    assert serve_environment({"A": "b"}, False) == {"A": "b", "VLLM_PLUGINS": "chip,otter,resolver"}
    assert serve_environment({"VLLM_PLUGINS": "foreign"}, False) == {"VLLM_PLUGINS": "foreign,otter"}
    assert serve_environment({"VLLM_PLUGINS": ""}, False) == {"VLLM_PLUGINS": "otter"}
    assert serve_environment({}, True)["OTTER_LOAD_ADAPTERS"] == "1"


def test_the_command_line_passes_options_on(parts, otter, refusal, monkeypatch) -> None:
    base, adapters = parts
    line = (
        "serve",
        "--base",
        base,
        "--adapter",
        f"good={adapters['reward']}",
        "--max-model-len",
        64,
        "-O3",
        "--port=1",
    )
    monkeypatch.setattr(starting, "find_spec", lambda _: None)
    assert "vLLM is not installed" in refusal(*line)
    monkeypatch.setattr(starting, "find_spec", lambda _: True)
    started: list[list[str]] = []
    monkeypatch.setattr("os.execve", lambda _, argv, __: started.append(argv))
    otter(*line, "--load-adapters")
    (argv,) = started
    folder = Path(argv[3])
    assert argv[4:] == ["--served-model-name", "tiny", "--max-model-len", "64", "-O3", "--port=1"]
    assert set(json.loads((folder / "config.json").read_text())["otter"]) == {"good"}
    shutil.rmtree(folder)
