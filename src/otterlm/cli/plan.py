"""`otter plan`: what an adapter costs, before anything is loaded."""

from typing import Annotated

import typer
from rich.table import Table

from otterlm import adapter_files
from otterlm.bases import load_config, parse_dtype
from otterlm.cli.groups import grouped
from otterlm.cli.options import AsJson, Base, Dtype, console, print_json
from otterlm.config import OtterConfig
from otterlm.plan import plan


@grouped
def command(
    base: Base,
    adapter: Annotated[str | None, typer.Option(help="A saved adapter; else one of the shape given below.")] = None,
    shape: OtterConfig = OtterConfig(),
    context: Annotated[int, typer.Option(help="Tokens attended to, for the FLOPs.", min=1)] = 512,
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Parameters, bytes, KV bytes and FLOPs per token, of the base and inserted, from configurations alone."""
    config = shape if adapter is None else adapter_files.read_config(adapter_files.locate(adapter))
    result = plan(load_config(base), config, parse_dtype(dtype), context)
    if as_json:
        print_json(result.to_dict())
        return
    table = Table(title=f"{base}, {result.dtype}, context {context}")
    for column in ("", "base", "inserted", "share"):
        table.add_column(column, justify="left" if not column else "right")
    derived = result.inserted_parameters + result.derived_parameters
    for name, whole, extra in (
        ("parameters", result.base_parameters, derived),
        ("bytes", result.base_bytes, result.inserted_bytes),
        ("KV bytes per token", result.base_kv_bytes_per_token, result.inserted_kv_bytes_per_token),
        ("FLOPs per token", result.base_flops_per_token, result.inserted_flops_per_token),
    ):
        table.add_row(name, f"{whole:,}", f"{extra:,}", f"{extra / whole:.1%}")
    console.print(table)
    console.print(
        f"{result.derived_parameters:,} of the inserted numbers are projections folded with the unembedding: "
        "held in memory, not stored.\n"
        f"Extra space saved against a separate model of the base's size: {result.extra_space_saved:.1%}"
    )
