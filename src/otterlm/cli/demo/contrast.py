"""Shows a contrast: sampled continuations of prompts that invite rudeness, with and without it."""

from typing import Any

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from otterlm.cli.demo.common import answer_of, heading, panel, report, timed
from otterlm.decoding import ContrastGuidance
from otterlm.interventions import InterventionSettings
from otterlm.model import OtterModel
from otterlm.progress import track

PROMPTS = (
    "He looked at me and said: you are such a",
    "Nobody in this town likes him, because he is a",
)


def run(
    model: OtterModel,
    tokenizer: PreTrainedTokenizerBase,
    method: str,
    steering: InterventionSettings,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Returns the continuations and the cost. The original samples from the same nucleus."""
    results = []
    for prompt in track(PROMPTS, "contrast"):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        answers = {}
        variants: list[tuple[str, Any, list[LogitsProcessor], dict[str, Any]]] = [
            ("original", model.base_model, [], {"top_p": 0.9}),
            ("contrasted", model, [ContrastGuidance(model, steering.alpha, 0.9)], {"top_p": 1.0}),
        ]
        for name, generator, processors, nucleus in variants:
            torch.manual_seed(0)
            sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, **nucleus}
            length = {"max_new_tokens": max_new_tokens // 2}
            _, tokens, speed = timed(generator, ids, logits_processor=processors, **length, **sampling)
            answers[name] = answer_of(tokenizer, tokens, speed)
        results.append(answers)
    return report(model, PROMPTS, results)


def show(part: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Prints the report of `run`."""
    for entry in part["prompts"]:
        heading(f"Contrast: {entry['prompt']}")
        for name in ("original", "contrasted"):
            panel(entry[name]["text"].strip(), name)
