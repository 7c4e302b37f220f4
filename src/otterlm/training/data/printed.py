"""Reads lists and mappings that a text prints, as JSON, Python, NumPy and pandas print them."""

import ast
import contextlib
import json
import re
from typing import Any

# Strings first, so that what they hold stays as it is; then what NumPy's printing adds or leaves out, and pandas' null.
_PIECES = re.compile(
    r"""(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<array>\barray\()|(?P<dtype>,\s*dtype=[\w.]+\))"""
    r"""|(?P<gap>(?<=[\w.}\])'"])\s+(?=[\w\-'"{\[(]))|(?P<null>\bnan\b)""",
    re.DOTALL,
)
_PYTHON = {"array": "(", "dtype": ")", "gap": ", ", "null": "None"}


def read_printed(text: str) -> Any:
    """Reads the value that a text prints.

    NumPy prints no commas between the items of an array, and `array(...)` around arrays inside of others.

    Raises:
        ValueError: it prints none.
    """
    text = text.strip()
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    python = _PIECES.sub(lambda match: match["string"] or _PYTHON[match.lastgroup or ""], text)
    try:
        return ast.literal_eval(python)
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError("the text prints no value") from error


_BEGINS = re.compile(r"""\s*(?:array\()?\[\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")
_FIELDS = [
    [re.compile(rf"""['"]{name}['"]\s*[:,]|\b{name}=""") for name in names]
    for names in (("role", "content"), ("from", "value"))
]


def is_like_messages(text: str) -> bool:
    """Returns whether a text looks like printed messages, whether or not they can be read.

    Such as messages cut short, with a date in them, or of a class of their own: `[Message(role='user', content='Hi')]`.
    """
    if _BEGINS.match(text):
        return True
    is_list = text.lstrip().startswith(("[", "{", "array(")) and text.rstrip().endswith(("]", "}", ")"))
    return is_list and any(all(field.search(text) for field in fields) for fields in _FIELDS)
