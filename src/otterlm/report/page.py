"""Builds the report's page. It loads nothing, reads in light and in dark, and on a phone."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field

from otterlm.colour import INK, scale, scale_css
from otterlm.report.charts import MINUS
from otterlm.report.style import SCRIPT, STYLE


@dataclass(frozen=True, slots=True)
class Text:
    """A text is one response of a row, or all of it.

    Attributes:
        name: what it is: `chosen`, or the label of a text.
        number: what the adapter says of the whole text.
        coloured: its tokens, as HTML.
        note: more about it, such as where it was cut.
        good: whether it is the better of two, or harmless; None where neither is known.
    """

    name: str
    number: str
    coloured: str
    note: str = ""
    good: bool | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row is what belongs together: a prompt and its responses.

    Attributes:
        name: such as `Row 7`.
        verdict: how right the adapter is.
        wrong: whether it is not; None where the truth is not known.
        error: how wrong it is; the highest comes first.
        turns: (role, text) before the texts.
        texts: of the row.
    """

    name: str
    verdict: str
    wrong: bool | None
    error: float
    turns: Sequence[tuple[str, str]]
    texts: Sequence[Text]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure is an SVG with its caption and, where there are several colours in it, a key."""

    svg: str
    caption: str
    key: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """A part is one kind of rows, such as pairs.

    Attributes:
        name: its heading.
        facts: (name, number, remark).
        figures: see `Figure`.
        rows: see `Row`.
        about: what is said of the order of the rows.
    """

    name: str
    facts: Sequence[tuple[str, str, str]]
    figures: Sequence[Figure]
    rows: Sequence[Row]
    about: str = "The worst mistakes come first."


@dataclass(frozen=True, slots=True)
class Scale:
    """The scale says what the colours stand for: the numbers at both ends, and what is counted."""

    low: float
    high: float
    meaning: str
    ends: tuple[str, str] = field(default=("", ""))


def signed(value: float, digits: int = 3) -> str:
    """Writes a number with its sign."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def page(title: str, span: Scale, parts: Sequence[Part]) -> str:
    """Returns the report as HTML."""
    colours = scale()
    variables = "".join(f"--{name}:{colours[name]};" for name in ("low", "middle", "high"))
    style = f":root{{{variables}--ink:{INK}}}{STYLE}{scale_css()}"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{html.escape(title)}</title><style>{style}</style>'
    )
    body = "".join(_part(part, span) for part in parts)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head><body><main><h1>{html.escape(title)}</h1>{body}</main>'
        f'<output id="number" role="status"></output><script>{SCRIPT}</script></body></html>\n'
    )


def _part(part: Part, span: Scale) -> str:
    facts = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd><b>{html.escape(number)}</b> {html.escape(remark)}</dd></div>"
        for name, number, remark in part.facts
    )
    figures = "".join(
        f"<figure><figcaption>{html.escape(each.caption)}{_key(each.key)}</figcaption>{each.svg}</figure>"
        for each in part.figures
    )
    rows = "".join(_row(row) for row in sorted(part.rows, key=lambda row: -row.error))
    return (
        f'<h2>{html.escape(part.name)}</h2><dl>{facts}</dl><div class="figures">{figures}</div>'
        f'<p class="about">{html.escape(part.about)}</p>{_legend(span)}{rows}'
    )


def _key(names: Sequence[str]) -> str:
    spans = (f'<span class="key key-{number}">{html.escape(name)}</span>' for number, name in enumerate(names))
    return f'<span class="keys">{"".join(spans)}</span>' if names else ""


def _legend(span: Scale) -> str:
    numbers = [signed(each, 2) if span.low < 0 else f"{each:.2f}" for each in (span.low, span.high)]
    low, high = (html.escape(" ".join(filter(None, pair))) for pair in zip(numbers, span.ends, strict=True))
    return (
        f'<p class="legend"><span>{low}</span><span class="scale" role="img" aria-label="from orange over white to '
        f'blue"></span><span>{high}</span><span>{html.escape(span.meaning)}</span></p>'
    )


def _row(row: Row) -> str:
    state = {True: "wrong", False: "right", None: "open"}[row.wrong]
    mark = {True: "✗ ", False: "✓ ", None: ""}[row.wrong]
    turns = "".join(
        f'<div class="turn"><b>{html.escape(role)}</b><p>{html.escape(text)}</p></div>' for role, text in row.turns
    )
    texts = "".join(_text(text) for text in row.texts)
    return (
        f'<section class="row {state}"><h3>{html.escape(row.name)} <span class="verdict">{mark}'
        f'{html.escape(row.verdict)}</span></h3>{turns}<div class="texts">{texts}</div></section>'
    )


def _text(text: Text) -> str:
    kind = {True: " good", False: " bad", None: ""}[text.good]
    note = f" <small>{html.escape(text.note)}</small>" if text.note else ""
    score = f'<span class="score">{html.escape(text.number)}</span>'
    heading = f"<h4>{html.escape(text.name)} {score}{note}</h4>"
    return f'<article class="text{kind}">{heading}<p class="tokens">{text.coloured}</p></article>'
