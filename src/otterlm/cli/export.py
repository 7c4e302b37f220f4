"""`otter export`: a base and its adapters as one folder that an engine loads."""

from pathlib import Path
from typing import Annotated

import typer

from otterlm import adapter_files
from otterlm.cli.options import AsJson, Base, console, print_json
from otterlm.engines.exported import export
from otterlm.errors import OtterError


def command(
    base: Base,
    adapter: Annotated[list[str], typer.Option(help="Adapter: folder or hub id, or NAME=FOLDER; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder to write; the base's files are linked into it.")],
    as_json: AsJson = False,
) -> None:
    """Writes a model folder: the base's own files, linked, and the inserted tensors beside them."""
    adapters: dict[str, str] = {}
    for given in adapter:
        name, _, folder = given.rpartition("=")
        name = name or adapter_files.read_config(adapter_files.locate(folder)).signal.type
        if name in adapters:
            raise OtterError(f"two adapters are named {name!r}: give NAME=FOLDER")
        adapters[name] = folder
    export(base, adapters, out)
    if as_json:
        print_json({"out": str(out), "adapters": list(adapters)})
    else:
        console.print(f"{out} holds {base} with {', '.join(adapters)}")
