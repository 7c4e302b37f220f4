"""Lists the interventions, which apply signals to decoding. Each has one file, and all plug into `generate`."""

from otterlm.decoding.best_of_n import BestOfN
from otterlm.decoding.contrast import ContrastGuidance
from otterlm.decoding.draft_tree import DraftTree
from otterlm.decoding.guard_stop import GuardStop, ReplaceGuarded, judge_prompt
from otterlm.decoding.guidance import RewardGuidance
from otterlm.decoding.read_along import ReadAlongModel, TwoModelContrast
from otterlm.decoding.rejection import RejectionOutput, RejectionSampling
from otterlm.decoding.rollback import GuardRollback, RollbackOutput
from otterlm.decoding.scoring import label_sequences, score_sequences
from otterlm.decoding.search import CandidateSearch
from otterlm.decoding.speculative import SpeculativeDecoding, SpeculativeOutput
from otterlm.decoding.stop import ReplaceStopped, RewardStop
from otterlm.decoding.stream import StreamedToken, stream_tokens
from otterlm.signals.alarm import Verdict

__all__ = [
    "BestOfN",
    "CandidateSearch",
    "ContrastGuidance",
    "DraftTree",
    "GuardRollback",
    "GuardStop",
    "ReadAlongModel",
    "RejectionOutput",
    "RejectionSampling",
    "ReplaceGuarded",
    "ReplaceStopped",
    "RewardGuidance",
    "RewardStop",
    "RollbackOutput",
    "SpeculativeDecoding",
    "SpeculativeOutput",
    "StreamedToken",
    "TwoModelContrast",
    "Verdict",
    "judge_prompt",
    "label_sequences",
    "score_sequences",
    "stream_tokens",
]
