"""Registers exported folders in Transformers' auto classes, in any order of the two imports.

Importing Transformers takes seconds, so `import otterlm` does not import it. A finder waits for its module of
configurations and then adds Otter's, each a stand-in until a folder of its type is read.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULE = "transformers.models.auto.configuration_auto"
PREFIX = "otter_"
"""The `model_type` in the `config.json` of an exported folder starts with this, before the base's."""


def register_on_import() -> None:
    """Registers exported folders in Transformers' auto classes: now if they are imported, or else once they are."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    if MODULE in sys.modules:
        # Another thread may be in the middle of it; importing waits for that thread.
        register(importlib.import_module(MODULE))


def register(module: ModuleType) -> None:
    """Registers a stand-in for every type of exported folder that has none.

    Args:
        module: `transformers.models.auto.configuration_auto`.
    """
    for kind in module.CONFIG_MAPPING_NAMES:
        if PREFIX + kind not in module.CONFIG_MAPPING:
            module.AutoConfig.register(PREFIX + kind, _StandIn(f"Otter_{kind}", (), {"kind": kind}))


class _StandIn(type):
    """A stand-in makes its configuration class when it is used.

    To make all of them takes a while, and needs the whole of Otter.
    """

    kind: str

    def _config_class(cls) -> Any:
        from otterlm.engines.exported import config_class

        return config_class(cls.kind)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._config_class()(*args, **kwargs)

    def from_dict(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._config_class().from_dict(*args, **kwargs)


class _Finder(MetaPathFinder):
    """Finds `MODULE` as the other finders do, and registers Otter's types after it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        others = (finder for finder in sys.meta_path if not isinstance(finder, _Finder))
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                register(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
