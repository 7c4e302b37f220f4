"""`otter distill` puts any scorer into the model, without labelled data. The two never need to run together again."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.settings import check_settings, setting
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig
from otterlm.training.data.conversations import Prompt
from otterlm.training.data.prompts import HELP as PROMPTS_HELP
from otterlm.training.data.prompts import read_prompts
from otterlm.training.data.stored_examples import on_disk
from otterlm.training.processes import this_process
from otterlm.training.recipes.common import Run, on_device
from otterlm.training.recipes.reward_fit import learn_reward, learn_to_steer, measure_spread, save_reward
from otterlm.training.teachers.responses import Sampling, of_texts, scored_responses
from otterlm.training.teachers.scorers import load_scorer


@dataclass(frozen=True, slots=True)
class DistillationRecipe:
    """Trains a reward that predicts what a scorer will say.

    The base samples responses, the scorer rates them, and every prefix learns the score.

    Example:
        otter distill reward --base BASE --scorer hf:MODEL \\
            --prompts prompts.jsonl --out DIR

    Attributes:
        scorer: see `otterlm.training.teachers.scorers.load_scorer`.
        prompts: see `otterlm.training.data.prompts.read_prompts`; a part of them is held out whole.
        limit: only the first prompts; None: all.
        sampling: of the responses; its seed is the run's.
        learning: what is learned.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "epochs": 2,
        "batch_size": 16,
        "evaluations_per_epoch": 4,
        "patience": 6,
    }
    unused: ClassVar[Collection[str]] = ("probe_start", "shard")  # a probe learns pairs

    scorer: str = setting(help="module:name, regex:PATTERN, hf:MODEL or openai:URL#MODEL.")
    prompts: str = setting(help=PROMPTS_HELP)
    limit: int | None = setting(None, "Only the first prompts.", minimum=1)
    sampling: Sampling = setting(Sampling(), advanced=True)
    learning: RewardTrainingConfig = setting(RewardTrainingConfig(), advanced=True)

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
        """Trains the adapter, see `otterlm.training.recipes.base.Recipe`."""
        run.needs_whole_base("the base samples responses")
        base, name = on_device(base), self.scorer
        rate = load_scorer(name)
        run = run.begin(base, config, RewardObjective)
        sampling = replace(self.sampling, seed=run.training.seed)
        with this_process().main_process_first():
            folder = run.out / "responses"
            examples = on_disk(scored_responses(base, tokenizer, data, of_texts(rate), rate.identity, sampling, folder))
        if len({score for example in examples for score in example.scores}) == 1:
            raise OtterError(f"the scorer {name} gives every response the same score: there is nothing to learn")
        held = run.held_out(range(len(data)))
        model = run.model(base, config)
        train_examples, held_out = run.split(examples, base, held)
        metrics = learn_reward(model, tokenizer, train_examples, held_out, self.learning, run)
        measure_spread(model, examples)
        settings = {"scorer": name} | asdict(sampling) | asdict(self.learning)
        title = f"the base's own responses to {len(data)} prompts, scored by {name}"
        counts = (len(train_examples), len(held))
        save_reward(model, run, title, counts, metrics, settings, (self.prompts,))
        metrics |= learn_to_steer(model, train_examples, self.learning, run.training.seed, run.training.batch_size)
        save_reward(model, run, title, counts, metrics, settings, (self.prompts,))
        return metrics
