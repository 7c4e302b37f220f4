"""Shows drafts: the same tokens, in fewer passes."""

from typing import Any

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from otterlm.cli.demo.common import answer_of, chat_ids, heading, panel, report, timed
from otterlm.decoding import SpeculativeDecoding
from otterlm.interventions import InterventionSettings
from otterlm.model import OtterModel
from otterlm.progress import track

PROMPTS = (
    "Explain how rain is made.",
    "Write a function in Python that adds two numbers.",
)
COLOURS = ("green", "cyan")


def run(
    model: OtterModel,
    tokenizer: PreTrainedTokenizerBase,
    method: str,
    steering: InterventionSettings,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Returns the responses, how many tokens each pass gave, and the cost."""
    results = []
    for prompt in track(PROMPTS, "draft"):
        ids = chat_ids(tokenizer, prompt)
        _, original, original_speed = timed(model.base_model, ids, max_new_tokens=max_new_tokens)
        output, drafted, speed = timed(model, ids, max_new_tokens=max_new_tokens, custom_generate=SpeculativeDecoding())
        results.append(
            {
                "original": answer_of(tokenizer, original, original_speed),
                "drafted": answer_of(tokenizer, drafted, speed)
                | {"accepted": output.accepted[0], "acceptance_length": output.acceptance_length},
            }
        )
    part = report(model, PROMPTS, results)
    for entry in part["prompts"]:
        entry["same_tokens"] = entry["original"]["tokens"] == entry["drafted"]["tokens"]
    return part


def show(part: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Prints the report of `run`, consecutive passes in different colours."""
    for entry in part["prompts"]:
        heading(f"Drafts: {entry['prompt']}")
        drafted, text, start = entry["drafted"], Text(), 0
        for number, accepted in enumerate([0, *drafted["accepted"]]):  # the pass over the prompt gives the first token
            piece = drafted["tokens"][start : start + accepted + 1]
            text.append(tokenizer.decode(piece, skip_special_tokens=True), style=COLOURS[number % len(COLOURS)])
            start += accepted + 1
        same = "the base's tokens" if entry["same_tokens"] else "NOT the base's tokens"
        subtitle = f"{drafted['acceptance_length']:.2f} tokens a pass; {same}"
        panel(text, "a colour a pass", subtitle)
