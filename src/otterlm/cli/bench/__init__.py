"""Defines `otter bench`, which compares Otter and its rivals. Each task has one file."""

import typer

from otterlm.cli.lazy import Verb, lazy_group

VERBS = {
    name: Verb.of(f"otterlm.cli.bench.{name}:command", help)
    for name, help in {
        "overhead": "Measures time and space of steering beside plain decoding, with random weights.",
        "alignment": "Measures rewards by a judge, win rates, diversity and coherence of responses, and their cost.",
        "steering": "Measures what guidance, search and best-of-n add to an adapter's own reward, and what they cost.",
        "detox": "Measures toxicity, fluency and diversity of sampled continuations, five of 20 tokens a prompt.",
        "guard": "Measures who detects offences, after how many tokens, beside rivals on the same base and data.",
        "speed": "Measures tokens a second and acceptance length of greedy decoding, one sequence at a time.",
    }.items()
}

app = typer.Typer(
    cls=lazy_group(lambda: VERBS), help="Measures Otter and its rivals side by side.", add_completion=False
)
app.callback()(lambda: None)
