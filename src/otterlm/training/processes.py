"""Says which process this one is among those that train together."""

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def this_process() -> PartialState:
    """Returns accelerate's state of this process.

    Whoever asks first decides for all: by itself accelerate would take processes that `torchrun` starts on CPUs for
    strangers, whatever ACCELERATE_USE_CPU says.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
