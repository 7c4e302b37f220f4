"""Makes what all pages of `otter score --html` share: the turns of a prompt, and whether a text was cut."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from otterlm.training.data.conversations import Dialogue

NAMES = {"user": "User", "assistant": "Assistant", "system": "System"}


def turns(dialogue: Dialogue, prompt: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
    """Returns the (role, text) turns before a response; of a raw text, what the tokens before it say."""
    if dialogue.prompt is not None:
        return [(NAMES.get(role, role.capitalize()), text) for role, text in dialogue.prompt]
    before = tokenizer.decode(prompt, skip_special_tokens=True).strip()
    return [("Before", before)] if before else []


def cut(response: Sequence[int], limit: int) -> str:
    """Says that a response was cut at a limit of tokens, if it was."""
    return f"cut at {limit} tokens" if len(response) >= limit else ""
