"""Misspelt settings: a request that means `otter_weight` and writes it otherwise is refused, not ignored."""

STEM = "otter"


def _slips() -> tuple[str, ...]:
    """The stem with one letter left out, doubled, or changed for its neighbour. Not with another letter in its place:
    `other_` and `outer_` are words of other people's arguments."""
    missing = {STEM[:i] + STEM[i + 1 :] for i in range(len(STEM))}
    doubled = {STEM[:i] + STEM[i] + STEM[i:] for i in range(len(STEM))}
    swapped = {STEM[:i] + STEM[i + 1] + STEM[i] + STEM[i + 2 :] for i in range(len(STEM) - 1)}
    return tuple(missing | doubled | swapped | {STEM})


SLIPS = _slips()


def resembles_prefix(name: str) -> bool:
    """Whether an argument's name begins as the settings' names do, or nearly: in any case, with or without a separator,
    with one slip."""
    letters = "".join(letter for letter in name.lower() if letter.isalpha())
    return letters.startswith(SLIPS)
