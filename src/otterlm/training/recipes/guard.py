"""`otter train guard` turns labelled texts into a guard adapter."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.checks import check_rate
from otterlm.config import OtterConfig
from otterlm.model import OtterModel
from otterlm.settings import check_settings, setting
from otterlm.signals.guard.config import GuardConfig
from otterlm.signals.guard.objective import GuardObjective, GuardTrainingConfig
from otterlm.training.data.label_sets import label_set
from otterlm.training.data.labelled import LabelledRow, iterate_labelled_rows
from otterlm.training.data.labelled_tokens import LabelledExample, iterate_labelled
from otterlm.training.data.labels import LabelNames
from otterlm.training.data.packing import Example
from otterlm.training.data.records import source_name
from otterlm.training.data.rows import hold_out
from otterlm.training.data.stored_examples import on_disk
from otterlm.training.data.stored_items import StoredItems
from otterlm.training.data.targets import Targets, TargetsOf
from otterlm.training.data.tokens import Limits
from otterlm.training.evaluation.guard_calibration import calibrate_guard, check_labels
from otterlm.training.evaluation.guard_metrics import held_out_metrics
from otterlm.training.evaluation.guard_reading import read_guard
from otterlm.training.evaluation.marked_words import marked_words
from otterlm.training.recipes.common import Run
from otterlm.training.recipes.reward_fit import EXPLAINED, at_most, fit_heads
from otterlm.training.sources import LiveBase

POSITIONS = 60_000
"""The steering heads are fitted to at most so many tokens; each costs the base about three."""


@dataclass(frozen=True, slots=True)
class GuardRecipe:
    """Trains a guard: the probabilities of labels beside every token.

    Example:
        otter train guard --base BASE --data labelled.csv --out DIR

    Attributes:
        data: see `otterlm.training.data.labelled.read_labelled_rows`.
        eval_data: rows to evaluate and to calibrate on; without it, a part of `data` is held out.
        false_alarm_rate: see `otterlm.training.evaluation.guard_calibration.calibrate_guard`.
        names: which columns are read, and what the labels mean.
        learning: what is learned.
        limits: tokens of a prompt and of a response.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "epochs": 2,
        "batch_size": 16,
        "evaluations_per_epoch": 4,
        "patience": 6,
    }

    data: str = setting(help="Labelled texts (text or prompt and response; label, labels or spans): file or dataset.")
    eval_data: str | None = setting(None, "Rows to evaluate and calibrate on; else a part of --data.")
    false_alarm_rate: float = setting(
        0.05, "Share of texts without a label in which its alarm may ring.", check=check_rate
    )
    names: LabelNames = setting(LabelNames(), advanced=True)
    learning: GuardTrainingConfig = setting(GuardTrainingConfig(), advanced=True)
    limits: Limits = setting(Limits(), advanced=True)

    def __post_init__(self) -> None:
        check_settings(self)

    def read(self) -> tuple[StoredItems[LabelledRow], int]:
        """Returns all rows, on the disk, and how many of them, the last ones, are those to evaluate on. Errors as for
        `read_labelled_rows`."""
        counts: list[int] = []
        rows = StoredItems(self._rows(counts))
        return rows, sum(counts[1:])

    def _rows(self, counts: list[int]) -> Iterator[LabelledRow]:
        """Yields the rows of the data, and appends how many each source has."""
        for source in (self.data, self.eval_data):
            if source is None:
                continue
            counts.append(0)
            for row in iterate_labelled_rows(source, self.names):
                counts[-1] += 1
                yield row

    def train(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: tuple[Sequence[LabelledRow], int],
        config: OtterConfig,
        run: Run,
    ) -> dict[str, float]:
        """Trains a guard with the labels of the data, see `otterlm.training.recipes.base.Recipe`."""
        rows, more = data
        shape = config.signal
        assert isinstance(shape, GuardConfig)
        signal = replace(shape, **label_set(rows), calibrations=(), marked_words=())
        config = replace(config, signal=signal)
        run = run.begin(base, config, GuardObjective)
        held = set(range(len(rows) - more, len(rows)))
        if not more:
            held = hold_out(rows, run.eval_fraction, run.training.seed)
        check_labels((row for index, row in enumerate(rows) if index not in held), signal, "to train on")
        check_labels((row for index, row in enumerate(rows) if index in held), signal)
        examples = StoredItems(iterate_labelled(rows, tokenizer, self.limits))
        settings = {f"max_{name}_tokens": value for name, value in asdict(self.limits).items()}
        settings |= {"data": source_name(self.data), "false_alarm_rate": self.false_alarm_rate}
        sources = self.data, self.eval_data
        return fit_guard(base, tokenizer, examples, held, config, self.learning, run, settings, sources=sources)


