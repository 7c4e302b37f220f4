"""The readability check of `make docs` reads sentences and nothing else."""

import pytest
from readability import ROOT, WIDTH, pages, prose

PAGE = """---
title: front matter
---

# A heading

One fact, at 0.5 of `<code>`
a [sentence](page.md).

| a | table |
|---|---|

- An item
- Another!

```bash
otter --help
```

![a picture](picture.svg)
"""


def test_prose_is_sentences() -> None:
    assert prose(PAGE) == "One fact, at 9 of code a sentence.\nAn item.\nAnother!"


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_lines_fit(page) -> None:
    assert [line for line in page.read_text().splitlines() if len(line) > WIDTH] == []
