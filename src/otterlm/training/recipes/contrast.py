"""`otter train contrast`: a wanted and an unwanted corpus to a contrast adapter."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.config import OtterConfig
from otterlm.model import OtterModel
from otterlm.training.contrast import ContrastObjective
from otterlm.training.corpora import tokenize_corpora
from otterlm.training.recipes.common import Run, on_device
from otterlm.training.sources import LiveBase


def train_contrast(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    positive: Sequence[str],
    negative: Sequence[str],
    config: OtterConfig,
    max_tokens: int,
    run: Run,
) -> dict[str, float]:
    """Trains a contrast adapter and saves it into `run.out`.

    Args:
        base: the frozen model.
        tokenizer: its tokenizer.
        positive, negative: texts of the expert and of the anti-expert.
        config: shape of the adapter.
        max_tokens: of a text.
        run: how and where.

    Returns:
        The metrics of the saved weights on the texts held out.

    Raises:
        OtterError: see `tokenize_corpora`, `train` and `OtterModel.save_pretrained`.
    """
    run.begin(base, config, ContrastObjective)
    examples = tokenize_corpora(positive, negative, tokenizer, max_tokens)
    train_examples, eval_examples = run.split(examples, base)
    model = OtterModel(on_device(base), config).train()
    objective = ContrastObjective(model, LiveBase(model))
    run.prepare(objective, train_examples, eval_examples)
    metrics = run.train(objective, train_examples, eval_examples, tokenizer)
    data_used = f"Trained on {len(positive)} wanted and {len(negative)} unwanted texts, {len(eval_examples)} held out."
    run.save(model, "A contrast", data_used, metrics, {"max_tokens": max_tokens})
    return metrics
