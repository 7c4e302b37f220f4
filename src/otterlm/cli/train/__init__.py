"""`otter train`: an adapter from data. One file a signal."""

import typer

from otterlm.cli.train import contrast, draft, reward

app = typer.Typer(help="Train an adapter.")
app.command("reward")(reward.command)
app.command("contrast")(contrast.command)
app.command("draft")(draft.command)
