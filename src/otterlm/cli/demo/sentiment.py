"""The demo's sentiment steers both ways: the same prompt is answered gladly and gloomily."""

from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from otterlm.cli.demo.common import answer_of, chat_ids, heading, panel, report, timed
from otterlm.cli.generate import final_reward, reward_in_words
from otterlm.cli.terminal import show_coloured
from otterlm.colour import colour_range, coloured, legend
from otterlm.decoding import score_sequences
from otterlm.decoding.choice import generate_arguments
from otterlm.interventions import InterventionSettings
from otterlm.model import OtterModel
from otterlm.progress import track

PROMPTS = ("Write a review of a mountain hut.", "What do you think of a birthday party?")
"""The first reviewed thing and the first opinion of the test prompts of `benchmarks/tone_prompts.py`."""
SIDES = ("original", "gladly", "gloomily")


def run(
    model: OtterModel,
    tokenizer: PreTrainedTokenizerBase,
    method: str,
    steering: InterventionSettings,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Returns the responses, how glad each prefix is, and the cost."""
    sides: dict[str, Any] = {"original": {}}
    for name, weight in (("gladly", steering.weight), ("gloomily", -steering.weight)):
        sides[name] = generate_arguments(model, replace(steering, weight=weight), method)
    results = []
    for prompt in track(PROMPTS, "sentiment"):
        ids = chat_ids(tokenizer, prompt)
        answers = {}
        for name, settings in sides.items():
            generator = model if settings else model.base_model
            output, tokens, speed = timed(generator, ids, max_new_tokens=max_new_tokens, **settings)
            rewards = score_sequences(model, output.sequences, torch.ones_like(output.sequences))[0, ids.shape[1] :]
            answers[name] = answer_of(tokenizer, tokens, speed) | {"rewards": rewards.tolist()}
        results.append(answers)
    return report(model, PROMPTS, results) | {"range": model.adapter().config.signal.typical_range}


def show(part: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Prints the report of `run`."""
    rewards = [reward for entry in part["prompts"] for name in SIDES for reward in entry[name]["rewards"]]
    low, high = colour_range(part["range"], rewards)
    print(f"Each token's colour is how glad the whole reply will be, from {low:+.1f} (orange) to {high:+.1f} (blue).")
    print("One adapter, one weight with two signs: read what changes in the words.")
    show_coloured(legend(low, high), None)
    for entry in part["prompts"]:
        heading(f"Sentiment: {entry['prompt']}")
        for name in SIDES:
            answer = entry[name]
            text = coloured(tokenizer, answer["tokens"], answer["rewards"], low, high)
            panel(text, name, reward_in_words(final_reward(answer["rewards"][-1], part["range"])))
