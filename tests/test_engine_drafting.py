"""What an engine drafts is what pays: by a table of costs, by its own steps, and by how often guesses come true."""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from otterlm.engines.drafting import Drafting, Running
from otterlm.engines.drafting.choice import choose, weigh
from otterlm.engines.drafting.gate import FIRST, MOST, SHARE, Gate
from otterlm.engines.drafting.step_costs import SEEN, StepCosts
from otterlm.engines.drafting.text import Guess, Text
from otterlm.engines.drafting.trust import LIMIT, PRIOR, Trust

VOCABULARY = 50


def table(start: float, slope: float) -> Callable[[int], float]:
    """Returns the seconds of a step: 1 without drafts, and a part for all drafts and for each."""
    return lambda drafts: 1 + (start + slope * drafts if drafts else 0)


@pytest.mark.parametrize(
    ("chances", "cost", "counts"),
    [
        ([[0.5, 0.25]], table(0.0, 0.0), [2]),  # free: all
        ([[0.5, 0.25]], table(0.0, 0.3), [1]),  # the second is worth less than its time
        ([[0.5, 0.25]], table(0.0, 0.6), [0]),
        ([[0.5, 0.25]], table(0.6, 0.0), [2]),  # one alone would not pay
        ([[0.5, 0.25]], table(0.8, 0.0), [0]),
        ([[0.9, 0.8], [0.1], [], [0.5]], table(0.0, 0.1), [2, 0, 0, 1]),  # the likeliest of all requests
        ([[0.4]] * 16, table(0.0, 1 / 16), [0] * 16),
        ([[0.4]] * 16, table(0.0, 1 / 128), [1] * 16),
        ([[0.4]] * 16, table(0.0, 1 / 64), [0] * 16),  # a tenth more tokens: too little to let the others wait
        ([[0.7, 0.7, 0.0], [0.7]], table(0.0, 0.1), [2, 1]),
        ([[], []], table(0.0, 0.0), [0, 0]),
    ],
)
def test_the_choice_has_the_most_expected_tokens_per_second(chances: Any, cost: Any, counts: list[int]) -> None:
    choice = choose(chances, cost)
    assert choice.counts == counts
    tokens = len(chances) + sum(sum(row[:count]) for row, count in zip(chances, counts, strict=True))
    assert choice.rate == pytest.approx(tokens / cost(sum(counts)))


def test_a_request_that_is_ahead_counts_less() -> None:
    assert weigh([7, 7]) == [1.0, 1.0]
    weights = weigh([0, 4, 20])
    assert sum(weights) == pytest.approx(3.0)
    assert weights[1] / weights[0] == pytest.approx(1 / math.e)
    chances, cost = [[0.9, 0.8], [0.9, 0.8]], table(0.0, 0.2)
    assert choose(chances, cost).counts == [2, 2]
    assert choose(chances, cost, weigh([0, 9])).counts == [2, 0]


def test_a_choice_takes_no_draft_before_those_it_follows() -> None:
    choice = choose([[0.3, 0.3, 0.3], [0.5]], lambda drafts: 1 + 0.12 * drafts + (drafts > 3) * 9)
    assert choice.counts == [2, 1]


def test_costs_are_learned_from_steps() -> None:
    costs = StepCosts()
    assert costs.wants_plain(4)
    for _ in range(SEEN):
        assert costs.wants_plain(4)
        costs.learn(4, 0, 2.0)
    assert not costs.wants_plain(4)
    assert costs.of(4)(0) == 2.0
    for index in range(200):
        drafts = 1 + index % 5
        costs.learn(4, drafts, 2.0 * (1 + 0.3 + 0.1 * drafts))
    assert [costs.of(4)(drafts) for drafts in (0, 1, 4)] == pytest.approx([2.0, 2.8, 3.4], rel=0.05)
    assert costs.wants_plain(4)  # it was long ago
    costs.learn(4, 0, 2.0)
    assert not costs.wants_plain(4)
    # Another number of requests knows its share of that at once, but must be timed without drafts.
    assert costs.wants_plain(5)
    costs.learn(5, 0, 2.1)
    costs.learn(5, 0, 2.1)
    assert costs.of(5)(1) > 2.1 * 1.2  # by itself it would say 1.01


