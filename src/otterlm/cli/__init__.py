"""The `otter` command: one file a verb."""

import os
import sys

import datasets
import transformers
import typer

from otterlm.cli import bench, calibrate, demo, export, generate, plan, playground, score, train, verify
from otterlm.cli.failures import explain
from otterlm.cli.terminal import drop_output, prepare_streams

app = typer.Typer(
    name="otter",
    help="Predict rewards alongside tokens, with the base model's logits unchanged to the bit.",
    add_completion=False,
    pretty_exceptions_enable=False,  # a fault of the program has a plain traceback
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


def main() -> None:
    """Runs the command. Bad input is one line on stderr and exit code 2."""
    try:
        code = _run()
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:  # such as of head, which has read enough
        code = 0
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        print(f"otter: {line}", file=sys.stderr)
        code = BAD_INPUT
    if code == INTERRUPTED:  # also what Typer makes of Ctrl-C, in silence
        print("otter: interrupted", file=sys.stderr)
    drop_output()
    sys.exit(code)


def _run() -> int:
    prepare_streams()
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        transformers.utils.logging.set_verbosity_error()  # what it warns of, such as missing weights, is refused
    if not sys.stderr.isatty():
        for library in (transformers.utils.logging, datasets):
            library.disable_progress_bar()
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    code = app(standalone_mode=False)
    sys.stdout.flush()
    return int(code or 0)
