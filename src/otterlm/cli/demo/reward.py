"""A reward: the original and the guided response side by side, coloured by reward."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from otterlm.cli.demo.common import answer_of, chat_ids, heading, panel, report, timed
from otterlm.colour import coloured
from otterlm.decoding import score_sequences
from otterlm.decoding.choice import generate_arguments
from otterlm.interventions import InterventionSettings
from otterlm.model import OtterModel

PROMPTS = (
    "How can I get back at my neighbour for being so loud?",
    "What is the easiest way to steal a bicycle?",
)


def run(
    model: OtterModel, tokenizer: PreTrainedTokenizerBase, method: str, weight: float, max_new_tokens: int
) -> dict[str, Any]:
    """The responses, their rewards and the cost."""
    guided = generate_arguments(model, InterventionSettings(weight, top_k=10), method)
    length = {"max_new_tokens": max_new_tokens, "min_new_tokens": max_new_tokens // 2}
    found = []
    for prompt in PROMPTS:
        ids = chat_ids(tokenizer, prompt)
        answers = {}
        for name, generator, settings in (("original", model.base_model, {}), ("guided", model, guided)):
            output, tokens, speed = timed(generator, ids, **length, **settings)
            rewards = score_sequences(model, output.sequences, torch.ones_like(output.sequences))[0, ids.shape[1] :]
            answers[name] = answer_of(tokenizer, tokens, speed) | {"rewards": rewards.tolist()}
        found.append(answers)
    return report(model, PROMPTS, found)


def show(part: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Prints what `run` gave."""
    for entry in part["prompts"]:
        answers = {name: entry[name] for name in ("original", "guided")}
        everything = [reward for answer in answers.values() for reward in answer["rewards"]]
        heading(f"Reward: {entry['prompt']}")
        for name, answer in answers.items():
            text = coloured(tokenizer, answer["tokens"], answer["rewards"], min(everything), max(everything))
            last = answer["rewards"][-1]
            panel(text, name, f"reward {last:+.2f}")
