"""Otter predicts rewards alongside tokens, by a few percent of inserted parameters that leave the original logits
unchanged to the bit.

The method is of "Predicting Rewards Alongside Tokens: Non-disruptive Parameter Insertion for Efficient Inference
Intervention in Large Language Models" (EMNLP 2024, arXiv 2408.10764).

Names are loaded when they are first used, so that `import otterlm` takes no time. After it, Transformers'
`AutoModelForCausalLM.from_pretrained` gives an `OtterModel` for a folder that `export` wrote.
"""

import importlib
from typing import TYPE_CHECKING, Any

from otterlm.auto_classes import register_on_import

if TYPE_CHECKING:
    from otterlm.bases import load_base, load_tokenizer
    from otterlm.config import OtterConfig
    from otterlm.decoding import (
        BestOfN,
        CandidateSearch,
        ContrastGuidance,
        DraftTree,
        GuardRollback,
        GuardStop,
        ReadAlongModel,
        RejectionSampling,
        ReplaceGuarded,
        ReplaceStopped,
        RewardGuidance,
        RewardStop,
        SpeculativeDecoding,
        StreamedToken,
        TwoModelContrast,
        Verdict,
        judge_prompt,
        label_sequences,
        score_sequences,
        stream_tokens,
    )
    from otterlm.engines.exported import export, load_exported
    from otterlm.errors import OtterError
    from otterlm.model import OtterModel
    from otterlm.signals import register_signal
    from otterlm.signals.base import Capability, SignalConfig, SignalType
    from otterlm.signals.contrast.config import ContrastConfig
    from otterlm.signals.draft.config import DraftConfig
    from otterlm.signals.guard.config import GuardConfig, LabelCalibration
    from otterlm.signals.reward.config import Calibration, RewardConfig
    from otterlm.training.recipes import (
        ContrastRecipe,
        DistillationRecipe,
        DraftRecipe,
        ExpertsRecipe,
        GuardDistillationRecipe,
        GuardRecipe,
        RewardRecipe,
        Run,
    )

_NAMES = {
    "otterlm.bases": ["load_base", "load_tokenizer"],
    "otterlm.config": ["OtterConfig"],
    "otterlm.decoding": [
        "BestOfN",
        "CandidateSearch",
        "ContrastGuidance",
        "DraftTree",
        "GuardRollback",
        "GuardStop",
        "ReadAlongModel",
        "RejectionSampling",
        "ReplaceGuarded",
        "ReplaceStopped",
        "RewardGuidance",
        "RewardStop",
        "SpeculativeDecoding",
        "StreamedToken",
        "TwoModelContrast",
        "Verdict",
        "judge_prompt",
        "label_sequences",
        "score_sequences",
        "stream_tokens",
    ],
    "otterlm.engines.exported": ["export", "load_exported"],
    "otterlm.errors": ["OtterError"],
    "otterlm.model": ["OtterModel"],
    "otterlm.signals": ["register_signal"],
    "otterlm.signals.base": ["Capability", "SignalConfig", "SignalType"],
    "otterlm.signals.contrast.config": ["ContrastConfig"],
    "otterlm.signals.draft.config": ["DraftConfig"],
    "otterlm.signals.guard.config": ["GuardConfig", "LabelCalibration"],
    "otterlm.signals.reward.config": ["Calibration", "RewardConfig"],
    "otterlm.training.recipes": [
        "ContrastRecipe",
        "DistillationRecipe",
        "DraftRecipe",
        "ExpertsRecipe",
        "GuardDistillationRecipe",
        "GuardRecipe",
        "RewardRecipe",
        "Run",
    ],
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__version__ = "0.2.0"
__all__ = [
    "BestOfN",
    "Calibration",
    "CandidateSearch",
    "Capability",
    "ContrastConfig",
    "ContrastGuidance",
    "ContrastRecipe",
    "DistillationRecipe",
    "DraftConfig",
    "DraftRecipe",
    "DraftTree",
    "ExpertsRecipe",
    "GuardConfig",
    "GuardDistillationRecipe",
    "GuardRecipe",
    "GuardRollback",
    "GuardStop",
    "LabelCalibration",
    "OtterConfig",
    "OtterError",
    "OtterModel",
    "ReadAlongModel",
    "RejectionSampling",
    "ReplaceGuarded",
    "ReplaceStopped",
    "RewardConfig",
    "RewardGuidance",
    "RewardRecipe",
    "RewardStop",
    "Run",
    "SignalConfig",
    "SignalType",
    "SpeculativeDecoding",
    "StreamedToken",
    "TwoModelContrast",
    "Verdict",
    "export",
    "judge_prompt",
    "label_sequences",
    "load_base",
    "load_exported",
    "load_tokenizer",
    "register_signal",
    "score_sequences",
    "stream_tokens",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_on_import()
