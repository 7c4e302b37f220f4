"""Measures the passages that a guard marks beside those of a linear probe. `benchmarks/bases_guard.py` uses it.

The probe is a logistic regression on the state beside a token: does the token stand in a marked passage? Its block is
the one whose states tell best on the texts held out. Its marks are made by the guard's own rule for words, whose
numbers are chosen for each of them on the same texts held out.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from otterlm.bench.guard_probes import PENALTY, Texts, TokenStates
from otterlm.model import OtterModel
from otterlm.training.data.targets import tokens_inside
from otterlm.training.evaluation.bootstrap import interval, mean_of
from otterlm.training.evaluation.detection import auc
from otterlm.training.evaluation.guard_calibration import calibrate_guard
from otterlm.training.evaluation.guard_reading import GuardReading, read_guard
from otterlm.training.evaluation.guard_summary import passage_f1, summarize_guard
from otterlm.training.probe import fit_classifier

FALSE_ALARMS = 0.01
"""Calibration wants a rate; no passage depends on it."""


def passage_rows(model: OtterModel, learned: Texts, held: Texts, tested: Texts, data: str) -> list[dict[str, Any]]:
    """Returns a row of the guard and one of the probe, each alone and with the guard's list of marked words.

    The probe's rows have `lead`, the guard's F1 minus the probe's on the same texts, and its interval `lead_ci95`.

    Args:
        model: with the guard.
        learned: what it learned from.
        held: what was held out, on which thresholds are chosen.
        tested: texts with marked passages.
        data: what they are called.
    """
    otter = read_guard(model, held), read_guard(model, tested)
    probe = TokenProbe(model.base_model, *([each for each in texts if each.characters] for texts in (learned, held)))
    probed = probe.read(otter[0]), probe.read(otter[1])
    rows = []
    guard: dict[bool, Tensor] = {}
    for method, sides in (("Otter", otter), (f"linear probe, block {probe.block}", probed)):
        for listed in (False, True):
            readings = _calibrated(*sides, listed)
            values = torch.tensor([passage_f1(each) for each in readings])  # [texts]
            summary = summarize_guard(readings)
            row = {"data": data, "method": method, "listed": listed, "texts": summary["n"]}
            row |= {name: summary[name] for name in ("span_f1", "span_f1_ci95")}
            if sides is otter:
                guard[listed] = values
            else:
                apart = guard[listed] - values
                row |= {"lead": float(apart.mean()), "lead_ci95": interval(len(apart), mean_of(apart))}
            rows.append(row)
    return rows


class TokenProbe:
    """Is a logistic regression on the states of one block.

    Args:
        base: the frozen base.
        learned: texts with marked passages to learn from.
        held: those by which the block is chosen.

    Attributes:
        block: the number of the block.
    """

    def __init__(self, base: PreTrainedModel, learned: Texts, held: Texts) -> None:
        last = base.config.get_text_config(decoder=True).num_hidden_layers
        self._base = base
        seen, decide = (TokenStates(base, range(1, last + 1)) for _ in range(2))
        inside, truth = _inside(learned), _inside(held)

        def area(block: int) -> float:
            weight, bias = fit_classifier(_joined(seen, learned, block), inside, PENALTY)
            return auc(_joined(decide, held, block) @ weight + bias, truth)

        self.block = max(range(1, last + 1), key=area)
        self._weight, self._bias = fit_classifier(_joined(seen, learned, self.block), inside)

    def read(self, readings: Sequence[GuardReading]) -> list[GuardReading]:
        """Returns the readings with the probe's probabilities of standing in a passage."""
        texts = [each.labelled for each in readings]
        states = TokenStates(self._base, (self.block,)).of(texts, self.block)  # each [N, d]
        logits = [state.float() @ self._weight + self._bias for state in states]
        return [
            replace(each, spans=logit.sigmoid()[:, None].expand_as(each.spans))
            for each, logit in zip(readings, logits, strict=True)
        ]


def _inside(texts: Texts) -> Tensor:
    """Returns of the tokens of all texts whether they share a character with a passage, `[tokens]` bool."""
    return torch.cat([tokens_inside(each.characters or (), each.row.spans or ()) for each in texts])


def _joined(states: TokenStates, texts: Texts, block: int) -> Tensor:
    """Returns the states of the tokens of all texts, `[tokens, d]` float32."""
    return torch.cat(states.of(texts, block)).float()


def _calibrated(decide: Sequence[GuardReading], test: Sequence[GuardReading], listed: bool) -> list[GuardReading]:
    """Returns readings of texts by thresholds that are chosen on others."""
    config = decide[0].config
    config = replace(config, calibrations=(), marked_words=config.marked_words if listed else ())
    calibrations = calibrate_guard([replace(each, config=config) for each in decide], FALSE_ALARMS)
    return [replace(each, config=replace(config, calibrations=calibrations)) for each in test]
