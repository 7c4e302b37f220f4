"""The demo's sentiment steers both ways: the same prompt is answered gladly and gloomily."""

from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from otterlm.cli.demo.rewarded import answer, show_answers
from otterlm.decoding.choice import generate_arguments
from otterlm.interventions import InterventionSettings
from otterlm.model import OtterModel

PROMPTS = ("Write a review of a mountain hut.", "What do you think of a birthday party?")
"""The first review and the first opinion of the test prompts of `benchmarks/tone_prompts.py`."""


def run(
    model: OtterModel,
    tokenizer: PreTrainedTokenizerBase,
    method: str,
    steering: InterventionSettings,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Returns the responses, how glad each prefix is, and the cost."""
    weights = {"gladly": steering.weight, "gloomily": -steering.weight}
    steered = {
        side: generate_arguments(model, replace(steering, weight=weight), method) for side, weight in weights.items()
    }
    return answer(model, tokenizer, "sentiment", PROMPTS, steered, max_new_tokens=max_new_tokens)


def show(part: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Prints the report of `run`."""
    introduction = (
        "Each token's colour is how glad the whole reply will be, from {low:+.1f} (orange) to {high:+.1f} (blue).\n"
        "One adapter, one weight with two signs: read what changes in the words."
    )
    show_answers(part, tokenizer, "Sentiment", introduction)
