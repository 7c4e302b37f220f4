"""Defines `otter verify`, which proves on the user's base and adapter that the logits are the base's."""

from dataclasses import asdict
from typing import Annotated

import torch
import typer
from rich.text import Text

from otterlm.bases import load_base, load_tokenizer, parse_dtype
from otterlm.cli.options import AsJson, Base, OneAdapter, one_adapter, parse_device
from otterlm.cli.terminal import print_json, show_table
from otterlm.errors import OtterError
from otterlm.verification import verify


def command(
    base: Base,
    adapter: OneAdapter,
    dtype: Annotated[list[str] | None, typer.Option(help="Dtypes to try; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="Where to run.")] = "cpu",
    quick: Annotated[
        bool, typer.Option("--quick", help="One dtype and one attention, within a minute on SmolLM2.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Proves that the adapter leaves the base's logits unchanged.

    It compares the base alone with the base that carries the adapter, bit by bit, and exits with 1 if one bit differs.

    Example:
        otter verify --base smollm2-135m \\
            --adapter adapters/smollm2-135m-harmless --quick
    """
    _, folder = one_adapter(adapter)
    if quick and len(dtype or ()) > 1:
        raise OtterError("--quick tries one --dtype: leave --quick out to try several")
    kinds = dtype or (("float32",) if quick else ("float32", "bfloat16"))
    dtypes, attentions = tuple(map(parse_dtype, kinds)), ("sdpa",) if quick else ("eager", "sdpa")
    where = parse_device(device)

    def load(dtype: torch.dtype) -> torch.nn.Module:
        return load_base(base, dtype).to(where)

    checks = verify(load, folder, load_tokenizer(base), dtypes, attentions)
    exact = all(check.exact for check in checks)
    if as_json:
        print_json({"exact": exact, "checks": [asdict(check) for check in checks]})
    else:
        exactness = {(check.case, check.dtype, check.attention): check.exact for check in checks}
        marks = {True: Text("=", style="green"), False: Text("≠", style="red")}
        settings = list(dict.fromkeys((check.dtype, check.attention) for check in checks))
        rows: list[list[str | Text]] = [
            [case, *(marks[exactness[case, *setting]] for setting in settings)]
            for case in dict.fromkeys(check.case for check in checks)
        ]
        columns = ["", *("\n".join(setting) for setting in settings)]
        show_table("logits and tokens, base alone = base with adapter", columns, rows)
        print("Every bit is the base's." if exact else "The base's logits are NOT left as they are.")
    if not exact:
        raise typer.Exit(1)
