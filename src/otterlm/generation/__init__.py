"""One call of `generate`: what it asks for, whether its interventions can honour that, and which pass they read."""

from otterlm.generation.call import generate
from otterlm.generation.interventions import Intervention, SignalProcessor, bare
from otterlm.generation.reading import Criteria, Generation
from otterlm.generation.settings import Request, Supports

__all__ = ["Criteria", "Generation", "Intervention", "Request", "SignalProcessor", "Supports", "bare", "generate"]
