"""Counts what requests ask for and how responses end, in the registry that vLLM shows under `/metrics`.

Everything is counted in the front end. A response's numbers are those of its end, and of those requests alone that have
an adapter read beside their tokens.
"""

from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

REWARDS = (-8, -4, -2, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 2, 4, 8)
PROBABILITIES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
"""The upper bounds of the histograms' buckets. Those with negative ones have no sum."""


@cache
def _metrics() -> SimpleNamespace:
    """Registers the metrics, once in a process. vLLM decides before it serves whether processes share a registry."""
    from prometheus_client import Counter, Histogram

    by_adapter, by_label = ["adapter"], ["adapter", "label"]
    return SimpleNamespace(
        reward=Histogram("otter:reward", "Reward at the end of a response.", by_adapter, buckets=REWARDS),
        probability=Histogram(
            "otter:label_probability",
            "Probability of a label at the end of a response.",
            by_label,
            buckets=PROBABILITIES,
        ),
        stops=Counter("otter:stops", "Responses that a guard ended, label empty for a reward.", by_label),
        refused_prompts=Counter("otter:refused_prompts", "Prompts that got no token.", by_label),
        steered=Counter("otter:steered_requests", "Requests that an adapter steers.", by_adapter),
        refused=Counter("otter:refused_requests", "Requests whose settings were refused."),
    )


def count_end(end: Mapping[str, Any]) -> None:
    """Counts a response, see `otterlm.engines.guard.Track.end`."""
    metrics = _metrics()
    for adapter, reward in end["rewards"].items():
        metrics.reward.labels(adapter).observe(reward)
    for adapter, probabilities in end["guards"].items():
        for label, probability in probabilities.items():
            metrics.probability.labels(adapter, label).observe(probability)
    for name in ("stops", "refused_prompts"):
        if name in end:
            getattr(metrics, name).labels(*end[name]).inc()


def count_steered(adapter: str) -> None:
    """Counts a request that an adapter steers."""
    _metrics().steered.labels(adapter).inc()


def count_refused() -> None:
    """Counts a request whose settings were refused."""
    _metrics().refused.inc()