def test_costs_follow_the_machine() -> None:
    costs = StepCosts()
    for index in range(100):
        costs.learn(1, index % 3, 1 + 0.2 * (index % 3))
    costs.learn(1, 0, 100.0)  # held up
    assert costs.of(1)(0) < 1.5
    for _ in range(60):
        costs.learn(1, 0, 3.0)  # slower for good: steps with drafts are, too
    assert costs.of(1)(2) == pytest.approx(3 * 1.4, rel=0.2)
    dear = StepCosts()
    for index in range(40):
        dear.learn(1, index % 2, 1.0 + 4 * (index % 2))
    before = dear.of(1)(1)
    for _ in range(1000):
        dear.learn(1, 0, 1.0)
    assert before > 4 > 1.2 > dear.of(1)(1)  # so drafts are tried again


@pytest.mark.parametrize("caution", [1, 5])
def test_a_gate_rests_in_proportion_to_what_was_lost(caution: int) -> None:
    gate = Gate(caution)
    looks = lost = 0.0
    for _ in range(1000):
        if gate.passes():
            looks += 1
            lost += 0.1
            gate.learn(-0.1)
    assert lost == pytest.approx((FIRST + 1000 * SHARE) / caution, abs=0.1)
    for _ in range(10):  # it may be closed now
        gate.passes()
    gate.learn(0.1 + MOST / caution)
    for _ in range(int(MOST / caution / 0.1)):
        assert gate.passes()
        gate.learn(-0.1)


def test_a_gate_stays_open_for_a_gain_that_is_rare() -> None:
    gate, coin = Gate(), random.Random(0)
    looks = 0
    for _ in range(1000):
        if gate.passes():
            looks += 1
            gate.learn(1.0 if coin.random() < 0.2 else -0.15)
    assert looks > 900


def test_trust_learns_what_chances_mean() -> None:
    trust = Trust([0.4, 0.2])
    assert [trust.chance(0, 0.9), trust.typical(1)] == pytest.approx([0.9, 0.2])
    for index in range(200):
        trust.learn(0, 0.91, index % 2 == 0)
    assert trust.chance(0, 0.95) == pytest.approx(0.5, abs=0.05)
    assert trust.chance(0, 0.5) == 0.5  # of another kind
    assert trust.chance(1, 0.95) == 0.95  # of another head
    assert trust.typical(0) == pytest.approx(0.5, abs=0.02)
    for _ in range(3 * LIMIT):
        trust.learn(0, 0.91, True)
    assert trust.chance(0, 0.91) > 0.9


def test_a_text_checks_guesses_until_one_is_wrong() -> None:
    trust, text = Trust([0.5, 0.5, 0.5]), Text()
    text.guess([Guess(7, 0.5, 0.5), Guess(8, 0.5, 0.5), Guess(9, 0.5, 0.5)])
    text.check([7, 1, 9], trust)
    assert [trust.chance(head, 0.5) for head in range(3)] == [
        pytest.approx((PRIOR / 2 + 1) / (PRIOR + 1)),
        pytest.approx((PRIOR / 2) / (PRIOR + 1)),
        0.5,
    ]
    assert text.scale == 1.0  # one of two was right, as expected
    text.check([7, 8], trust)  # the guesses were at the tokens before
    assert text.scale == 1.0
    for _ in range(20):
        text.guess([Guess(7, 0.5, 0.5)])
        text.check([3], trust)
    assert text.scale < 0.4


