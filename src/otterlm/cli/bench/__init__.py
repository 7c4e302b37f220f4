"""`otter bench`: Otter and its rivals side by side. One file a task."""

import typer

from otterlm.cli.bench import alignment, detox, overhead, speed

app = typer.Typer(help="Measure Otter and its rivals side by side.")
app.command("overhead")(overhead.command)
app.command("alignment")(alignment.command)
app.command("detox")(detox.command)
app.command("speed")(speed.command)
