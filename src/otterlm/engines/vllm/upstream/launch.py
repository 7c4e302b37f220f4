"""Runs `vllm serve`: `python -m otterlm.engines.vllm.upstream.launch FOLDER [OPTIONS]`.

vLLM's own command asks which version of the package `vllm` is installed. The package for CPUs is called otherwise, and
the command ends there. Its other entry, `vllm.entrypoints.openai.api_server`, starts one API server only.
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
    """Serves, with the arguments of `vllm serve`."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = FlexibleArgumentParser(prog="otter")
    command = ServeSubcommand()
    command.subparser_init(parser.add_subparsers(required=True, dest="subparser"))
    options = parser.parse_args(["serve", *arguments])
    configure_logging_from_args(options)
    command.validate(options)
    command.cmd(options)


if __name__ == "__main__":
    main(sys.argv[1:])
