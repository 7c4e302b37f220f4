"""Makes the tables of docs/exactness.md: every family, dtype, attention and way of running, with adapters and without;
and every causal architecture of Transformers (`architectures.py`).

python tests/exactness_matrix.py > docs/exactness.md    (make exactness)
"""

import sys
import textwrap
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import architectures
from conftest import add_tiny_adapter, tiny_otter, tokens
from families import FAMILIES, family_base

from otterlm.verification import CASES

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NO_SDPA = {"gemma2"}
"""Transformers itself offers no SDPA attention here, for its soft-capped scores."""


def cells(name: str) -> dict[tuple[str, str, str], bool]:
    """Maps (dtype, attention, case) of one family to whether all logits and tokens are equal, bit for bit."""
    found = {}
    for dtype, kind in DTYPES.items():
        for attention in ("eager",) if name in NO_SDPA else ("eager", "sdpa"):
            plain, base = family_base(name, kind, attention), family_base(name, kind, attention)
            otter = tiny_otter(base, layers=(0, 2))
            add_tiny_adapter(otter, "other", seed=2, layers=(1,), hidden_size=16, embedding="table")
            ids, mask = tokens(2, 10), torch.ones(2, 10, dtype=torch.long)
            ids[1, :4], mask[1, :4] = 0, 0
            with torch.no_grad():
                for case, run in CASES.items():
                    found[dtype, attention, case] = torch.equal(run(otter.eval(), ids, mask), run(plain, ids, mask))
    return found


def table() -> str:
    """Returns the part of the page on the listed families."""
    columns = [(dtype, attention) for dtype in DTYPES for attention in ("eager", "sdpa")]
    what = (
        "Tiny random models of every family with two random adapters, against the same without. `=` is bit-equal "
        "logits and tokens in all of: " + ", ".join(CASES) + ". Made by `make exactness`, checked by the tests."
    )
    lines = [
        "# Exactness",
        "",
        *textwrap.wrap(what, 100, break_on_hyphens=False),
        "",
        "| | " + " | ".join(f"{dtype} {attention}" for dtype, attention in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for name in FAMILIES:
        found = cells(name)
        marks = []
        for dtype, attention in columns:
            own = {case: found.get((dtype, attention, case)) for case in CASES}
            wrong = [case for case, equal in own.items() if equal is False]
            marks.append("not offered" if None in own.values() else "differs: " + ", ".join(wrong) if wrong else "=")
        lines.append(f"| {name} | " + " | ".join(marks) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), architectures.table(architectures.all_outcomes()), sep="\n", end="")
