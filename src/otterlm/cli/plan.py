"""Defines `otter plan`, which computes what an adapter costs before anything is loaded."""

from typing import Annotated

import typer

from otterlm import adapter_files
from otterlm.bases import load_config, parse_dtype
from otterlm.cli.groups import grouped
from otterlm.cli.options import AsJson, Base, Dtype, one_adapter
from otterlm.cli.terminal import print_json, show_table
from otterlm.config import OtterConfig
from otterlm.plan import plan


@grouped
def command(
    base: Base,
    adapter: Annotated[
        list[str] | None, typer.Option(help="A saved adapter, as FOLDER or NAME=FOLDER; else one of the shape below.")
    ] = None,
    shape: OtterConfig = OtterConfig(),
    context: Annotated[int, typer.Option(help="Tokens attended to, for the FLOPs.", min=1)] = 512,
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Counts what an adapter costs, before anything is loaded.

    It counts parameters, bytes, KV bytes and FLOPs per token, of the base and inserted, from configurations alone.

    Example:
        otter plan --base meta-llama/Llama-3.2-1B --layers 2-15:2
    """
    config = adapter_files.read_config(adapter_files.locate(one_adapter(adapter)[1])) if adapter else shape
    result = plan(load_config(base), config, parse_dtype(dtype), context)
    if as_json:
        print_json(result.to_dict())
        return
    derived = result.inserted_parameters + result.derived_parameters
    rows = [
        (name, f"{whole:,}" if whole else "?", f"{extra:,}", f"{extra / whole:.1%}" if whole else "?")
        for name, whole, extra in (
            ("parameters", result.base_parameters, derived),
            ("bytes", result.base_bytes, result.inserted_bytes),
            ("KV bytes per token", result.base_kv_bytes_per_token, result.inserted_kv_bytes_per_token),
            ("FLOPs per token", result.base_flops_per_token, result.inserted_flops_per_token),
        )
    ]
    show_table(f"{base}, {result.dtype}, context {context}", ("", "base", "inserted", "share"), rows)
    if result.edge_because is not None:
        print(f"Blocks are read at their edge (the state that enters one, and what it adds): {result.edge_because}.")
    elif result.taps == "edge":
        print("Blocks are read at their edge: the state that enters one, and what it adds.")
    print(
        f"{result.derived_parameters:,} of the inserted numbers are projections folded with the unembedding: "
        "held in memory, not stored.\n"
        f"Extra space saved against a separate model of the base's size: {result.extra_space_saved:.1%}"
    )
