"""Defines `otter playground`, which serves a page with the original and the guided responses side by side."""

import re
from pathlib import Path
from typing import Annotated

import typer

from otterlm.adapter_files import CONFIG
from otterlm.bases import load_tokenizer
from otterlm.cli.groups import Machine, grouped
from otterlm.cli.options import AsJson, Base, NamedAdapters, named_adapters
from otterlm.cli.terminal import print_json
from otterlm.errors import OtterError, reason
from otterlm.model import OtterModel
from otterlm.playground.comparison import Settings
from otterlm.playground.server import Server
from otterlm.playground.session import Session


@grouped
def command(
    base: Base,
    adapter: NamedAdapters,
    folder: Annotated[
        Path | None, typer.Option(help="A folder of adapters: the page lists them, and loads those that are chosen.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to serve on; 0.0.0.0 for other machines, too.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to serve on.", min=0, max=65535)] = 7860,
    machine: Machine = Machine(),
    as_json: AsJson = False,
) -> None:
    """Serves a local page that compares responses.

    Original and guided ones stand side by side, each token coloured by its signal.

    Example:
        otter playground --base smollm2-135m \\
            --adapter adapters/smollm2-135m-harmless
    """
    folders = {} if folder is None else adapter_folders(folder)
    adapters = named_adapters(adapter)
    model = OtterModel(machine.load(base))
    for name, where in adapters.items():
        model.load_adapter(where, name)
    session = Session(model.eval(), load_tokenizer(base))
    # The first passes of a process are slow, so they run before a user waits.
    list(session.compare(base, Settings(session.coloured[0], None, max_new_tokens=1)))
    try:
        server = Server(session, base, (host, port), folders)
    except OSError as error:
        raise OtterError(f"--host {host} --port {port} cannot be served on ({reason(error)})") from error
    if as_json:
        print_json({"url": server.url})
    else:
        print(f"The playground is at {server.url} (Ctrl+C ends it)", flush=True)
    with server:
        server.serve_forever()


def adapter_folders(folder: Path) -> dict[str, Path]:
    """Returns the adapters inside a folder, by the names of their folders, made identifiers.

    Raises:
        OtterError: there is none, or two have the same name.
    """
    folders: dict[str, Path] = {}
    for each in sorted(folder.expanduser().glob(f"*/{CONFIG}")):
        name = re.sub(r"^(?=\d)|\W", "_", each.parent.name)
        if name in folders:
            raise OtterError(f"--folder {folder}: {folders[name].name} and {each.parent.name} would both be {name!r}")
        folders[name] = each.parent
    if not folders:
        raise OtterError(f"--folder {folder} holds no adapters: each is a folder with {CONFIG}")
    return folders
