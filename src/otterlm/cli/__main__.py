"""Runs `python -m otterlm.cli`, for launchers that take a module."""

from otterlm.cli import main

main()
