"""Defines `otter serve`, which serves a base and its adapters with vLLM."""

import os
from typing import Annotated

import typer

from otterlm.cli.options import Base, NamedAdapters, named_adapters
from otterlm.engines.cached_export import cached_export, short_name
from otterlm.engines.vllm.upstream.starting import require_vllm, serve_command, serve_environment


def command(
    base: Base,
    adapter: NamedAdapters,
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="VLLM-OPTION", help="Any further options of vllm serve, such as --port 9000."),
    ] = None,
    load_adapters: Annotated[
        bool, typer.Option("--load-adapters", help="Clients may load and unload adapters while the server runs.")
    ] = False,
) -> None:
    """Serves a base and its adapters with vLLM, over HTTP.

    Exports them into Otter's cache folder, where they have not changed since, and starts vLLM there. Every further
    option is vLLM's.

    Example:
        otter serve --base smollm2-135m \\
            --adapter adapters/smollm2-135m-harmless \\
            --port 8000 --max-model-len 2048
    """
    require_vllm()
    folder = cached_export(base, named_adapters(adapter))
    argv = serve_command(folder, short_name(base), options or [])
    os.execve(argv[0], argv, serve_environment(os.environ, load_adapters))
