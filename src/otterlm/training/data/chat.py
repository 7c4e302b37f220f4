"""Encodes a conversation by a tokenizer and its chat template.

A special token is itself only where the template wrote it. In the content of a turn it is plain text.
"""

import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from otterlm.errors import OtterError, reason
from otterlm.training.data.conversations import Turn


@dataclass(frozen=True, slots=True)
class Markers:
    """The markers are the special texts of a tokenizer and its chat template.

    Attributes:
        special: matches each special token.
        ends: texts that end a response: the end-of-sequence token, and what the template writes after the response.
        opening, answer: the beginning of the template, and what it writes before a response; empty where it writes no
            special tokens.
        head, tail: what it writes before what the user says, from its last special token on, and the special token
            after it; empty where there is none.
        begun: the end of `answer` that is a part of the response already, such as `<think>`.
        gap: the text between `answer` and the response that the template writes, such as a space.
    """

    special: re.Pattern[str]
    ends: tuple[str, ...]
    opening: str = ""
    answer: str = ""
    begun: str = ""
    gap: str = ""
    head: str = ""
    tail: str = ""

    def wrote_prompt(self, turns: Sequence[Turn]) -> bool:
        """Returns whether the first turn looks like the template's text: a whole prompt, with or without the answer's
        marker, or the beginning of one that quotes a dialogue in the HH format."""
        text = turns[0][1].strip()
        if not self.answer or not text.startswith(self.opening):
            return False
        whole = text.endswith(self.answer.rstrip()) or (bool(self.tail) and text.endswith(self.tail))
        return self.head in text and (whole if len(turns) == 1 else turns[0][0] == "system")

    def wrote(self, text: str) -> bool:
        """Returns whether a text looks like one that the template wrote, at least up to the response."""
        return bool(self.answer) and text.lstrip().startswith(self.opening) and self.answer.rstrip() in text


def markers(tokenizer: PreTrainedTokenizerBase) -> Markers:
    """Returns the markers of a tokenizer, and caches them."""
    return _find_markers(tokenizer, (len(tokenizer), tokenizer.eos_token, repr(tokenizer.chat_template)))


@functools.lru_cache(maxsize=8)
def _find_markers(tokenizer: PreTrainedTokenizerBase, state: tuple[object, ...]) -> Markers:
    """Computes `markers`. `state` is what can change in a tokenizer, so that the cache is never out of date."""
    texts = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    texts |= set(tokenizer.all_special_tokens)
    special = re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or "(?!)")
    ends: tuple[str, ...] = (tokenizer.eos_token,) if tokenizer.eos_token else ()
    if not tokenizer.chat_template:
        return Markers(special, ends)
    try:
        question, exchange = [("user", "Q")], [("user", "Q"), ("assistant", "A\ue000")]
        before, after = (_render(question, tokenizer, begin) for begin in (False, True))
        spoken = _render(exchange, tokenizer, False)
        ended = special.match(spoken.partition("\ue000")[2].lstrip())
    except Exception:  # a template that wants other turns: its texts around them are not known
        return Markers(special, ends)
    ends += (ended.group(),) if ended else ()
    opening, answer = special.match(before), after.removeprefix(before)
    head = spoken.removeprefix(before).partition("A\ue000")[0]
    begun = answer.removeprefix(head) if answer.startswith(head) else ""
    gap = head.removeprefix(answer) if head.startswith(answer) and head.removeprefix(answer).isspace() else ""
    if opening is None or not special.search(answer):
        return Markers(special, ends, begun=begun, gap=gap)
    header, _, tail = before.rpartition("Q")
    *_, last = special.finditer(header)
    tail = tail.strip() if special.fullmatch(tail.strip()) else ""
    return Markers(special, ends, opening.group(), answer, begun, gap, header[last.start() :], tail)


def chat_tokens(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, where: str, unsaid: str = "") -> list[int]:
    """Returns the tokens of turns in the chat template, up to where the response begins.

    Args:
        turns: the turns before the response.
        tokenizer: has the template.
        where: the row, for errors.
        unsaid: left out at the end, see `split_begun`.

    Raises:
        OtterError: the template refuses the turns or leaves one out; the message begins with `where`.
    """
    if not turns:
        raise OtterError(f"{where}: nothing stands before the response, and the chat template needs a turn")
    known = markers(tokenizer)
    if known.wrote_prompt(turns):
        raise OtterError(f"{where}: the prompt is in the chat template already: give only what the user says")
    try:
        text = _render(turns, tokenizer)
        left_out = _left_out(turns, text, tokenizer)
        if left_out is not None:
            raise OtterError(f"{where}: the chat template leaves out what the {left_out} says")
        if not any(known.special.search(content) for _, content in turns):
            return tokenizer.encode(text.removesuffix(unsaid), add_special_tokens=False)
        opening, closing = _unused("".join(content for _, content in turns))
        marked = [(role, known.special.sub(rf"{opening}\g<0>{closing}", content)) for role, content in turns]
        text = _render(marked, tokenizer).removesuffix(unsaid)
    except OtterError:
        raise
    except Exception as error:
        raise OtterError(f"{where}: the chat template refuses it: {reason(error)}") from error
    pieces = re.split(f"{opening}([^{closing}]*){closing}", text)
    # A template that cuts at a marked token leaves one mark alone.
    pieces = [re.sub(f"[{opening}{closing}]", "", piece) for piece in pieces]
    tokens: list[int] = tokenizer.encode(pieces[0], add_special_tokens=False)
    for number, piece in enumerate(pieces[1:], start=1):
        tokens += _encode_inside(piece, tokenizer, where, spoken=number % 2 == 1)
    return tokens


