"""Colours tokens by a value such as their reward, red to green, on a terminal and as HTML."""

import html
from collections.abc import Iterator, Sequence

from rich.text import Text
from transformers import PreTrainedTokenizerBase


def coloured(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[int],
    rewards: Sequence[float],
    low: float | None = None,
    high: float | None = None,
) -> Text:
    """Returns a text whose tokens have a background from red (`low`) to green (`high`).

    The range is that of the rewards by default.
    """
    text = Text()
    for piece, reward in _pieces(tokenizer, tokens, rewards):
        text.append(piece, style=f"white on {_colour(reward, *_range(rewards, low, high))}")
    return text


def coloured_html(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], rewards: Sequence[float], low: float, high: float
) -> str:
    """Returns the same as HTML. Each token shows its reward when pointed at."""
    return "".join(
        token_html(piece, reward, low, high, f"{reward:+.3f}") for piece, reward in _pieces(tokenizer, tokens, rewards)
    )


def token_html(text: str, value: float, low: float, high: float, title: str) -> str:
    """Returns one token on a background from red (`low`) to green (`high`), which shows `title` when pointed at."""
    style = f"background:{_colour(value, low, high)};color:#fff"
    return f'<span style="{style}" title="{html.escape(title)}">{html.escape(text)}</span>'


def page(title: str, sections: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Returns a page of HTML that loads nothing else.

    Args:
        title: of the page.
        sections: a heading and its texts, which are HTML already.
    """
    body = "".join(
        f"<h2>{html.escape(heading)}</h2>" + "".join(f"<p>{text}</p>" for text in texts) for heading, texts in sections
    )
    style = "body{font:16px/1.6 sans-serif;max-width:50em;margin:2em auto}p{white-space:pre-wrap}"
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{style}</style>'
    return (
        f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{html.escape(title)}</h1>{body}</body></html>\n'
    )


def _pieces(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], rewards: Sequence[float]
) -> Iterator[tuple[str, float]]:
    """Yields what each token adds to the text. A character may be spread over several tokens: the last one has it."""
    shown = ""
    for end, reward in enumerate(rewards, start=1):
        # Cleaning up spaces would change what was shown before.
        decoded = tokenizer.decode(tokens[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if not decoded.endswith("\ufffd") or end == len(rewards):
            yield decoded[len(shown) :], reward
            shown = decoded


def _range(rewards: Sequence[float], low: float | None, high: float | None) -> tuple[float, float]:
    return min(rewards) if low is None else low, max(rewards) if high is None else high


def _colour(reward: float, low: float, high: float) -> str:
    share = 0.5 if high <= low else min(1.0, max(0.0, (reward - low) / (high - low)))
    return f"#{round(190 * (1 - share)):02x}{round(150 * share):02x}30"
