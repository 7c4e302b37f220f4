"""Turns labelled rows into tokens, and finds the characters that each token stands for.

A labelled text has no end token: it is judged at its last token. Few texts would not teach what an end token means.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from otterlm.errors import OtterError
from otterlm.training.data.labelled import LabelledRow
from otterlm.training.data.packing import Example
from otterlm.training.data.tokens import Limits, dialogue_tokens, prompt_tokens

Characters = tuple[tuple[int, int], ...]
"""Of each token, the characters `[start, end)` that it stands for; `(0, 0)`: none."""


@dataclass(frozen=True, slots=True)
class LabelledExample:
    """An example is a row as tokens.

    Attributes:
        example: what is packed; of a prompt alone, the prompt is its branch.
        row: what it was made of.
        characters: of the tokens of the branch, in the row's response; None where passages were not marked.
    """

    example: Example
    row: LabelledRow
    characters: Characters | None = None


def tokenize_labelled(
    rows: Iterable[LabelledRow], tokenizer: PreTrainedTokenizerBase, limits: Limits
) -> list[LabelledExample]:
    """Turns rows into examples, all of them.

    Raises:
        OtterError: a row has no tokens or cannot be encoded, or passages are marked and the tokenizer does not say
            which characters its tokens stand for; the row is named.
    """
    return list(iterate_labelled(rows, tokenizer, limits))


def iterate_labelled(
    rows: Iterable[LabelledRow], tokenizer: PreTrainedTokenizerBase, limits: Limits
) -> Iterator[LabelledExample]:
    """Turns rows into examples one by one, see `tokenize_labelled`."""
    for index, row in enumerate(rows):
        yield _tokenize_row(index, row, tokenizer, limits)


def _tokenize_row(index: int, row: LabelledRow, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> LabelledExample:
    if not row.text.response:
        prompt = prompt_tokens(row.text.prompt, tokenizer, row.where)[-limits.prompt :]
        if not prompt:
            raise OtterError(f"{row.where}: the prompt has no tokens")
        return LabelledExample(Example(index, (), (tuple(prompt),)), row)
    before, response = dialogue_tokens(row.text, tokenizer, limits, row.where, ended=False)
    if not response:
        raise OtterError(f"{row.where}: the text has no tokens")
    example = Example(index, tuple(before), (tuple(response),))
    if row.spans is None:
        return LabelledExample(example, row)
    return LabelledExample(example, row, token_characters(row.text.response, response, tokenizer, row.where))


def token_characters(
    text: str, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase, where: str = "the text"
) -> Characters:
    """Finds the characters that the tokens of a text stand for.

    Args:
        text: what was encoded, perhaps without its end, or after white space that is not in it.
        tokens: the first of its tokens.
        tokenizer: a fast one, which knows.
        where: what to name in an error.

    Raises:
        OtterError: the tokenizer is a slow one, or the tokens are not of this text.
    """
    if not tokenizer.is_fast:
        raise OtterError(f"{where}: marked passages need a fast tokenizer, which knows the characters of its tokens")
    wanted = list(tokens)
    # As chat templates have it: right behind a line feed or a space.
    for before in ("", "\n", " "):
        encoded = tokenizer(
            before + text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        for skipped in range(len(before) + 1):
            if ids[skipped : skipped + len(wanted)] == wanted:
                inside = offsets[skipped : skipped + len(wanted)]
                return tuple((max(0, start - len(before)), max(0, end - len(before))) for start, end in inside)
    raise OtterError(f"{where}: its tokens could not be matched with its characters")
