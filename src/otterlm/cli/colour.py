"""Tokens coloured by their reward, red to green."""

from collections.abc import Sequence

from rich.text import Text
from transformers import PreTrainedTokenizerBase


def coloured(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[int],
    rewards: Sequence[float],
    low: float | None = None,
    high: float | None = None,
) -> Text:
    """A text whose tokens stand on a ground from red (`low`) to green (`high`); the range is the rewards' own by
    default."""
    low = min(rewards) if low is None else low
    high = max(rewards) if high is None else high
    text, shown = Text(), ""
    for end, reward in enumerate(rewards, start=1):
        # Decoded together: a character may be spread over several tokens.
        decoded = tokenizer.decode(tokens[:end], skip_special_tokens=True)
        if decoded.endswith("\ufffd"):
            continue
        share = 0.5 if high <= low else min(1.0, max(0.0, (reward - low) / (high - low)))
        red, green = round(190 * (1 - share)), round(150 * share)
        text.append(decoded[len(shown) :], style=f"white on #{red:02x}{green:02x}30")
        shown = decoded
    return text