def fit_guard(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[LabelledExample],
    held: set[int],
    config: OtterConfig,
    learning: GuardTrainingConfig,
    run: Run,
    settings: dict[str, Any],
    targets: Mapping[int, Targets] | None = None,
    sources: Sequence[object] = (),
) -> dict[str, float]:
    """Trains a guard on labelled texts, calibrates it on those held out, and saves it into `run.out`.

    Args:
        base, tokenizer, config, run: see `otterlm.training.recipes.base.Recipe`; the signal has the labels.
        examples: what to learn from and to evaluate on.
        held: rows of the latter.
        learning: what is learned.
        settings: what else the card lists, with `data`, what the examples are called, and `false_alarm_rate`.
        targets: of every example, by its row; None: those of its labels and passages.
        sources: of the data, see `Run.save`.

    Returns:
        The metrics of the saved weights on the held-out rows, see `held_out_metrics`; `vocabulary_explained` as for a
        reward, a mean over the labels.
    """
    train_examples, eval_examples = run.split(on_disk(each.example for each in examples), base, held)
    model = run.model(base, config).train()
    signal = config.signal
    assert isinstance(signal, GuardConfig)
    taught = TargetsOf(examples, signal) if targets is None else targets
    objective = GuardObjective(model, LiveBase(model), learning, taught)
    run.prepare(objective, train_examples, eval_examples)
    metrics = run.train(objective, train_examples, eval_examples, tokenizer)
    model.eval()
    source = settings["data"]
    run.save(model, "A guard", f"Trained on `{source}`; its thresholds are not chosen yet.", metrics, settings, sources)
    metrics |= learn_to_steer(model, train_examples, learning, run.training.seed, run.training.batch_size)
    held_out = [each for each in examples if each.example.row in held]
    learned = (each for each in examples if each.example.row not in held)
    signal = replace(signal, marked_words=marked_words(learned, signal))
    model.adapter().config = replace(config, signal=signal)
    readings = read_guard(model, held_out, run.training.batch_size)
    calibrations = calibrate_guard(readings, settings["false_alarm_rate"])
    signal = replace(signal, calibrations=calibrations)
    model.adapter().config = replace(config, signal=signal)
    metrics = metrics | held_out_metrics([replace(each, config=signal) for each in readings])
    labels = ", ".join(signal.offences)
    data_used = (
        f"Labels: {labels}. Trained on {len(train_examples)} rows of `{settings['data']}`, {len(eval_examples)} held "
        "out. Thresholds were chosen on the rows held out, too."
    )
    run.save(model, "A guard", data_used, metrics, asdict(learning) | settings, sources)
    return metrics


def learn_to_steer(
    model: OtterModel, examples: Sequence[Example], learning: GuardTrainingConfig, seed: int, batch_size: int = 8
) -> dict[str, float]:
    """Fits the vocabulary head of each label, as that of a reward is fitted.

    Args:
        model: the base with the trained guard.
        examples: the heads are fitted to positions of these.
        learning: how many candidates and positions.
        seed: of the positions.
        batch_size: examples a pass.

    Returns:
        `vocabulary_explained`, see `fit_vocabulary`, a mean over the labels; nothing where `fit_heads` fits none.
    """
    heads: Any = model.adapter().head.vocabulary
    some = at_most(examples, POSITIONS, seed)
    fits = fit_heads(model, heads, some, learning.candidates, learning.positions, seed, batch_size)
    return {EXPLAINED: sum(explained for explained, _ in fits) / len(fits)} if fits else {}
