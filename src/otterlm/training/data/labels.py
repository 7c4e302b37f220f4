"""Reads the label columns of a record: names, numbers, truth values, lists and mappings of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from otterlm.checks import shown
from otterlm.errors import OtterError
from otterlm.settings import setting
from otterlm.training.data.class_names import ClassNumber
from otterlm.training.data.conversations import clean, is_present, of_python
from otterlm.training.data.printed import read_printed

_OFFENCE = "unsafe toxic harmful hateful hate offensive abusive bad inappropriate flagged yes"
OFFENCE = frozenset(_OFFENCE.split())
"""Names that say no more than that there is an offence."""
_HARMLESS = "safe harmless unharmful none neither neutral normal ok clean benign acceptable appropriate no"
HARMLESS = frozenset(_HARMLESS.split()) | {f"{no}{name}" for no in ("no", "non", "not") for name in OFFENCE}
"""Names of labels that are no offence, in lower case, without hyphens, spaces and underscores."""
NUMBERED = ("safe", "unsafe")
"""What the labels 0 and 1 are called where nothing else is asked for."""
LABELS = ("labels", "categories")
"""The columns that hold labels beside the one that is chosen."""


@dataclass(frozen=True, slots=True)
class LabelNames:
    """Says which columns are read, and what the labels in them mean.

    Attributes:
        label_names: names of the labels 0, 1, 2, ..., separated by commas; false is 0 and true is 1.
        harmless: the labels that are no offence, separated by commas; None: those of `HARMLESS`, and `known`.
        text_column, label_column: where text and label have other names.
        known: what harmless texts were called where a guard was trained.
    """

    label_names: str | None = setting(None, "Names of the labels 0, 1, 2, ..., by commas; default safe,unsafe.")
    harmless: str | None = setting(None, "Labels that are no offence, by commas; default safe, none, neutral, ...")
    text_column: str = setting("text", "The column of the text, where it has another name.")
    label_column: str = setting("label", "The column of the label, where it has another name.")
    known: tuple[str, ...] = ()

    @property
    def numbered(self) -> tuple[str, ...]:
        """Returns the names of the labels 0, 1, 2, ..."""
        return NUMBERED if self.label_names is None else _split(self.label_names)

    def is_harmless(self, label: str) -> bool:
        """Says whether a label is no offence."""
        if self.harmless is not None:
            return label in _split(self.harmless)
        plain = "".join(letter for letter in label.lower() if letter not in "-_ ")
        return label in self.known or plain in HARMLESS


def _split(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",") if name.strip())


@dataclass(frozen=True, slots=True)
class Marks:
    """Marks are what is known of a text.

    Attributes:
        offences: names of the labels it has that are offences.
        harmless: the name of the label that says it has none, if one does.
        judged: the labels that were asked about; None: all, so that it has none but those named.
        single: whether the text has one label by the column's own kind, not a list of them.
    """

    offences: tuple[str, ...]
    harmless: str | None = None
    judged: tuple[str, ...] | None = None
    single: bool = True

    def has(self, label: str) -> bool | None:
        """Says whether the text has a label; None: not known."""
        if label in self.offences or label == self.harmless:
            return True
        return None if self.judged is not None and label not in self.judged else False


def read_marks(record: Mapping[str, Any], names: LabelNames, where: str) -> Marks | None:
    """Reads all label columns of a record.

    Returns:
        What they say together; None where they say nothing.

    Raises:
        OtterError: a label cannot be read, has no name, or two columns disagree.
    """
    columns = [name for name in dict.fromkeys((names.label_column, *LABELS)) if _says(record.get(name))]
    read = [read_label(record[name], names, f"{where}, column {name}") for name in columns]
    if len(read) < 2:
        return read[0] if read else None
    offences = tuple(dict.fromkeys(name for each in read for name in each.offences))
    harmless = next((each.harmless for each in read if each.harmless is not None), None)
    if harmless is not None and offences:
        raise OtterError(
            f"{where}: {' and '.join(columns)} disagree: one says {harmless}, another {', '.join(offences)}"
        )
    judged = [set(each.judged) for each in read if each.judged is not None]
    everything = None if len(judged) < len(read) else tuple(sorted(set().union(*judged)))
    return Marks(offences, harmless, everything, single=False)


def _says(value: Any) -> bool:
    """Says whether a label column says something. An empty list does: there is no offence."""
    return is_present(value) or isinstance(of_python(value), list | tuple | Mapping)


def read_label(value: Any, names: LabelNames, where: str) -> Marks:
    """Reads one value of a label column: a name, a number, a truth value, a list of these, or a mapping of names to
    truth values. Lists and mappings may be printed as text.

    Raises:
        OtterError: it is none of these.
    """
    value = of_python(value)
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        value = read_printed_list(value, where)
    if isinstance(value, Mapping):
        truth = {
            clean(str(name), where): _truth(held, f"{where}, {name}")
            for name, held in value.items()
            if is_present(held)
        }
        held = tuple(name for name, true in truth.items() if true)
        return Marks(*_sides(held, names, where), judged=tuple(truth), single=False)
    if isinstance(value, list | tuple):
        return Marks(*_sides(tuple(_name(each, names, where) for each in value), names, where), single=False)
    return Marks(*_sides((_name(value, names, where),), names, where))


def read_printed_list(text: str, where: str) -> Any:
    """Reads the list or mapping that a text prints, as CSV files hold them.

    Raises:
        OtterError: it prints none.
    """
    try:
        return read_printed(text)
    except ValueError as error:
        raise OtterError(f"{where} begins like a list but cannot be read as one") from error


def _sides(labels: tuple[str, ...], names: LabelNames, where: str) -> tuple[tuple[str, ...], str | None]:
    """Returns the offences among labels, and the label that says there is none."""
    offences = tuple(dict.fromkeys(label for label in labels if not names.is_harmless(label)))
    harmless = next((label for label in labels if names.is_harmless(label)), None)
    if offences and harmless is not None:
        raise OtterError(f"{where}: {harmless} says that there is no offence, and {', '.join(offences)} that there is")
    return offences, harmless


def _name(value: Any, names: LabelNames, where: str) -> str:
    """Returns the name of a label that is a name, a number or a truth value."""
    if isinstance(value, ClassNumber) and names.label_names is None:
        value = value.name
    if isinstance(value, str):
        text = clean(value, where).strip()
        value = {"true": True, "false": False}.get(text.lower(), text)
    if isinstance(value, str) and value and not _is_number(value):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise OtterError(f"{where}: a label is a name or a whole number, not {shown(value)}") from None
    if not number.is_integer():
        raise OtterError(f"{where}: a label is a name or a whole number, not {value} (a score trains a reward)")
    if not 0 <= number < len(names.numbered):
        raise OtterError(
            f"{where}: the label {int(number)} has no name ({', '.join(names.numbered)} are 0, 1, ...): "
            "give --label-names"
        )
    return names.numbered[int(number)]


def _is_number(text: str) -> bool:
    try:
        return float(text) == float(text) and abs(float(text)) != float("inf")  # Infinity and NaN are names
    except ValueError:
        return False


def _truth(value: Any, where: str) -> bool:
    if value in (0, 1, "0", "1"):
        return bool(int(value))
    truth = {"true": True, "false": False}.get(str(value).strip().lower())
    if truth is None:
        raise OtterError(f"{where}: a label of a mapping is true or false, not {value!r}")
    return truth
