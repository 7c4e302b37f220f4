"""Otter: predict rewards alongside tokens. A few percent of inserted parameters, the original logits unchanged to the
bit.

The method is of "Predicting Rewards Alongside Tokens: Non-disruptive Parameter Insertion for Efficient Inference
Intervention in Large Language Models" (EMNLP 2024, arXiv 2408.10764).
"""

from otterlm.config import OtterConfig
from otterlm.engines import exported
from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.signals.draft.config import DraftConfig
from otterlm.signals.reward.config import RewardConfig

exported.register()

__version__ = "0.1.0"
__all__ = ["ContrastConfig", "DraftConfig", "OtterConfig", "OtterError", "OtterModel", "RewardConfig"]
