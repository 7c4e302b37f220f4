"""Tells what guards say of a response that was generated, and what they did about it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from otterlm.decoding import GuardStop, RollbackOutput
from otterlm.model import OtterModel
from otterlm.signals.alarm import verdict


def guard_report(
    model: OtterModel, labels: Mapping[str, Tensor], prompt: int, output: Any, criteria: Sequence[Any]
) -> dict[str, Any]:
    """Returns what --json prints of guards.

    Args:
        model: that generated.
        labels: of each guard, by its name, the probabilities beside all tokens, `[T, L]`.
        prompt: how many tokens are the prompt's.
        output: what `generate` gave.
        criteria: the stopping criteria of the call.

    Returns:
        By guard, `prompt` and `response`, its verdicts on both, and `labels`, the probability of each label after every
        new token; and `stopped`, the label that ended the response, and `rollbacks`, those that decoding went back for.
    """
    report: dict[str, Any] = {"prompt": {}, "response": {}, "labels": {}}
    for name, shares in labels.items():
        config: Any = model.adapter(name).config.signal
        for part, position in (("prompt", prompt - 1), ("response", -1)):
            by_label = dict(zip(config.labels, shares[position].tolist(), strict=True))
            report[part][name] = asdict(verdict(by_label, config))
        report["labels"][name] = dict(zip(config.labels, shares[prompt:].T.tolist(), strict=True))
    if isinstance(output, RollbackOutput):
        return report | {"stopped": (output.stopped or [None])[0], "rollbacks": (output.rollbacks or [[]])[0]}
    ended = [label for each in criteria if isinstance(each, GuardStop) for label in each.labels]
    return report | {"stopped": next((label for label in ended if label is not None), None)}


def show_report(report: dict[str, Any]) -> None:
    """Prints what the guards did, a line each."""
    for part in ("prompt", "response"):
        for name, judged in report[part].items():
            flagged = "flagged" if judged["flagged"] else "not flagged"
            print(f"{name}: the {part} is {flagged}: {judged['label']} {judged['probability']:.2f}")
    if report.get("rollbacks"):
        count = len(report["rollbacks"])
        print(f"went back {'once' if count == 1 else f'{count} times'}: {', '.join(report['rollbacks'])}")
    if report["stopped"] is not None:
        print(f"stopped by the guard: {report['stopped']}")
