"""Docstrings are sentences and names are the field's words, in `src`, the benchmarks and the examples."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("src/otterlm", "benchmarks", "examples")

# Third-person verbs that are hardly ever nouns: they make a sentence wherever they stand.
VERBS = """
acts adds answers appends are asks begins belongs brings can carries chooses closes collects combines compares
computes consists contains continues converts creates decides decodes defines depends describes distils does draws
drives encodes ends evaluates evolves explains exports extracts feeds fills finds finishes follows forgets forwards
gathers generates gets gives goes grows has have holds identifies implements imports initialises inserts is joins
keeps knows learns leaves lets lies makes manages may merges mixes multiplies must needs normalises opens parses
picks plays predicts prepares prints proves provides puts ranks rates reads recognises refuses registers remembers
removes renders repeats replaces resets resizes restores resumes returns reverses rings says sees selects sends
serves shows shuts silences skips solves sorts speaks splits stands starts stays steers stores substitutes subtracts
summarises supports takes teaches tells tokenizes trains translates transposes tries truncates turns updates uploads
verifies waits watches were widens will wraps writes yields
"""
# Verbs that are as often nouns: they make a sentence only as its first word.
NOUNS_TOO = """
applies attends builds calls checks claims colours copies correlates counts cuts downloads drafts drops estimates
fits folds groups guards guesses handles hooks installs judges lists loads locks logs maps marks masks measures
moves names notes packs pads passes plots projects records rejects reserves rewards runs samples saves scores sets
shards shifts steps stops streams tests ties times uses works
"""
SUBORDINATE = "because how if that what when where whether which while who whose"

DIALECT = "asked companion found given kept own place places said settle settled told"


def is_sentence(docstring: str) -> bool:
    """Returns whether the first sentence has a verb outside its subordinate clauses, or starts with one."""
    sentence = re.split(r"\.\s|\n\n", docstring.strip() + " ")[0]
    words = re.findall(r"[a-z_']+", re.sub(r"`[^`]*`|\([^)]*\)", "it", sentence).lower())
    if not words:
        return False
    verbs = [word in VERBS.split() for word in words]
    clauses = [word in SUBORDINATE.split() for word in words]
    start = clauses.index(True) if True in clauses else len(words)
    return words[0] in NOUNS_TOO.split() or any(verbs[:start]) or sum(verbs) > sum(clauses)


def dialect(name: str) -> bool:
    """Returns whether a name, or a part of it, is a word of the dialect."""
    return any(word in DIALECT.split() for word in name.lower().split("_"))


def modules() -> Iterator[Path]:
    """Yields the modules that are held to the rules."""
    yield from sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields the names that a module chooses itself, each with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def test_first_sentences_have_a_verb() -> None:
    bad = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
                text := ast.get_docstring(node)
            ):
                line = getattr(node, "lineno", 1)
                bad += [] if is_sentence(text) else [f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"]
    assert not bad, "\n".join(bad)


def test_names_are_no_dialect() -> None:
    bad = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in modules()
        for line, name in names(ast.parse(path.read_text()))
        if dialect(name)
    ]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Returns the reward of each prefix.", True),
        ("Scores the prefixes of a text.", True),
        ("The stream reads the base and is never written to it.", True),
        ("A row that is not whole is removed.", True),
        ("The first line of what an exception says.", False),
        ("Where a block keeps its keys.", False),
        ("The scores of all rows.", False),
        ("The adapters. They are read in order.", False),
    ],
)
def test_the_rule_tells_sentences_from_phrases(docstring, expected) -> None:
    assert is_sentence(docstring) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("found", True), ("_own_rows", True), ("PLACES", True), ("foundation", False), ("positions", False)],
)
def test_the_rule_tells_dialect_from_words(name, expected) -> None:
    assert dialect(name) == expected
