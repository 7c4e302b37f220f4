"""The second stage of a reward: values of the base's own responses.

A reward of preference pairs says how good a text is so far. What steers is where the base will take it: the final
reward that is expected if the base goes on (controlled decoding, arXiv 2310.17022; RAD-Q, arXiv 2407.04615). So the
base samples responses, the trained reward rates them whole, and every prefix learns that rating.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.settings import check_settings, setting
from otterlm.signals.reward.objective import RewardTrainingConfig
from otterlm.training.data.conversations import Prompt
from otterlm.training.data.packing import Example
from otterlm.training.recipes.common import Run
from otterlm.training.recipes.reward_fit import learn_reward
from otterlm.training.teachers.own_reward import OwnReward
from otterlm.training.teachers.responses import Sampling, scored_responses


@dataclass(frozen=True, slots=True)
class Values:
    """Says what the second stage learns from, and how.

    Attributes:
        values: whether there is a second stage.
        value_prompts: the first so many prompts of the data.
        value_responses: of the base to each, sampled at temperature 1 from a nucleus of 0.95.
        value_new_tokens: of a response.
        value_epochs: passes over the responses.
        value_learning_rate: the peak.
    """

    values: bool = setting(True, "Learn the values of the base's own responses in a second stage.")
    value_prompts: int = setting(2000, "Prompts of the data that the base answers in the second stage.", minimum=2)
    value_responses: int = setting(3, "Responses sampled of each of these prompts.", minimum=1)
    value_new_tokens: int = setting(48, "Of such a response.", minimum=1)
    value_epochs: int = setting(2, "Passes over the responses of the second stage.", minimum=1)
    value_learning_rate: float = setting(5e-4, "The peak in the second stage.")

    def __post_init__(self) -> None:
        check_settings(self)
        if not 0 < self.value_learning_rate < math.inf:
            raise OtterError(f"value_learning_rate must be above 0, got {self.value_learning_rate}")

    def sampling(self, max_prompt_tokens: int, seed: int) -> Sampling:
        """Returns how the responses are sampled."""
        return Sampling(self.value_responses, max_prompt_tokens, self.value_new_tokens, top_p=0.95, seed=seed)


def learn_values(
    model: OtterModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    values: Values,
    max_prompt_tokens: int,
    learning: RewardTrainingConfig,
    run: Run,
) -> tuple[list[Example], dict[str, float]]:
    """Trains a reward on the base's own responses, goes on from where it was killed.

    Args:
        model: the base with the adapter whose reward rates the responses.
        tokenizer: the base's.
        prompts: what the base answers.
        values: see there.
        max_prompt_tokens: a longer prompt keeps its end.
        learning: what is learned.
        run: of the first stage; this one has a folder inside.

    Returns:
        The responses with their scores, an example a prompt; and metrics: `value_correlation_P` and others, see
        `learn_reward`.
    """
    stage = replace(
        run,
        out=run.out / "values",
        training=replace(run.training, epochs=values.value_epochs, learning_rate=values.value_learning_rate),
    )
    rate, folder = OwnReward(model), stage.out / "responses"
    sampling = values.sampling(max_prompt_tokens, run.training.seed)
    chosen = prompts[: values.value_prompts]
    with PartialState().main_process_first():
        examples = scored_responses(model.base_model, tokenizer, chosen, rate, rate.identity, sampling, folder)
    held = stage.held_out([example.row for example in examples])
    metrics = learn_reward(model, tokenizer, examples, held, learning, stage)
    return examples, {f"value_{name}": value for name, value in metrics.items()}
