"""What an inserted stream can predict. One file a signal: its head, and what a pass gives."""

from otterlm.config import ContrastConfig, DraftConfig, RewardConfig
from otterlm.signals.contrast import ContrastHead, ContrastSignal
from otterlm.signals.draft import DraftHead, DraftSignal
from otterlm.signals.reward import RewardHead, RewardSignal

Head = RewardHead | ContrastHead | DraftHead
Signal = RewardSignal | ContrastSignal | DraftSignal
HEADS: dict[type, type[Head]] = {RewardConfig: RewardHead, ContrastConfig: ContrastHead, DraftConfig: DraftHead}

__all__ = [
    "HEADS",
    "ContrastHead",
    "ContrastSignal",
    "DraftHead",
    "DraftSignal",
    "Head",
    "RewardHead",
    "RewardSignal",
    "Signal",
]
