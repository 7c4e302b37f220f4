"""Decides what an engine drafts: for each request of a step as many tokens as pay, by what the engine's steps take."""

from otterlm.engines.drafting.drafting import Drafting
from otterlm.engines.drafting.text import Running

__all__ = ["Drafting", "Running"]
