"""Recognises misspelt settings: a request with `oter_weight` is refused, not ignored."""

STEM = "otter"


def _slips() -> tuple[str, ...]:
    """Returns the stem with one letter left out, doubled, or swapped with its neighbour.

    Other letters are not tried: `other_` and `outer_` are words of other people's arguments.
    """
    missing = {STEM[:i] + STEM[i + 1 :] for i in range(len(STEM))}
    doubled = {STEM[:i] + STEM[i] + STEM[i:] for i in range(len(STEM))}
    swapped = {STEM[:i] + STEM[i + 1] + STEM[i] + STEM[i + 2 :] for i in range(len(STEM) - 1)}
    return tuple(missing | doubled | swapped | {STEM})


SLIPS = _slips()


def resembles_prefix(name: str) -> bool:
    """Returns whether an argument's name begins as the settings' names do, or nearly.

    Case and separators do not count, and one slip is allowed.
    """
    letters = "".join(letter for letter in name.lower() if letter.isalpha())
    return letters.startswith(SLIPS)
