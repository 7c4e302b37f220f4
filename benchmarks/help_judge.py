"""Judges how helpful a response is, by a linear model over its words that learned from people's choices.

    python benchmarks/help_judge.py --data ../shared/data/hh_helpful/pairs.jsonl.gz
    export HELPFUL=PAIRS
    PYTHONPATH=benchmarks python benchmarks/steering_pairs.py runs/steering --judge helpful=help_judge:helpful

The first command prints how many held-out pairs it ranks right. It learns from both responses cut to the words of the
shorter one, so it does not know length. It reads the words of the response, and how many of the question's come
again. It needs scikit-learn, of the extra `bench`.
"""

import argparse
import json
import os
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy

from otterlm.cli.scripts import run_script
from otterlm.training.data.rows import PairRow, Row, hold_out, read_rows

WORD = re.compile(r"[a-z']{3,}")


class HelpJudge:
    """Rates responses by a weight for each word and pair of words, and one for the question's words.

    Args:
        rows: pairs to learn from.
    """

    def __init__(self, rows: Sequence[PairRow]) -> None:
        from scipy.sparse import vstack
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        questions, chosen, rejected = texts_of(rows, cut=True)
        self._words = TfidfVectorizer(ngram_range=(1, 2), min_df=5, sublinear_tf=True).fit(chosen + rejected)
        more = self._read(questions, chosen) - self._read(questions, rejected)
        labels = numpy.repeat([1, 0], len(chosen))
        model = LogisticRegression(C=0.1, fit_intercept=False, max_iter=1000).fit(vstack((more, -more)), labels)
        self._weights = model.coef_[0]

    def __call__(self, questions: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Returns one number a response; differences count, and only between responses to one question."""
        return (self._read(questions, responses) @ self._weights).tolist()

    def _read(self, questions: Sequence[str], responses: Sequence[str]) -> Any:
        """Returns the features, `[N, words + 1]`, sparse."""
        from scipy.sparse import csr_matrix, hstack

        again = [[on_topic(*each)] for each in zip(questions, responses, strict=True)]
        return hstack((self._words.transform(responses), csr_matrix(again))).tocsr()


def on_topic(question: str, response: str) -> float:
    """Returns the share of the question's words that the response says again, by their first five letters."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    before, after = (
        {word[:5] for word in WORD.findall(text.lower()) if word not in ENGLISH_STOP_WORDS}
        for text in (question, response)
    )
    return len(before & after) / len(before) if before else 0.0


def texts_of(rows: Sequence[PairRow], cut: bool) -> tuple[list[str], list[str], list[str]]:
    """Returns the last questions, the chosen and the rejected responses, perhaps cut to the shorter one's words."""
    questions: list[str] = []
    chosen: list[str] = []
    rejected: list[str] = []
    for row in rows:
        sides = row.chosen.response.split(), row.rejected.response.split()
        length = min(map(len, sides)) if cut else max(map(len, sides))
        questions.append(row.chosen.prompt[-1][1] if row.chosen.prompt else "")
        for side, words in zip((chosen, rejected), sides, strict=True):
            side.append(" ".join(words[:length]))
    return questions, chosen, rejected


@cache
def judge(path: str) -> HelpJudge:
    """Makes the judge that learned from all pairs of a file."""
    return HelpJudge(pairs_of(read_rows(path)))


def pairs_of(rows: Sequence[Row]) -> list[PairRow]:
    """Returns those that are pairs."""
    return [row for row in rows if isinstance(row, PairRow)]


def helpful(questions: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Rates responses by a judge that learned from the pairs in $HELPFUL."""
    return judge(os.environ["HELPFUL"])(questions, responses)


def topical(questions: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Rates responses by the share of the question's words that they say again."""
    return [on_topic(*each) for each in zip(questions, responses, strict=True)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="pairs; the fifth that seed 0 holds out is judged")
    rows = pairs_of(read_rows(parser.parse_args(argv).data))
    held = hold_out(rows, 0.2, 0)
    learned = HelpJudge([row for number, row in enumerate(rows) if number not in held])
    for cut in (False, True):
        questions, chosen, rejected = texts_of([rows[number] for number in sorted(held)], cut)
        for name, rate in (("helpful", learned), ("topical", topical)):
            more = numpy.array(rate(questions, chosen)) - numpy.array(rate(questions, rejected))
            accuracy = float(((more > 0) + (more == 0) / 2).mean())
            print(json.dumps({"judge": name, "cut": cut, "pairs": len(more), "accuracy": round(accuracy, 4)}))


if __name__ == "__main__":
    run_script(main)
