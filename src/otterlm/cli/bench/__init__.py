"""`otter bench`: Otter and its rivals side by side. One file a task."""

import typer

from otterlm.cli.lazy import Verb, lazy_group

VERBS = {
    name: Verb.of(f"otterlm.cli.bench.{name}:command", help)
    for name, help in {
        "overhead": "Time and space of steering beside plain decoding, with random weights.",
        "alignment": "Rewards by a judge, win rates, diversity and coherence of responses, and what they cost.",
        "detox": "Toxicity, fluency and diversity of sampled continuations, five of 20 tokens for each prompt.",
        "speed": "Tokens a second and acceptance length of greedy decoding, one sequence at a time.",
    }.items()
}

app = typer.Typer(
    cls=lazy_group(lambda: VERBS), help="Measure Otter and its rivals side by side.", add_completion=False
)
app.callback()(lambda: None)
