"""`otter distill guard` puts any scorer's judgement into a guard, without labelled data."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.checks import check_rate
from otterlm.config import OtterConfig
from otterlm.decoding.ends import end_tokens
from otterlm.settings import check_settings, setting
from otterlm.signals.guard.config import GuardConfig
from otterlm.signals.guard.objective import GuardObjective, GuardTrainingConfig
from otterlm.training.data.conversations import Dialogue, Prompt
from otterlm.training.data.labelled import LabelledRow
from otterlm.training.data.labelled_tokens import LabelledExample
from otterlm.training.data.labels import Marks
from otterlm.training.data.packing import Example
from otterlm.training.data.prompts import HELP as PROMPTS_HELP
from otterlm.training.data.prompts import read_prompts
from otterlm.training.data.targets import Targets, targets_of
from otterlm.training.evaluation.guard_calibration import check_labels
from otterlm.training.processes import this_process
from otterlm.training.recipes.common import Run, on_device
from otterlm.training.recipes.guard import fit_guard
from otterlm.training.teachers.responses import Sampling, of_texts, scored_responses
from otterlm.training.teachers.rollouts import PrefixJudge, Rollouts
from otterlm.training.teachers.scorers import load_scorer


@dataclass(frozen=True, slots=True)
class GuardDistillationRecipe:
    """Trains a guard that predicts what a scorer will say.

    The base samples responses, the scorer judges them, and every prefix learns the verdict on the whole response; or,
    with rollouts, what the scorer says of most continuations of the prefix.

    Example:
        otter distill guard --base BASE --scorer hf:MODEL \\
            --prompts prompts.jsonl --out DIR

    Attributes:
        scorer: see `otterlm.training.teachers.scorers.load_scorer`; the higher, the worse.
        prompts: see `otterlm.training.data.prompts.read_prompts`; a part of them is held out whole.
        limit: only the first prompts; None: all.
        offence_from: from this score on a response is an offence.
        label: what the offence is called.
        false_alarm_rate: see `otterlm.training.evaluation.guard_calibration.calibrate_guard`.
        sampling: of the responses; its seed is the run's.
        rollouts: how prefixes are judged.
        learning: what is learned.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "epochs": 2,
        "batch_size": 16,
        "evaluations_per_epoch": 4,
        "patience": 6,
    }
    unused: ClassVar[Collection[str]] = ("span_delay", "span_weight", "shard")  # nobody marks passages

    scorer: str = setting(help="module:name, regex:PATTERN, hf:MODEL or openai:URL#MODEL; the higher, the worse.")
    prompts: str = setting(help=PROMPTS_HELP)
    limit: int | None = setting(None, "Only the first prompts.", minimum=1)
    offence_from: float = setting(0.5, "From this score on a response is an offence.")
    label: str = setting("unsafe", "What the offence is called.")
    false_alarm_rate: float = setting(
        0.05, "Share of harmless responses in which the alarm may ring.", check=check_rate
    )
    sampling: Sampling = setting(Sampling(), advanced=True)
    rollouts: Rollouts = setting(Rollouts(), advanced=True)
    learning: GuardTrainingConfig = setting(GuardTrainingConfig(), advanced=True)

    def __post_init__(self) -> None:
        check_settings(self)

    def read(self) -> list[Prompt]:
        """Returns the prompts. Errors as in `read_prompts`."""
        return read_prompts(self.prompts)[: self.limit]

    def train(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: list[Prompt],
        config: OtterConfig,
        run: Run,
    ) -> dict[str, float]:
        """Distils the scorer, see `otterlm.training.recipes.base.Recipe`."""
        run.needs_whole_base("the base samples responses")
        base, scorer = on_device(base), load_scorer(self.scorer)
        shape = config.signal
        assert isinstance(shape, GuardConfig)
        signal = replace(shape, labels=(self.label,), harmless=(), spans=(), calibrations=(), marked_words=())
        config = replace(config, signal=signal)
        run = run.begin(base, config, GuardObjective)
        sampling, folder = replace(self.sampling, seed=run.training.seed), run.out / "responses"
        shares: Sequence[list[list[float]]] = []
        with this_process().main_process_first():
            responses = scored_responses(base, tokenizer, data, of_texts(scorer), scorer.identity, sampling, folder)
            responses = _without_ends(responses, end_tokens(base.generation_config))
            if self.rollouts.rollouts:
                judge = PrefixJudge(base, tokenizer, scorer, self.offence_from, sampling, self.rollouts)
                shares = judge.judge(data, responses, run.out / "rollouts.jsonl")
        examples = _texts(responses, data, tokenizer, self.label, self.offence_from)
        of_prompt = [example.row for example in responses for _ in example.branches]
        prompts_held = run.held_out(range(len(data)))
        held = {row for row, prompt in enumerate(of_prompt) if prompt in prompts_held}
        for part, use in ((False, "to train on"), (True, "to calibrate on")):
            rows = [each.row for each in examples if (each.example.row in held) == part]
            check_labels(rows, signal, use)
        targets = targets_of(examples, signal)
        if shares:
            flat = [judged for example in shares for judged in example]
            targets = {row: self._judged(targets[row], examples[row].example, flat[row]) for row in targets}
        settings = {"scorer": self.scorer, "offence_from": self.offence_from} | asdict(sampling) | asdict(self.rollouts)
        settings |= {"data": f"responses of the base to {len(data)} prompts, judged by {self.scorer}"}
        settings |= {"false_alarm_rate": self.false_alarm_rate}
        sources = (self.prompts,)
        return fit_guard(base, tokenizer, examples, held, config, self.learning, run, settings, targets, sources)

    def _judged(self, targets: Targets, example: Example, shares: Sequence[float]) -> Targets:
        """Replaces the labels of prefixes by what their rollouts say; of prefixes between them nothing is known."""
        (tokens,) = example.branches
        labels = torch.full_like(targets.labels, torch.nan)
        labels[-1] = targets.labels[-1]
        for length, share in zip(self.rollouts.lengths(len(tokens)), shares, strict=True):
            labels[len(example.prefix) + length - 1] = float(share >= self.rollouts.rollout_share)
        return replace(targets, labels=labels)


def _without_ends(responses: Sequence[Example], ends: Collection[int]) -> list[Example]:
    """Returns responses without their end tokens, as labelled texts are; an empty response keeps it."""
    return [
        replace(each, branches=tuple(row[:-1] if len(row) > 1 and row[-1] in ends else row for row in each.branches))
        for each in responses
    ]


def _texts(
    responses: Sequence[Example],
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    label: str,
    threshold: float,
) -> list[LabelledExample]:
    """Makes a labelled text of every response."""
    texts: list[LabelledExample] = []
    for example in responses:
        for tokens, score in zip(example.branches, example.scores, strict=True):
            text = Dialogue(prompts[example.row], tokenizer.decode(tokens, skip_special_tokens=True))
            marks = Marks((label,) if score >= threshold else ())
            row = LabelledRow(text, marks, where=f"response {len(texts) + 1}")
            texts.append(LabelledExample(Example(len(texts), example.prefix, (tokens,)), row))
    return texts
