"""The `otter` command: one file a verb."""

import sys

import click
import typer

from otterlm.cli import demo, generate, plan, score, train, verify
from otterlm.errors import OtterError

app = typer.Typer(
    name="otter",
    help="Predict rewards alongside tokens, with the base model's logits unchanged to the bit.",
    no_args_is_help=True,
    add_completion=False,
)
app.command("plan")(plan.command)
app.add_typer(train.app, name="train")
app.command("score")(score.command)
app.command("generate")(generate.command)
app.command("verify")(verify.command)
app.command("demo")(demo.command)

BAD_INPUT = 2


def main() -> None:
    """Runs the command. Bad input is one line on stderr and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except OtterError as error:
        _fail(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = BAD_INPUT
    except click.ClickException as error:
        _fail(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        print("otter: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        code = 0
    except OSError as error:  # a full disk, a folder that may not be written
        _fail(str(error))
    sys.exit(code)


def _fail(message: str) -> None:
    print(f"otter: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(BAD_INPUT)
