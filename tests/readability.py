"""Checks that every page reads easily: a Flesch reading ease of at least 50, no line over 120 characters, table rows
included. Run by `make docs`."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
EASE = 50
WIDTH = 120


def pages() -> list[Path]:
    """Returns README, the changelog, the page for contributors, the docs and the adapters' cards."""
    roots = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
    paths = [*roots, *ROOT.glob("docs/**/*.md"), *ROOT.glob("adapters/*/*.md")]
    return sorted(paths)


def prose(page: str) -> str:
    """Returns the sentences of a page: no front matter, code, tables, headings, markup or addresses."""
    page = re.sub(r"\A---\n.*?\n---\n", "", page, flags=re.DOTALL)
    page = re.sub(r"^ *```.*?^ *```$", "", page, flags=re.DOTALL | re.MULTILINE)
    page = re.sub(r"<!--.*?-->", "", page, flags=re.DOTALL)
    page = re.sub(r"`[^`]+`", "code", page)
    page = re.sub(r"^( *\||#|:::|!!!|    ).*$", "", page, flags=re.MULTILINE)
    page = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", page)
    page = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", page)
    page = re.sub(r"<[^>]+>", "", page)
    page = re.sub(r"\d[\d.,:]*(?<=\d)", "9", page)  # the point in 0.5 ends no sentence
    page = re.sub(r"^ *(?:[-*]|\d+\.) ", "\n", page, flags=re.MULTILINE)
    paragraphs = (" ".join(part.split()).replace("*", "") for part in re.split(r"\n\s*\n", page))
    return "\n".join(part if part[-1] in ".!?" else f"{part}." for part in paragraphs if part)


def main() -> None:
    """Prints each page's reading ease; exits with 1 if a page fails."""
    # Not needed by the tests, which import this module.
    from textstat import flesch_reading_ease

    failed = False
    for page in pages():
        text = page.read_text()
        name = page.relative_to(ROOT).as_posix()
        sentences = prose(text)
        ease = flesch_reading_ease(sentences) if sentences else 100.0
        wide = [number for number, line in enumerate(text.splitlines(), start=1) if len(line) > WIDTH]
        failed |= ease < EASE or bool(wide)
        verdict = "too hard" if ease < EASE else "ok"
        lines = f", over {WIDTH} characters: line {', '.join(map(str, wide))}" if wide else ""
        print(f"{ease:5.1f}  {name}: {verdict}{lines}")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
