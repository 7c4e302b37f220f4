"""`otter distill`: any scorer into the model. No labelled data; scorer and model never need to run together again."""

from collections.abc import Sequence
from dataclasses import asdict

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.training.recipes.common import Run, on_device
from otterlm.training.recipes.reward import fit_reward
from otterlm.training.responses import Sampling, scored_responses
from otterlm.training.reward import RewardObjective, RewardTrainingConfig
from otterlm.training.rows import Prompt
from otterlm.training.scorers import load_scorer


def distill(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scorer: str,
    prompts: Sequence[Prompt],
    config: OtterConfig,
    reward: RewardTrainingConfig,
    sampling: Sampling,
    run: Run,
) -> dict[str, float]:
    """Samples responses, has them scored, trains a reward to predict the score from every prefix, and saves it.

    Args:
        base: the frozen model.
        tokenizer: its tokenizer, padding on the left.
        scorer: see `otterlm.training.scorers.load_scorer`.
        prompts: as chat turns; a part of them is held out whole.
        config: shape of the adapter.
        reward: what is learned.
        sampling: of the responses.
        run: how and where; the responses are kept in `run.out`, too.

    Returns:
        The metrics of the saved weights on the prompts held out, see `fit_reward`.

    Raises:
        OtterError: see `load_scorer`, `scored_responses` and `fit_reward`.
    """
    base = on_device(base)
    rate = load_scorer(scorer)
    run.begin(base, config, RewardObjective)
    with PartialState().main_process_first():
        folder = run.out / "responses"
        examples = scored_responses(base, tokenizer, prompts, rate, rate.identity, sampling, folder)
    if len({example.score for example in examples}) == 1:
        raise OtterError(f"the scorer {scorer} gives every response the same score: there is nothing to learn")
    held_prompts = run.held_out(range(len(prompts)))
    held = {example.row for example in examples if example.row // sampling.per_prompt in held_prompts}
    settings = {"scorer": scorer} | asdict(sampling)
    data = f"the base's own responses to {len(prompts)} prompts, scored by {scorer}"
    return fit_reward(base, tokenizer, examples, held, config, reward, run, data, settings)
