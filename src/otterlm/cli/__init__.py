"""The `otter` command: one file a verb."""

import sys

import typer

from otterlm.cli import bench, calibrate, demo, export, generate, plan, playground, score, train, verify
from otterlm.errors import OtterError

app = typer.Typer(
    name="otter",
    help="Predict rewards alongside tokens, with the base model's logits unchanged to the bit.",
    add_completion=False,
)
app.command("plan")(plan.command)
app.add_typer(train.train, name="train")
app.add_typer(train.distill, name="distill")
app.command("calibrate")(calibrate.command)
app.command("score")(score.command)
app.command("generate")(generate.command)
app.command("verify")(verify.command)
app.add_typer(bench.app, name="bench")
app.command("export")(export.command)
app.command("playground")(playground.command)
app.command("demo")(demo.command)

BAD_INPUT, INTERRUPTED = 2, 130

# Typer gives no public name to the errors of its parser; they are what its BadParameter is one of.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def main() -> None:
    """Runs the command. Bad input is one line on stderr and exit code 2."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        code = app(standalone_mode=False)
    except OtterError as error:
        _fail(str(error))
    except _UsageError as error:
        _fail(error.format_message())  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        code = 0
    except OSError as error:  # a full disk, a folder that may not be written
        _fail(str(error))
    if code == INTERRUPTED:  # also what Typer makes of Ctrl-C, in silence
        print("otter: interrupted", file=sys.stderr)
    sys.exit(code)


def _fail(message: str) -> None:
    print(f"otter: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(BAD_INPUT)
