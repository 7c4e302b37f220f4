"""Reads dialogues as text in the format of the HH data: "\\n\\nHuman: ...\\n\\nAssistant: ..."."""

import re

TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
"""This matches the marker of a turn."""
_USERS_TURN = re.compile(r"(?:\A\s*|\n\n)(User|Assistant):")
"""This matches the turns of texts that name the human so from their first word on."""
FIRST_TURN = re.compile(r"\s*(Human|User|Assistant):")
"""This matches the marker at the very start of a text."""
ASSISTANT = re.compile(r"[\r\n][ \t]*Assistant:")
"""This matches the assistant's marker at the start of any line."""
_SYSTEM = re.compile(r"\A\s*System:")


def split_hh(text: str) -> list[tuple[str, str]] | None:
    """Splits a text into turns, with unchanged contents. Returns None for a text in which no human speaks."""
    first = FIRST_TURN.match(text)
    of_user = first is not None and first[1] == "User" and "\n\nAssistant:" in text
    before, *pieces = (_USERS_TURN if of_user else TURN).split(text)
    if not pieces or (before.strip() and "Human" not in pieces[::2]):
        return None
    roles = {"Human": "user", "User": "user", "Assistant": "assistant"}
    turns = [(roles[name], content) for name, content in zip(pieces[::2], pieces[1::2], strict=True)]
    return [("system", _SYSTEM.sub("", before)), *turns] if before.strip() else turns
