"""Writes and loads exported folders: a base and its adapters as one model, that loads with one changed line.

    config.json           the base's, its model_type with `otter_` before it, and what is inserted under `otter`
    model*.safetensors    links to the base's files, or copies of them
    otter.safetensors     the inserted tensors of all adapters, named `otter.NAME....`
    tokenizer and others  the same

After `import otterlm`, `AutoModelForCausalLM.from_pretrained(folder)` gives an `OtterModel`.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from otterlm import adapter_files, files
from otterlm.auto_classes import PREFIX
from otterlm.bases import base_folder
from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.families import FAMILIES
from otterlm.model import OtterModel
from otterlm.progress import library_bars

ADAPTERS = "otter"
"""Otter's field of `config.json`. The names of Otter's tensors begin with it, too."""
FORMER = "otter_channels"
"""Folders of earlier versions have this field, and nothing reads it."""
WEIGHTS = "otter.safetensors"
QUANTISED = "quantization_config"
SPECIAL = ("config.json", SAFE_WEIGHTS_INDEX_NAME, WEIGHTS)
"""These files are written rather than linked."""


def export(base: str, adapters: Mapping[str, str | Path], out: str | Path, copy: bool = False) -> None:
    """Writes a folder that engines load.

    Args:
        base: the base the adapters were trained on, see `otterlm.bases.load_base`; its weights must be in safetensors
            files.
        adapters: folders or hub ids, by the names of their signals.
        out: created; the base's files are linked into it (copied where links cannot be made).
        copy: copy the base's files, so that the folder can be moved to another machine.

    Raises:
        OtterError: there is no adapter, the base has no safetensors files, an adapter does not fit the base, or the
            folder cannot be written.
    """
    if not adapters:
        raise OtterError("an export needs at least one adapter")
    source, target = base_folder(base), Path(out)
    weights = sorted(source.glob("*.safetensors"))
    if not weights:
        raise OtterError(f"{base} has no .safetensors files to link: save it with save_pretrained first")
    if target.resolve() == source.resolve():
        raise OtterError(f"{out} is the base's own folder: choose another")
    if (target / adapter_files.CONFIG).exists():
        raise OtterError(f"{out} holds an adapter, and a model could not be loaded beside it: choose another folder")
    # Loading checks the fingerprint, the shapes and the values.
    model, quantised = _load(source)
    inserted: dict[str, torch.Tensor] = {}
    configs: dict[str, Any] = {}
    for name, adapter in adapters.items():
        model.load_adapter(adapter, name, torch.float32)
        module = model.adapter(name)
        configs[name] = json.loads(module.config.to_json())
        inserted |= {f"{ADAPTERS}.{name}.{key}": value for key, value in module.state_dict().items()}
    config = model.base_model.config.to_dict() | quantised
    config |= {
        "model_type": PREFIX + config["model_type"],
        "architectures": [f"Otter{kind}" for kind in config.get("architectures") or [type(model.base_model).__name__]],
        ADAPTERS: configs,
    }
    written = {
        "config.json": files.text(json.dumps(config, indent=2, sort_keys=True) + "\n"),
        WEIGHTS: files.tensors(inserted, {"format": "pt"}),
    }
    index = source / SAFE_WEIGHTS_INDEX_NAME
    if index.exists():
        content = json.loads(index.read_text(encoding="utf-8"))
        content["weight_map"] |= dict.fromkeys(inserted, WEIGHTS)
        written[SAFE_WEIGHTS_INDEX_NAME] = files.text(json.dumps(content, indent=2) + "\n")
    files.write_files(target, written)
    for path in source.iterdir():
        if path.is_file() and path.name not in SPECIAL:
            (_copy if copy else _link)(path.resolve(), target / path.name)


def _load(source: Path) -> tuple[OtterModel, dict[str, Any]]:
    """Loads a base, and returns the part of its `config.json` that says how it is quantised.

    Its quantised weights are left out: what reads them is of the engine, and may not be installed here. An adapter is
    checked against the embedding table and the last norm, which are not quantised.
    """
    config = AutoConfig.from_pretrained(source)
    quantised = {QUANTISED: getattr(config, QUANTISED)} if hasattr(config, QUANTISED) else {}
    if quantised:
        delattr(config, QUANTISED)
    with library_bars():
        base = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype="auto", ignore_mismatched_sizes=bool(quantised)
        )
    return OtterModel(base), quantised


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.symlink(source, target)
    except OSError:  # a filesystem without links
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    """Copies a file. It is written whole first: a link of an earlier export must not be written through."""

    def write(path: Path) -> None:
        shutil.copyfile(source, path)

    files.write_files(target.parent, {target.name: write})


def load_exported(folder: str | Path, config: PretrainedConfig | None = None, **kwargs: Any) -> OtterModel:
    """Loads an exported folder as an `OtterModel`.

    Args:
        folder: a folder that `export` wrote.
        config: its configuration, if it was read already.
        kwargs: for loading the base, such as `dtype`.

    Raises:
        OtterError: the folder is damaged.
    """
    folder = Path(folder)
    exported_config = AutoConfig.from_pretrained(folder) if config is None else config
    plain = base_config(exported_config)
    with library_bars():
        base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, config=plain, **kwargs)
    base.config._name_or_path = str(folder)
    model = OtterModel(base)
    for name, adapter_config in read_adapters(exported_config).items():
        model.insert_adapter(adapter_config, folder / WEIGHTS, name, f"{ADAPTERS}.{name}.")
    return model.eval()


def read_adapters(config: PretrainedConfig) -> dict[str, OtterConfig]:
    """Returns the configurations of an exported folder's adapters, by name.

    Raises:
        OtterError: one is damaged.
    """
    adapters: dict[str, Any] = config.otter
    return {name: OtterConfig.from_json(json.dumps(values), f"adapter {name}") for name, values in adapters.items()}


def base_config(config: PretrainedConfig) -> PretrainedConfig:
    """Returns the base's configuration out of an exported folder's."""
    values = config.to_dict()
    del values[ADAPTERS]
    values.pop(FORMER, None)
    values["model_type"] = config.model_type.removeprefix(PREFIX)
    values["architectures"] = [kind.removeprefix("Otter") for kind in values.get("architectures") or []]
    return CONFIG_MAPPING[values["model_type"]].from_dict(values)


class _AutoModel:
    """Loads exported folders for `AutoModelForCausalLM`."""

    def __init__(self, config_class: type[PretrainedConfig]) -> None:
        self.config_class = config_class
        self.__name__ = "OtterModel"

    def from_pretrained(self, folder: str, *_: Any, config: PretrainedConfig, **kwargs: Any) -> OtterModel:
        """Loads a folder, see `load_exported`."""
        return load_exported(folder, config, **kwargs)


def config_class(kind: str) -> Any:
    """Makes the configuration of exported folders of a type, known to Transformers' auto classes.

    Args:
        kind: the base's `model_type`.
    """
    base: Any = CONFIG_MAPPING[kind]
    name = PREFIX + kind
    if name in CONFIG_MAPPING and issubclass(CONFIG_MAPPING[name], base):
        return CONFIG_MAPPING[name]
    fields = {"model_type": name, ADAPTERS: None, "__module__": __name__}
    made: Any = type(f"Otter{base.__name__}", (base,), fields)
    # Engines send configurations to other processes by the name of their class.
    globals()[made.__name__] = made
    AutoConfig.register(name, made, exist_ok=True)
    AutoModelForCausalLM.register(made, _AutoModel(made), exist_ok=True)
    return made


def __getattr__(name: str) -> Any:
    """Makes a configuration's class when a process that received one looks it up by its name."""
    for kind, base in CONFIG_MAPPING_NAMES.items():
        if name == f"Otter{base}":
            return config_class(kind)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Makes the configurations of the listed families, as an engine expects of a plugin.

    `otterlm.auto_classes` has stand-ins for all others.
    """
    for kind in FAMILIES:
        if kind in CONFIG_MAPPING:
            config_class(kind)


register()
