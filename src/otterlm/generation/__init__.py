"""Runs one call of `generate` and checks that its interventions can honour its settings."""

from otterlm.generation.call import generate
from otterlm.generation.interventions import Intervention, SignalProcessor, bare
from otterlm.generation.reading import Criteria, Generation
from otterlm.generation.request import Request
from otterlm.generation.settings import Supports

__all__ = ["Criteria", "Generation", "Intervention", "Request", "SignalProcessor", "Supports", "bare", "generate"]