class Heads:
    """The heads guess so many next tokens of each text with a chance that is true, a coin's for each guess."""

    vocabulary = torch.arange(VOCABULARY)

    def __init__(self, texts: list[list[int]], heads: int, sure: Callable[[], float], coin: random.Random) -> None:
        self.heads = heads
        self.state = torch.arange(len(texts), dtype=torch.float)[:, None, None]
        self.levels = 0
        self._scores = torch.full((len(texts), heads, VOCABULARY), -50.0)
        for row, text in enumerate(texts):
            for head in range(heads):
                chance, right = sure(), text[head] if head < len(text) else 0
                token = right if coin.random() < chance else (right + 1) % VOCABULARY
                self._scores[row, head] = torch.log(torch.tensor((1 - chance) / (VOCABULARY - 1)))
                self._scores[row, head, token] = torch.log(torch.tensor(chance))

    def code(self, head: int, state: torch.Tensor, token: torch.Tensor, previous: Any) -> torch.Tensor:
        return state

    def scores(self, head: int, code: torch.Tensor) -> torch.Tensor:
        self.levels += 1
        return self._scores[code[..., 0].long(), head]


class Engine:
    """The engine simulates steps: each takes what a table says, and accepts what is right.

    Args:
        cost: the seconds of a step, by requests and drafts.
        sure: returns the chance of each of the heads' guesses.
        head: the seconds of a level of guesses.
        repeats: texts repeat themselves after so many tokens.
    """

    def __init__(
        self,
        cost: Callable[[int, int], float],
        sure: Callable[[], float],
        head: float = 0.0,
        repeats: int | None = None,
        most: int = 4,
    ) -> None:
        self.now, self.asked, self.verified = 0.0, 0, 0
        self._cost, self._sure, self._head, self._repeats = cost, sure, head, repeats
        self._coin = random.Random(0)
        self._drafting = Drafting([0.5] * 3, most, clock=lambda: self.now)

    def _text(self) -> list[int]:
        if self._repeats:
            return [self._coin.randrange(VOCABULARY) for _ in range(self._repeats)] * (400 // self._repeats)
        return [self._coin.randrange(VOCABULARY) for _ in range(400)]

    def run(self, rows: int, tokens: int = 100, batches: int = 1, drafted: bool = True) -> float:
        """Returns the tokens per second of batches of requests, over those of an engine without drafts."""
        begun = self.now
        written = sum(self._batch(rows, tokens, f"{begun} {batch}", drafted) for batch in range(batches))
        return (written / (self.now - begun)) / (rows / self._cost(rows, 0))

    def _batch(self, rows: int, tokens: int, name: str, drafted: bool) -> int:
        texts, ends, drafts = [self._text() for _ in range(rows)], [20] * rows, [list[int]() for _ in range(rows)]
        while sum(ends) < rows * (20 + tokens):
            self.now += self._cost(rows, sum(map(len, drafts)))
            running = []
            for row, text in enumerate(texts):
                new = 1
                for draft in drafts[row]:
                    if draft != text[ends[row] + new - 1]:
                        break
                    new += 1
                ends[row] += new
                array = np.array(text[: ends[row]], dtype=np.int32)
                running.append(Running(f"{name} {row}", array, new, len(drafts[row]), drafted))
                self.verified += len(drafts[row])

            def heads() -> Any:
                self.asked += 1
                return Timed(
                    self, Heads([text[end:] for text, end in zip(texts, ends, strict=True)], 3, self._sure, self._coin)
                )

            drafts = self._drafting.propose(running, heads)
        return sum(ends) - 20 * rows


class Timed:
    """Guesses take time."""

    def __init__(self, engine: Engine, heads: Heads) -> None:
        self._engine, self._heads = engine, heads
        self.heads, self.state, self.vocabulary = heads.heads, heads.state, heads.vocabulary

    def code(self, *rest: Any) -> torch.Tensor:
        self._engine.now += self._engine._head
        return self._heads.code(*rest)

    def scores(self, *rest: Any) -> torch.Tensor:
        return self._heads.scores(*rest)


def of_tokens(fixed: float, token: float, start: float = 0.0) -> Callable[[int, int], float]:
    """Returns the seconds of steps on a machine where each token costs something."""
    return lambda rows, drafts: fixed + token * (rows + drafts) + (start if drafts else 0.0)


CPU = of_tokens(14.0, 0.9, 1.0)
"""About the milliseconds of SmolLM2 on two cores."""
DEAR = of_tokens(0.2, 1.0, 0.5)
"""Each token costs almost as much as a step."""


def test_one_sequence_drafts_where_it_pays() -> None:
    engine = Engine(CPU, lambda: 0.7, head=0.5)
    engine.run(1)
    assert engine.run(1, batches=2) > 1.4
    assert engine.verified > 200


def test_sixteen_sequences_draft_nothing_where_tokens_cost_as_much_as_they_bring() -> None:
    engine = Engine(DEAR, lambda: 0.6, head=1.0)
    engine.run(16)
    asked, verified = engine.asked, engine.verified
    assert engine.run(16, batches=3) > 0.99
    assert engine.verified - verified < 16 * 300 // 100
    assert engine.asked - asked < 300 // 10  # the heads are computed now and then
    # The same engine drafts again where it has room.
    engine._cost = of_tokens(20.0, 0.01)
    engine.run(16, batches=5)
    assert engine.run(16) > 1.2


class Unlucky(random.Random):
    """The coin makes every guess wrong, however sure it is. Texts stay random."""

    getrandbits = random.Random.getrandbits

    def random(self) -> float:
        return 1.0


@pytest.mark.parametrize(("rows", "least"), [(1, 0.93), (16, 0.98)])
def test_a_look_is_judged_by_what_came_true(rows: int, least: float) -> None:
    engine = Engine(CPU, lambda: 0.95, head=1.0)
    engine._coin = Unlucky(0)
    assert engine.run(rows) > least - 0.05  # the first batch of an engine
    assert engine.run(rows, batches=3) > least


def test_sixteen_sequences_verify_the_drafts_that_are_sure() -> None:
    coin = random.Random(1)
    engine = Engine(CPU, lambda: coin.choice([0.05, 0.95]), head=0.1)
    engine.run(16)
    verified = engine.verified
    assert engine.run(16) > 1.02
    assert 0.2 < (engine.verified - verified) / (16 * 100) < 0.7


def test_texts_that_repeat_themselves_need_no_heads() -> None:
    engine = Engine(CPU, lambda: 0.05, head=3.0, repeats=30, most=7)
    engine.run(1)
    asked = engine.asked
    assert engine.run(1, batches=2) > 1.6
    assert engine.asked - asked < 60


def test_requests_may_be_left_out() -> None:
    engine = Engine(of_tokens(20.0, 0.0), lambda: 0.9)
    assert engine.run(4, drafted=False) == pytest.approx(1.0)
    assert engine.asked == engine.verified == 0
    engine.run(4)
    assert engine.verified > 100


def test_steps_with_prompts_or_after_a_pause_teach_no_cost() -> None:
    now = 0.0
    drafting = Drafting([0.5], 4, clock=lambda: now)
    text = np.arange(30, dtype=np.int32)

    def propose(length: int, name: str, whole: bool = True) -> list[list[int]]:
        running = [Running(name, text[:length], 1, 0)]
        return drafting.propose(running, lambda: Heads([[1, 2, 3]], 1, lambda: 0.9, random.Random(0)), whole)

    for length in range(10, 14):
        now += 1.0
        assert propose(length, "a", whole=False) == [[]]  # no step was timed
    now += 100.0
    assert propose(10, "b") == [[]]  # it came after a pause
    for length in (11, 12):
        now += 1.0
        drafts = propose(length, "b")
    assert drafts != [[]]
    assert drafting._costs.of(1)(0) == 1.0
