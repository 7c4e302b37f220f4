"""Lists the verbs of `otter`, by what they are for."""

import sys
from typing import Annotated

import typer

import otterlm
from otterlm.cli.lazy import Verb, lazy_group
from otterlm.cli.terminal import prepare_streams

TRAIN, USE, MEASURE = "Train", "Use", "Measure"

VERBS = {
    "train": Verb.of("otterlm.cli.train:train", "Trains an adapter.", TRAIN),
    "distill": Verb.of("otterlm.cli.train:distill", "Trains an adapter on what other models say.", TRAIN),
    "calibrate": Verb.of(
        "otterlm.cli.calibrate:command",
        "Measures what rewards or labels mean, and sets an alarm.",
        TRAIN,
    ),
    "generate": Verb.of("otterlm.cli.generate:command", "Generates a response and scores every token of it.", USE),
    "playground": Verb.of(
        "otterlm.cli.playground:command",
        "Serves a local page that compares responses.",
        USE,
    ),
    "export": Verb.of(
        "otterlm.cli.export:command",
        "Writes a base and its adapters as one model folder.",
        USE,
    ),
    "serve": Verb.of(
        "otterlm.cli.serve:command",
        "Serves a base and its adapters with vLLM, over HTTP.",
        USE,
        passes_on=True,
    ),
    "demo": Verb.of(
        "otterlm.cli.demo:command",
        "Shows the shipped adapters, each beside the base alone.",
        USE,
    ),
    "score": Verb.of(
        "otterlm.cli.score:command",
        "Scores texts, and measures how well an adapter ranks them.",
        MEASURE,
    ),
    "plan": Verb.of(
        "otterlm.cli.plan:command",
        "Counts what an adapter costs, before anything is loaded.",
        MEASURE,
    ),
    "verify": Verb.of(
        "otterlm.cli.verify:command",
        "Proves that the adapter leaves the base's logits unchanged.",
        MEASURE,
    ),
    "bench": Verb.of("otterlm.cli.bench:app", "Measures Otter and its rivals side by side.", MEASURE),
}

app = typer.Typer(
    cls=lazy_group(lambda: VERBS),
    name="otter",
    help="Predicts rewards alongside tokens, with the base model's logits unchanged to the bit.",
    epilog="`otter VERB --help` shows the options of a verb, with an example.",
    add_completion=False,
    pretty_exceptions_enable=False,  # a fault of the program has a plain traceback
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"otter {otterlm.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def run() -> int:
    """Runs the command with the arguments of the process and returns its exit code. Errors are the caller's."""
    prepare_streams()
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    code = app(standalone_mode=False)
    sys.stdout.flush()
    return int(code or 0)
