"""Defines `otter verify`, which proves on the user's base and adapter that the logits are the base's."""

from dataclasses import asdict
from typing import Annotated

import torch
import typer
from rich.text import Text

from otterlm.bases import load_base, load_tokenizer, parse_dtype
from otterlm.cli.options import AsJson, Base, OneAdapter, one_adapter, parse_device
from otterlm.cli.terminal import print_json, show_table
from otterlm.verification import Check, verify


def command(
    base: Base,
    adapter: OneAdapter,
    dtype: Annotated[list[str] | None, typer.Option(help="Dtypes to try; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="Where to run.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Compares the base alone with the base that carries the adapter, bit by bit; exits with 1 if one bit differs."""
    _, folder = one_adapter(adapter)
    dtypes = tuple(parse_dtype(name) for name in dtype or ("float32", "bfloat16"))

    where = parse_device(device)

    def show(check: Check) -> None:
        if not as_json:
            print(f"{check.dtype:9} {check.attention:6} {check.case:24} {'equal' if check.exact else 'DIFFERENT'}")

    def load(dtype: torch.dtype) -> torch.nn.Module:
        return load_base(base, dtype).to(where)

    checks = verify(load, folder, load_tokenizer(base), dtypes, on_check=show)
    exact = all(check.exact for check in checks)
    if as_json:
        print_json({"exact": exact, "checks": [asdict(check) for check in checks]})
    else:
        cases = list(dict.fromkeys(check.case for check in checks))
        exactness = {(check.dtype, check.attention, check.case): check.exact for check in checks}
        marks = {True: Text("=", style="green"), False: Text("≠", style="red")}
        rows: list[list[str | Text]] = [
            [f"{kind} {attention}", *(marks[exactness[kind, attention, case]] for case in cases)]
            for kind, attention in dict.fromkeys((check.dtype, check.attention) for check in checks)
        ]
        show_table("logits and tokens, base alone = base with adapter", ["", *cases], rows)
        print("Every bit is the base's." if exact else "The base's logits are NOT left as they are.")
    if not exact:
        raise typer.Exit(1)
