"""`otter verify`: proof, on the user's own pair, that the logits are the base's."""

from dataclasses import asdict
from typing import Annotated

import torch
import typer
from rich.table import Table

from otterlm.bases import load_base, load_tokenizer, parse_dtype
from otterlm.cli.options import AdapterFolder, AsJson, Base, console, print_json
from otterlm.verification import Check, verify


def command(
    base: Base,
    adapter: AdapterFolder,
    dtype: Annotated[list[str] | None, typer.Option(help="Dtypes to try; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="Where to run.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Compares the base alone with the base that carries the adapter, bit by bit; exits with 1 if one bit differs."""
    dtypes = tuple(parse_dtype(name) for name in dtype or ("float32", "bfloat16"))

    def show(check: Check) -> None:
        if not as_json:
            console.print(
                f"{check.dtype:9} {check.attention:6} {check.case:24} {'equal' if check.exact else 'DIFFERENT'}"
            )

    def load(dtype: torch.dtype) -> torch.nn.Module:
        return load_base(base, dtype).to(device)

    checks = verify(load, adapter, load_tokenizer(base), dtypes, on_check=show)
    exact = all(check.exact for check in checks)
    if as_json:
        print_json({"exact": exact, "checks": [asdict(check) for check in checks]})
    else:
        table = Table(title="logits and tokens, base alone = base with adapter")
        cases = list(dict.fromkeys(check.case for check in checks))
        table.add_column("")
        for case in cases:
            table.add_column(case, justify="center")
        found = {(check.dtype, check.attention, check.case): check.exact for check in checks}
        for kind, attention in dict.fromkeys((check.dtype, check.attention) for check in checks):
            marks = ["[green]=[/]" if found[kind, attention, case] else "[red]≠[/]" for case in cases]
            table.add_row(f"{kind} {attention}", *marks)
        console.print(table)
        console.print("Every bit is the base's." if exact else "The base's logits are NOT left as they are.")
    if not exact:
        raise typer.Exit(1)
