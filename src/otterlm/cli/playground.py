"""Defines `otter playground`, which serves a page with the original and the guided response side by side."""

from typing import Annotated

import typer

from otterlm.bases import load_tokenizer
from otterlm.cli.groups import Machine, grouped
from otterlm.cli.options import AsJson, Base, NamedAdapters, named_adapters
from otterlm.cli.terminal import print_json
from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.playground.session import Session, Settings


@grouped
def command(
    base: Base,
    adapter: NamedAdapters,
    host: Annotated[str, typer.Option(help="Address to serve on; 0.0.0.0 for other machines, too.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to serve on.", min=1, max=65535)] = 7860,
    machine: Machine = Machine(),
    as_json: AsJson = False,
) -> None:
    """Serves a page that compares original and guided responses.

    Each token is coloured by its reward.

    Example:
        otter playground --base smollm2-135m \\
            --adapter adapters/smollm2-135m-harmless
    """
    try:
        from otterlm.playground.page import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise OtterError("the playground needs gradio: pip install 'otter-lm[playground]'") from error
    adapters = named_adapters(adapter)
    model = OtterModel(machine.load(base))
    for name, folder in adapters.items():
        model.load_adapter(folder, name)
    session = Session(model.eval(), load_tokenizer(base))
    # The first passes of a process are slow, so they run before a user waits.
    list(session.compare(base, Settings(session.coloured[0], None, max_new_tokens=1)))
    page, address = serve(session, base, host, port)
    if as_json:
        print_json({"url": address})
    else:
        print(f"The playground is at {address} (Ctrl+C ends it)", flush=True)
    page.block_thread()
