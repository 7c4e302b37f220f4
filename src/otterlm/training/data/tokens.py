"""Turns rows into tokens, cut to limits."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from otterlm.errors import OtterError
from otterlm.settings import check_settings, setting
from otterlm.training.data.chat import (
    answer_tokens,
    bare_response,
    chat_tokens,
    plain_tokens,
    raw_content,
    split_begun,
    split_rendered,
)
from otterlm.training.data.conversations import Dialogue, Prompt, clean
from otterlm.training.data.packing import Example
from otterlm.training.data.rows import PairRow, Row, ScoredRow


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits are how many tokens are used of a prompt, from its end, and of a response, from its start."""

    prompt: int = setting(256, "A longer prompt keeps its end.", minimum=1, option="--max-prompt-tokens")
    response: int = setting(256, "A longer response keeps its start.", minimum=1, option="--max-response-tokens")

    def __post_init__(self) -> None:
        check_settings(self)


class LatestPrompt:
    """The latest prompt's tokens are remembered: both texts of a pair, and often the rows that follow, have it.

    Args:
        tokenizer: encodes prompts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._latest: tuple[Prompt, str] | None = None
        self._tokens: list[int] = []

    def tokens(self, prompt: Prompt, where: str, unsaid: str) -> list[int]:
        """Returns the tokens of a prompt, see `prompt_tokens`."""
        if self._latest != (prompt, unsaid):
            self._tokens = prompt_tokens(prompt, self._tokenizer, where, unsaid)
            self._latest = prompt, unsaid
        return self._tokens


def dialogue_tokens(
    dialogue: Dialogue,
    tokenizer: PreTrainedTokenizerBase,
    limits: Limits,
    where: str = "the dialogue",
    prompts: LatestPrompt | None = None,
    ended: bool = True,
) -> tuple[list[int], list[int]]:
    """Returns the tokens of a prompt and of its response, apart, as generation would see them.

    They follow the tokenizer's chat template; without one, the HH format. A raw text that the chat template wrote is
    the dialogue it shows. The response ends with the end-of-sequence token, once, unless it was cut or is not to be
    `ended`. Special tokens in the content of turns are plain text. `prompts` remembers the prompt for the next
    dialogue.

    Returns:
        The last `limits.prompt` tokens of the prompt and the first `limits.response` of the response.

    Raises:
        OtterError: the chat template refuses the prompt; the message begins with `where`.
    """
    rendered = split_rendered(dialogue.response, tokenizer) if dialogue.prompt is None else None
    if rendered is not None:
        prompt = tokenizer.encode(rendered[0], add_special_tokens=False)
        response = answer_tokens(rendered[1], tokenizer, where)
    elif dialogue.prompt is None:
        prompt = prompt_tokens(None, tokenizer)
        response = plain_tokens(raw_content(dialogue.response, tokenizer), tokenizer, where)
    else:
        text = bare_response(dialogue.response, tokenizer)
        rest, unsaid = split_begun(text, tokenizer)
        prompt = (prompts or LatestPrompt(tokenizer)).tokens(dialogue.prompt, where, unsaid)
        answered = bool(tokenizer.chat_template)
        response = answer_tokens(rest, tokenizer, where) if answered else plain_tokens(f" {text}", tokenizer, where)
    if ended and tokenizer.eos_token_id is not None:
        response.append(tokenizer.eos_token_id)
    return prompt[-limits.prompt :], response[: limits.response]


def prompt_tokens(
    prompt: Prompt | None, tokenizer: PreTrainedTokenizerBase, where: str = "the prompt", unsaid: str = ""
) -> list[int]:
    """Returns the tokens of a prompt of (role, content) turns, up to where the response begins.

    What the chat template writes at the end is left out if it is `unsaid`. A prompt of None, a raw text without a
    dialogue, is the beginning-of-sequence token (or nothing, where there is none).

    Raises:
        OtterError: the chat template refuses the prompt; the message begins with `where`.
    """
    if prompt is None:
        return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    cleaned = ((role, clean(text, where)) for role, text in prompt)
    turns = [(role, bare_response(text, tokenizer) if role == "assistant" else text) for role, text in cleaned]
    if tokenizer.chat_template:
        return chat_tokens(turns, tokenizer, where, unsaid)
    names = {"user": "Human", "assistant": "Assistant", "system": "System"}
    text = "".join(f"\n\n{names.get(role, role)}: {content}" for role, content in turns) + "\n\nAssistant:"
    return plain_tokens(text, tokenizer, where, add_special_tokens=True)


def encode_prompts(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[list[int]]:
    """Returns the last `max_tokens` of each prompt's `prompt_tokens`."""
    names = (getattr(prompt, "where", f"prompt {number}") for number, prompt in enumerate(prompts, start=1))
    return [prompt_tokens(prompt, tokenizer, where)[-max_tokens:] for prompt, where in zip(prompts, names, strict=True)]


def tokenize(rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, limits: Limits) -> list[Example]:
    """Turns rows into examples, all in memory; `otterlm.training.data.encoding` does so for data of any size.

    A pair whose two responses are the same within the limits teaches nothing and is left out.

    Raises:
        OtterError: no row is left.
    """
    encoder = RowEncoder(tokenizer, limits)
    examples = list(encoder.examples(enumerate(rows)))
    if not examples:
        raise no_rows()
    return examples


def no_rows() -> OtterError:
    """Makes the error of data of which no row is left."""
    return OtterError("no usable rows: every response is empty or, within the token limits, the same as its rival")


class RowEncoder:
    """The encoder turns rows into examples, one after the other.

    Args:
        tokenizer: with its chat template.
        limits: tokens of a prompt and of a response.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> None:
        self._tokenizer, self._limits, self._prompts = tokenizer, limits, LatestPrompt(tokenizer)

    def examples(self, rows: Iterable[tuple[int, Row]]) -> Iterator[Example]:
        """Yields the examples of numbered rows, without those that are left out, see `tokenize`."""
        for index, row in rows:
            example = self._pair(index, row) if isinstance(row, PairRow) else self._text(index, row)
            if example is not None:
                yield example

    def _tokens(self, text: Dialogue, where: str) -> tuple[list[int], list[int]]:
        return dialogue_tokens(text, self._tokenizer, self._limits, where, self._prompts)

    def _text(self, index: int, row: ScoredRow) -> Example | None:
        prompt, response = self._tokens(row.text, row.where)
        if not response:
            return None
        return Example(index, tuple(prompt), (tuple(response),), (row.score,))

    def _pair(self, index: int, row: PairRow) -> Example | None:
        raw = [side.response for side in (row.chosen, row.rejected) if side.prompt is None]
        if len({split_rendered(text, self._tokenizer) is None for text in raw}) > 1:
            raise OtterError(f"{row.where}: one text was put through the chat template and the other was not")
        prompt, chosen = self._tokens(row.chosen, row.where)
        other_prompt, rejected = self._tokens(row.rejected, row.where)
        if (chosen == rejected and prompt == other_prompt) or not chosen or not rejected:
            return None
        first, second = prompt + chosen, other_prompt + rejected
        # Both branches keep at least one token, the one whose reward is compared.
        limit = min(len(first), len(second)) - 1
        shared = next((i for i in range(limit) if first[i] != second[i]), limit)
        branches = tuple(first[shared:]), tuple(second[shared:])
        return Example(index, tuple(first[:shared]), branches, prompts=(len(prompt), len(other_prompt)))
