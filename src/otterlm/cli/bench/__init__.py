"""Defines `otter bench`, which compares Otter and its rivals. Each task has one file."""

import typer

from otterlm.cli.lazy import Verb, lazy_group

VERBS = {
    name: Verb.of(f"otterlm.cli.bench.{name}:command", help)
    for name, help in {
        "overhead": "Measures time and space of steering, with random weights.",
        "alignment": "Measures steered responses by a judge, and their cost.",
        "steering": "Measures what steering adds to the adapter's own reward.",
        "detox": "Measures toxicity, fluency and diversity of continuations.",
        "guard": "Measures who detects offences, and after how many tokens.",
        "speed": "Measures how much drafts speed up greedy decoding.",
    }.items()
}

app = typer.Typer(
    cls=lazy_group(lambda: VERBS), help="Measures Otter and its rivals side by side.", add_completion=False
)
app.callback()(lambda: None)
