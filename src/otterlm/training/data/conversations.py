"""Reads conversations in every form: chat messages, their printed form, or the HH format.

The same conversation gives the same turns in every form. White space around the content of a turn does not count, and
a line ends with a line feed.
"""

import contextlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from otterlm.errors import OtterError
from otterlm.training.data.hh import ASSISTANT, FIRST_TURN, TURN, split_hh
from otterlm.training.data.printed import is_like_messages, read_printed

Turn = tuple[str, str]
"""A turn is a role and its content."""

Prompt = tuple[Turn, ...]
"""A prompt is the turns before a response."""

ROLES = {
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "bot", "chatbot", "model", "ai"),
    "system": ("system",),
    # Templates know these roles or refuse them.
    "developer": ("developer",),
    "tool": ("tool",),
    "function": ("function",),
}
_ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
CONVERSATIONS = ("messages", "conversations", "conversation")
"""Fields of these names hold turns."""
_MEDIA = ("image", "images", "image_url", "audio", "input_audio", "video", "videos", "video_url")
_UNREAD = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", *_MEDIA)
_TEXT_KINDS = ("text", "input_text", "output_text")
_KINDS = (*_TEXT_KINDS, *_MEDIA, "input_image", "file")
_PARTS = re.compile(r"""\s*\[\s*\{.*['"]type['"]""", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A dialogue is a prompt and the response that is judged.

    `prompt` holds the turns before the response; None means a raw text with no dialogue in it.
    """

    prompt: Prompt | None
    response: str


def read_turns(value: Any, where: str) -> list[Turn] | None:
    """Reads the turns of a conversation.

    Args:
        value: chat messages (mappings with `role` and `content`, or `from` and `value`), one message, a mapping with
            one of `CONVERSATIONS` or of lists (as `datasets.Sequence` stores messages), a text that prints one of these
            (JSON, or as Python or NumPy do), or a text in the HH format ("\\n\\nHuman: ...\\n\\nAssistant: ...", also
            with "User:").
        where: the row, for errors.

    Returns:
        The turns, with unchanged contents; None for any other text.

    Raises:
        OtterError: it is none of these.
    """
    messages = _read_messages(value, where)
    if messages is None:
        return split_hh(clean(str(value), where))
    return [(role, clean(content, f"{where}, message {n}")) for n, (role, content) in enumerate(messages, start=1)]


def as_written(value: Any, where: str) -> str:
    """Returns what the last message of a conversation says, as it was written; a text that prints no messages whole.

    Raises:
        OtterError: as for `read_turns`.
    """
    messages = _read_messages(value, where)
    return str(value) if messages is None else messages[-1][1]


def read_prompt(value: Any, where: str) -> list[Turn]:
    """Reads the turns of a prompt: those of a conversation, or a text as one turn of the user.

    An empty last turn of the assistant, as the HH format has it before the response, is left out.

    Raises:
        OtterError: as for `read_turns`.
    """
    turns = read_turns(value, where)
    if turns is None:
        return [("user", _without_turns(str(value), where))]
    if turns and turns[-1][0] == "user" and ASSISTANT.search(turns[-1][1]) and _is_hh(value, where):
        raise OtterError(f"{where}: in HH text a blank line must stand before 'Assistant:'")
    while turns and turns[-1][0] == "assistant" and not turns[-1][1].strip():
        turns.pop()
    return turns


def starts_with_turn(text: str, where: str) -> bool:
    """Returns whether a text is a conversation from its first word on: in the HH format, or printed messages."""
    text = clean(text, where)
    return bool(FIRST_TURN.match(text)) or _read_printed(text, where) is not None


def _is_hh(value: Any, where: str) -> bool:
    """Returns whether turns were read of a text in the HH format."""
    return isinstance(of_python(value), str) and _read_messages(value, where) is None


def parse_dialogue(value: Any, where: str = "text") -> Dialogue:
    """Splits a dialogue into what came before its last assistant turn and that turn.

    Args:
        value: see `read_turns`; a text without turns is a raw text.
        where: the row, for errors.

    Raises:
        OtterError: the dialogue cannot be read or does not end with an assistant turn.
    """
    turns = read_turns(value, where)
    return Dialogue(None, _without_turns(value, where)) if turns is None else split_response(turns, where)


def split_response(turns: Sequence[Turn], where: str) -> Dialogue:
    """Makes a dialogue of its turns, without white space around their contents.

    Raises:
        OtterError: the last turn is not the assistant's.
    """
    if not turns or turns[-1][0] != "assistant":
        raise OtterError(f"{where}: the dialogue must end with an assistant turn (in HH text after a blank line)")
    *prompt, (_, response) = strip(turns)
    return Dialogue(tuple(prompt), response)


def strip(turns: Sequence[Turn]) -> Prompt:
    """Returns the turns without white space around their contents."""
    return tuple((role, content.strip()) for role, content in turns)


def is_present(value: Any) -> bool:
    """Returns whether a value of a record or message is present: not null, not NaN (a null of pandas), not empty."""
    value = of_python(value)
    if value is None or (isinstance(value, float) and value != value):
        return False
    return not hasattr(value, "__len__") or len(value) > 0


def of_python(value: Any) -> Any:
    """Returns what NumPy holds, such as a list that pandas reads from parquet, a number or a text, as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


def clean(text: str, where: str) -> str:
    """Returns a text with line feeds as line ends, without a byte-order mark, and with UTF-16 surrogates joined.

    Raises:
        OtterError: a half is alone.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            raise OtterError(f"{where} holds half of a character (a lone UTF-16 surrogate)") from None
    return text.replace("\r\n", "\n").removeprefix("\ufeff")


def _without_turns(text: str, where: str) -> str:
    text = clean(text, where)
    if TURN.search(text):
        raise OtterError(
            f"{where}: in HH text 'Human:' must stand before what the human says, and 'Assistant:' after it"
        )
    return text


_NAMES_ROLES = re.compile(r"""['"](?:role|from)['"]\s*:""")


def _read_printed(text: str, where: str) -> list[Any] | None:
    """Reads the messages that a text prints, as JSON or as Python or NumPy do; None where it prints none."""
    if text.lstrip().startswith('"'):  # a text printed as JSON, once more
        with contextlib.suppress(ValueError):
            return _read_printed(json.loads(text), where)
    if not text.lstrip().startswith(("[", "{", "array(")):
        return None
    if _NAMES_ROLES.search(text):
        with contextlib.suppress(ValueError):
            value = read_printed(text)
            messages = _listed(value) if isinstance(value, Mapping | list) else []
            return messages if any(map(_is_message, messages)) else None
    if is_like_messages(text):
        raise OtterError(f"{where} looks like printed messages but cannot be read as such")
    return None


def _listed(value: Any) -> list[Any]:
    """Returns messages as a list, of a mapping with `messages`, of a mapping of lists, or of one message alone."""
    if isinstance(value, Mapping):
        value = next((value[name] for name in CONVERSATIONS if is_present(value.get(name))), value)
    if not isinstance(value, Mapping):
        return list(value)
    lists = {name: list(items) for name, items in value.items() if hasattr(items, "tolist") or isinstance(items, list)}
    if not lists.keys() & {"role", "from"}:
        return [value]
    return [dict(zip(lists, turn, strict=True)) for turn in itertools.zip_longest(*lists.values())]


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def _read_messages(value: Any, where: str) -> list[Turn] | None:
    """Reads messages, with their contents as they were written; None where a text prints none."""
    value = of_python(value)
    if not isinstance(value, str | Mapping | list | tuple):
        raise OtterError(f"{where} must be a text or a list of messages, not {type(value).__name__}")
    messages = _read_printed(clean(value, where), where) if isinstance(value, str) else _listed(value)
    if messages is None:
        return None
    if not messages:
        raise OtterError(f"{where} is empty")
    return [_read_message(message, f"{where}, message {n}") for n, message in enumerate(messages, start=1)]


def _read_message(message: Any, where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise OtterError(f"{where}: a chat message needs role and content, found {type(message).__name__}")
    names = ("from", "value") if message.get("role") is None and "from" in message else ("role", "content")
    role, content = (message.get(name) for name in names)
    unread = [name for name in _UNREAD if is_present(message.get(name))]
    if unread:
        raise OtterError(f"{where}: {unread[0]} cannot be read, only text")
    if role is None or content is None:
        present = [str(name) for name, value in message.items() if value is not None]
        raise OtterError(f"{where}: a chat message needs role and content (there: {', '.join(present) or 'nothing'})")
    if str(role).lower() not in _ROLE_OF:
        raise OtterError(f"{where}: the role {role!r} is unknown; known are {', '.join(_ROLE_OF)}")
    return _ROLE_OF[str(role).lower()], _text(content, where)


def _text(content: Any, where: str) -> str:
    """Returns the text of a message: a text, or parts of text, joined as chat templates print them."""
    content = of_python(content)
    if isinstance(content, str):
        content = _printed_parts(content) or content
    if isinstance(content, str):
        return content
    parts = [content] if isinstance(content, Mapping) else content
    if not isinstance(parts, list | tuple):
        raise OtterError(f"{where}: content must be a text or a list of parts, not {type(content).__name__}")
    return "".join(_text_of_part(part, where) for part in parts)


def _printed_parts(text: str) -> list[Any] | None:
    """Returns the parts of a message that a text prints, as tables keep them; None for any other text."""
    if not _PARTS.match(text):
        return None
    with contextlib.suppress(ValueError):
        parts = read_printed(text)
        if isinstance(parts, list) and all(isinstance(part, Mapping) and part.get("type") in _KINDS for part in parts):
            return parts
    return None


def _text_of_part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    if kind not in _TEXT_KINDS:
        raise OtterError(f"{where} holds a part of type {kind}: only text can be read")
    if not isinstance(part.get("text"), str):
        raise OtterError(f"{where} holds a part without text")
    unread = [name for name in _MEDIA if is_present(part.get(name))]
    if unread:
        raise OtterError(f"{where} holds a part with {unread[0]}: only text can be read")
    return part["text"]
