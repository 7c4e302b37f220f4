"""Trains the second stage of a reward: values of the base's responses.

A reward of preference pairs says how good a text is so far. What steers is how the base will continue it: the final
reward that is expected if the base continues (controlled decoding, arXiv 2310.17022; RAD-Q, arXiv 2407.04615). So the
base samples responses, the trained reward rates them whole, and every prefix learns that rating.

Guided text is not what the base samples, and there the values would be guesses. So a second round adds responses of the
guided model, which is what policy iteration does.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from otterlm.decoding import RewardGuidance
from otterlm.errors import OtterError
from otterlm.identity import of_weights
from otterlm.model import OtterModel
from otterlm.settings import check_settings, setting
from otterlm.signals.reward.objective import RewardTrainingConfig
from otterlm.training.data.conversations import Prompt
from otterlm.training.data.packing import Example
from otterlm.training.data.records import source_name
from otterlm.training.data.rows import PairRow, Row
from otterlm.training.processes import this_process
from otterlm.training.recipes.common import Run
from otterlm.training.recipes.reward_fit import EXPLAINED, learn_reward, learn_to_steer, measure_spread
from otterlm.training.teachers.own_reward import OwnReward
from otterlm.training.teachers.ready_responses import Answers, rate_answers, read_answers
from otterlm.training.teachers.responses import Sampling, scored_responses


@dataclass(frozen=True, slots=True)
class Values:
    """Says what the second stage learns from, and how.

    Attributes:
        values: whether there is a second stage.
        value_data: responses of the base that an engine has sampled; see `read_continuations`. None: the base samples
            those of the first round here.
        value_prompts: the first so many prompts of the data.
        value_responses: of the base to each, sampled at temperature 1 from a nucleus of 0.95.
        value_new_tokens: of a response.
        value_batch_size: prompts that are answered at once.
        value_rounds: 1 learns from the base's responses alone; each further one adds those of the model as it guides.
        value_epochs: passes over the responses.
        value_learning_rate: the peak; None: half of the first stage's.
    """

    values: bool = setting(True, "Learn the values of the base's own responses in a second stage.")
    value_data: str | None = setting(
        None,
        "Responses of the base to the prompts that an engine has sampled: file or folder. Else they are sampled here.",
        advanced=True,
    )
    value_prompts: int = setting(
        2000, "Prompts of the data that the base answers in the second stage.", minimum=2, advanced=True
    )
    value_responses: int = setting(3, "Responses sampled of each of these prompts.", minimum=1, advanced=True)
    value_new_tokens: int = setting(48, "Length of such a response, in tokens.", minimum=1, advanced=True)
    value_batch_size: int = setting(
        8, "Prompts answered at once in the second stage; more are faster on a GPU.", minimum=1, advanced=True
    )
    value_rounds: int = setting(
        2, "Rounds; all but the first add responses of the guided model.", minimum=1, advanced=True
    )
    value_epochs: int = setting(2, "Passes over the responses of the second stage.", minimum=1, advanced=True)
    value_learning_rate: float | None = setting(
        None, "Peak of the learning rate in the second stage. By default half of the first one's.", advanced=True
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.value_data is not None and not self.values:
            raise OtterError("value_data is of the second stage: leave it out, or leave out --no-values")
        if self.value_learning_rate is not None and not 0 < self.value_learning_rate < math.inf:
            raise OtterError(f"value_learning_rate must be above 0, got {self.value_learning_rate}")

    def described(self) -> dict[str, Any]:
        """Returns the settings for a card, where a file has no folder before its name."""
        name = None if self.value_data is None else source_name(self.value_data)
        return {key: value for key, value in (asdict(self) | {"value_data": name}).items() if value is not None}

    def sampling(self, max_prompt_tokens: int, seed: int) -> Sampling:
        """Returns how the responses are sampled."""
        return Sampling(
            self.value_responses,
            max_prompt_tokens,
            self.value_new_tokens,
            top_p=0.95,
            batch_size=self.value_batch_size,
            seed=seed,
        )

    def ready(
        self, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int
    ) -> Answers | None:
        """Returns what an engine has answered to the prompts; None without `value_data`.

        Raises:
            OtterError: there are no prompts, or see `read_answers`.
        """
        if self.value_data is None:
            return None
        if len(prompts) < 2:
            raise OtterError("the data has no prompts for a second stage to learn from: leave out value_data")
        return read_answers(self.value_data, prompts, tokenizer, self.sampling(max_prompt_tokens, 0))


def learn_values(
    model: OtterModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    answers: Answers | None,
    values: Values,
    max_prompt_tokens: int,
    learning: RewardTrainingConfig,
    run: Run,
    save: Callable[[dict[str, float]], None],
) -> dict[str, float]:
    """Trains a reward on the base's responses. A killed run resumes.

    Args:
        model: the base with the adapter whose reward rates the responses.
        tokenizer: the base's.
        prompts: the prompts that the base answers.
        answers: its responses of the first round, of `Values.ready`; None: they are sampled here.
        values: the settings of the stage.
        max_prompt_tokens: a longer prompt keeps its end.
        learning: the settings of the objective.
        run: of the first stage; this one has a folder inside.
        save: stores the adapter, called with the metrics so far, when all but its vocabulary head is done.

    Returns:
        Metrics of the last round: `value_correlation_P` and others, see `learn_reward`, and those of `learn_to_steer`.
    """
    peak = values.value_learning_rate or run.training.peak / 2
    how = replace(run.training, epochs=values.value_epochs, learning_rate=peak)
    rate, seed, chosen = OwnReward(model), run.training.seed, prompts[: values.value_prompts]
    held = run.held_out(range(len(chosen)))
    examples: list[Example] = []
    metrics: dict[str, float] = {}
    for number in range(values.value_rounds):
        stage = replace(run, out=run.out / "values" / f"round-{number + 1}", training=how)
        steering = [RewardGuidance(model)] if number else []
        depends = of_weights(model.adapter()) if number else None
        sampling = values.sampling(max_prompt_tokens, seed + number)
        if answers is not None and not number:
            responses = rate_answers(answers, rate, sampling.batch_size)
        else:
            with this_process().main_process_first():
                responses = scored_responses(
                    model, tokenizer, chosen, rate, rate.identity, sampling, stage.out / "responses", steering, depends
                )
        examples += [replace(each, row=each.row + number * len(chosen)) for each in responses]
        held_rows = {example.row for example in examples if example.row % len(chosen) in held}
        fitted, held_out = stage.split(examples, model.base_model, held_rows)
        metrics = learn_reward(model, tokenizer, fitted, held_out, learning, stage)
        if number == 0:
            measure_spread(model, examples)
        if number == values.value_rounds - 1:
            save(_named(metrics))
        metrics |= learn_to_steer(model, fitted, learning, seed, how.batch_size)
    return _named(metrics)


def _named(metrics: dict[str, float]) -> dict[str, float]:
    """Returns metrics with names that say that they are the second stage's."""
    return {f"value_{name}" if name != EXPLAINED else name: value for name, value in metrics.items()}


def prompts_of(rows: Collection[Row], held: set[int], limit: int | None = None) -> list[Prompt]:
    """Returns the prompts of the rows to train on, and their openings, each once: chats begin there.

    Dialogues that open as a held-out one does are not among them.

    Args:
        rows: read twice.
        held: rows held out.
        limit: only the first so many; None: all.
    """
    unseen = {hash(_opening(_prompt(row))) for index, row in enumerate(rows) if index in held}
    used = (prompt for prompt in map(_prompt, rows) if prompt and hash(_opening(prompt)) not in unseen)
    prompts: dict[Prompt, None] = {}
    for prompt in used:
        prompts.setdefault(prompt)
        prompts.setdefault(_opening(prompt))
        if limit is not None and len(prompts) >= limit:
            break
    return list(prompts)[:limit]


def _prompt(row: Row) -> Prompt:
    return (row.chosen if isinstance(row, PairRow) else row.text).prompt or ()


def _opening(prompt: Prompt) -> Prompt:
    """Returns a prompt's turns up to the first one of the user."""
    end = next((number for number, (role, _) in enumerate(prompt, start=1) if role == "user"), len(prompt))
    return prompt[:end]