def plain_tokens(
    text: str, tokenizer: PreTrainedTokenizerBase, where: str, add_special_tokens: bool = False
) -> list[int]:
    """Returns the tokens of a text in which special tokens are plain text.

    Args:
        text: the text to encode.
        tokenizer: encodes it.
        where: the row, for errors.
        add_special_tokens: let the tokenizer add special tokens, such as one at the beginning.

    Raises:
        OtterError: the tokenizer knows a special token in it only as itself.
    """
    for special in sorted(set(markers(tokenizer).special.findall(text))):
        alone = tokenizer.encode(special, add_special_tokens=False, split_special_tokens=True)
        if tokenizer.convert_tokens_to_ids(special) in alone:
            raise OtterError(f"{where}: {special} cannot be encoded as plain text: leave it out")
    return tokenizer.encode(text, add_special_tokens=add_special_tokens, split_special_tokens=True)


def bare_response(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a response without the template's answer marker before it, end tokens after it, or white space around."""
    known = markers(tokenizer)
    text = text.strip()
    if marker := known.answer.removesuffix(known.begun).strip():
        text = text.removeprefix(marker).lstrip()
    while text.endswith(known.ends):
        text = next(text.removesuffix(end) for end in known.ends if text.endswith(end)).rstrip()
    return text


def split_begun(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Returns the part of a response after what the chat template writes of it.

    Returns:
        The response without what the template writes already; and what the template must leave out, because the
        response has another text there, such as a thought where the template writes an empty one.
    """
    begun = markers(tokenizer).begun
    if begun.strip() and text.startswith(begun):
        return text.removeprefix(begun), ""
    return text, begun if text.startswith(tuple(begun.split()[:1])) else ""


def answer_tokens(text: str, tokenizer: PreTrainedTokenizerBase, where: str) -> list[int]:
    """Returns the tokens of a response, after the white space that the chat template puts before it.

    Mistral's puts a space.

    Raises:
        OtterError: as for `plain_tokens`.
    """
    gap = markers(tokenizer).gap if text else ""
    return _encode_inside(gap + text, tokenizer, where, spoken=True) if gap else plain_tokens(text, tokenizer, where)


def raw_content(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a raw text without the beginning-of-sequence and end-of-sequence tokens that it spells."""
    if tokenizer.bos_token:
        text = text.removeprefix(tokenizer.bos_token)
    if tokenizer.eos_token and text.rstrip().endswith(tokenizer.eos_token):
        text = text.rstrip().removesuffix(tokenizer.eos_token)
    return text


def split_rendered(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """Splits a text that the chat template wrote where the last response begins. Returns None for any other text."""
    known = markers(tokenizer)
    if not known.wrote(text):
        return None
    before, _, response = text.rpartition(known.answer.rstrip())
    return before + known.answer, bare_response(response, tokenizer)


def _render(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, begin_answer: bool = True) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=begin_answer)


def _left_out(turns: Sequence[Turn], text: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Returns the role of a turn that the template leaves out without an error, if there is one.

    `text` is what the template writes.
    """
    mark, _ = _unused(text + "".join(content for _, content in turns))
    numbered = [(role, f"{content}{mark}{index}{mark}") for index, (role, content) in enumerate(turns)]
    marked = _render(numbered, tokenizer)
    for index, (role, content) in enumerate(turns):
        if f"{mark}{index}{mark}" not in marked:  # or it wrote the mark in another way
            other = [*turns[:index], (role, f"{content}."), *turns[index + 1 :]]
            if _render(other, tokenizer) == text:
                return role
    return None


def _unused(text: str) -> tuple[str, str]:
    """Returns two private-use characters that are not in a text."""
    first, second = itertools.islice((mark for mark in map(chr, range(0xE000, 0xF8FF)) if mark not in text), 2)
    return first, second


def _encode_inside(text: str, tokenizer: PreTrainedTokenizerBase, where: str, spoken: bool) -> list[int]:
    """Returns the tokens of a text that follows another.

    It is encoded after a line feed, because some tokenizers put a space first.
    """

    def encode(text: str) -> list[int]:
        return plain_tokens(text, tokenizer, where) if spoken else tokenizer.encode(text, add_special_tokens=False)

    feed, after_feed = encode("\n"), encode(f"\n{text}")
    return after_feed[len(feed) :] if after_feed[: len(feed)] == feed else encode(text)
