"""Defines what the parts of the demo share."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.panel import Panel
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.bases import load_config
from otterlm.cli.terminal import console
from otterlm.model import OtterModel
from otterlm.plan import plan
from otterlm.smollm2 import SMOLLM2
from otterlm.training.data.tokens import prompt_tokens


def chat_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    """Returns a user's turn as the base reads it, `[1, T]`."""
    return torch.tensor([prompt_tokens((("user", prompt),), tokenizer)])


def timed(model: OtterModel | PreTrainedModel, ids: torch.Tensor, **settings: Any) -> tuple[Any, list[int], float]:
    """Generates from one prompt.

    Returns:
        The output of `generate`, the new tokens, and how many a second.
    """
    started = time.perf_counter()
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, **{"do_sample": False, **settings}
    )
    seconds = time.perf_counter() - started
    tokens = output.sequences[0, ids.shape[1] :].tolist()
    return output, tokens, len(tokens) / seconds


def answer_of(tokenizer: PreTrainedTokenizerBase, tokens: list[int], speed: float) -> dict[str, Any]:
    """Returns what every part reports of an answer."""
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return {"text": text, "tokens": tokens, "tokens_per_second": speed}


def report(model: OtterModel, prompts: Sequence[str], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a part's report.

    It has the costs of its adapter (`otterlm.plan`), each prompt with its answers, and the mean tokens/s of the answers
    of each name.
    """
    return {
        "plan": plan(load_config(SMOLLM2), model.adapter().config).to_dict(),
        "prompts": [{"prompt": prompt, **answers} for prompt, answers in zip(prompts, results, strict=True)],
        "tokens_per_second": {
            name: sum(each[name]["tokens_per_second"] for each in results) / len(results) for name in results[0]
        },
    }


def heading(text: str) -> None:
    """Prints a rule with a text in it, which may contain what rich takes for markup."""
    console.rule(Text(text, style="bold"))


def panel(text: Text | str, title: str, subtitle: str | None = None) -> None:
    """Prints a text in a frame."""
    below = None if subtitle is None else Text(subtitle)
    console.print(Panel(text, title=Text(title), subtitle=below, title_align="left"))
