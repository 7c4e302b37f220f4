"""Defines `otter export`, which writes a base and its adapters as one folder that an engine loads."""

from pathlib import Path
from typing import Annotated

import typer

from otterlm.cli.options import AsJson, Base, NamedAdapters, named_adapters
from otterlm.cli.terminal import print_json
from otterlm.engines.exported import export


def command(
    base: Base,
    adapter: NamedAdapters,
    out: Annotated[Path, typer.Option(help="Folder to write; the base's files are linked into it.")],
    as_json: AsJson = False,
) -> None:
    """Writes a base and its adapters as one model folder.

    The base's own files are linked into it, and the inserted tensors lie beside them. Transformers and vLLM load it.

    Example:
        otter export --base smollm2-135m \\
            --adapter adapters/smollm2-135m-harmless --out served
    """
    adapters = named_adapters(adapter)
    export(base, adapters, out)
    if as_json:
        print_json({"out": str(out), "adapters": list(adapters)})
    else:
        print(f"{out} holds {base} with {', '.join(adapters)}")
