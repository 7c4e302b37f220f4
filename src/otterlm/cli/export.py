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
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    copy: Annotated[bool, typer.Option("--copy", help="Copy the base's files: the folder can be moved.")] = False,
    as_json: AsJson = False,
) -> None:
    """Writes a base and its adapters as one model folder.

    The inserted tensors lie beside the base's own files. Transformers and vLLM load it. Without --copy the base's
    files are links, which hold on this machine alone.

    Example:
        otter export --base smollm2-135m \\
            --adapter adapters/smollm2-135m-harmless --out served
    """
    adapters = named_adapters(adapter)
    export(base, adapters, out, copy)
    if as_json:
        print_json({"out": str(out), "adapters": list(adapters), "copied": copy})
        return
    print(f"{out} holds {base} with {', '.join(adapters)}")
    if not copy:
        print("Its links to the base hold on this machine alone; --copy makes a folder that can be moved.")
