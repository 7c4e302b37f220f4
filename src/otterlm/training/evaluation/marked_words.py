"""Lists the words that stood inside the marked passages of training data.

Such a list alone, marked by the same rule, is as good as the guard alone (F1 of characters on SemEval-2021 Task 5:
0.647 and 0.640). They know different things: mixed they have 0.666.
"""

from collections import Counter
from collections.abc import Iterable

from otterlm.signals.guard.config import GuardConfig, MarkedWords
from otterlm.training.data.labelled_tokens import LabelledExample
from otterlm.training.data.targets import span_labels
from otterlm.training.evaluation.passages import characters_in, words_of

LEAST_TIMES, LEAST_SHARE = 2, 0.2
"""A listed word stood inside passages so often at least, and in such a share of its places; chosen on texts held
out."""
MORE = 2
"""So many places outside passages are counted to each word, so that rare words are trusted less."""


def marked_words(examples: Iterable[LabelledExample], config: GuardConfig) -> tuple[MarkedWords, ...]:
    """Lists the words of each label whose passages are marked.

    Args:
        examples: what the guard learns from; those without marked passages are passed over.
        config: the guard's.

    Returns:
        A list for each label of `GuardConfig.spans`, the words in the order of the alphabet; none of a label without
        such words.
    """
    totals: Counter[str] = Counter()
    inside = {label: Counter[str]() for label in config.spans}
    for each in examples:
        if each.characters is None or each.row.spans is None:
            continue
        text, named = each.row.text.response, span_labels(each.row, config)
        words = words_of(text)
        totals.update(text[start:end].lower() for start, end in words)
        for label, counts in inside.items():
            marked = characters_in([(span.start, span.end) for span, name in named if name == label])
            counts.update(text[start:end].lower() for start, end in words if marked.issuperset(range(start, end)))
    lists = []
    for label, counts in inside.items():
        shares = {word: count / (totals[word] + MORE) for word, count in sorted(counts.items()) if count >= LEAST_TIMES}
        shares = {word: round(share, 3) for word, share in shares.items() if share >= LEAST_SHARE}
        lists += [MarkedWords(label, shares)] if shares else []
    return tuple(lists)
