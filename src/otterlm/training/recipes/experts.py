"""`otter train contrast --expert MODEL --anti-expert MODEL`: two models to a contrast adapter, which replaces them."""

from collections.abc import Sequence

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.config import OtterConfig
from otterlm.decoding.checks import check_weight
from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.training.continuations import continue_texts
from otterlm.training.experts import ExpertOpinions, ExpertsObjective
from otterlm.training.recipes.common import Run, on_device
from otterlm.training.sources import LiveBase


def distill_experts(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    expert: PreTrainedModel,
    anti_expert: PreTrainedModel,
    texts: Sequence[str],
    config: OtterConfig,
    max_tokens: int,
    max_new_tokens: int,
    alpha: float,
    run: Run,
) -> dict[str, float]:
    """Continues texts by the base, has the experts read along, trains a contrast adapter to steer as they do, and saves
    it into `run.out`.

    Args:
        base: the frozen model.
        tokenizer: its tokenizer, padding on the left.
        expert, anti_expert: language models with its vocabulary.
        texts: such as will be steered; no labels.
        config: shape of the adapter.
        max_tokens: of a text; a longer one keeps its start.
        max_new_tokens: of its continuation.
        alpha: how far the experts steer.
        run: how and where; the continuations and what the experts say are kept in `run.out`, too.

    Returns:
        The metrics of the saved weights on the texts held out.

    Raises:
        OtterError: alpha is 0 or no number; see `continue_texts`, `ExpertOpinions`, `train` and
            `OtterModel.save_pretrained`.
    """
    if check_weight(alpha) == 0:
        raise OtterError("with alpha 0 the experts do not steer: there is nothing to learn")
    base = on_device(base)
    run.begin(base, config, ExpertsObjective)
    with PartialState().main_process_first():
        path = run.out / "continuations.jsonl"
        examples = continue_texts(base, tokenizer, texts, path, max_tokens, max_new_tokens)
        sides = on_device(expert).eval(), on_device(anti_expert).eval()
        opinions = ExpertOpinions(base, *sides, examples, run.out / "opinions.f32")
    train_examples, eval_examples = run.split(examples, base)
    model = OtterModel(base, config).train()
    objective = ExpertsObjective(model, LiveBase(model), opinions, alpha)
    run.prepare(objective, train_examples, eval_examples)
    metrics = run.train(objective, train_examples, eval_examples, tokenizer)
    data_used = f"Distilled from an expert and an anti-expert on {len(train_examples)} texts and the base's own "
    data_used += f"continuations of them, {len(eval_examples)} held out."
    settings = {"max_tokens": max_tokens, "max_new_tokens": max_new_tokens, "alpha": alpha}
    run.save(model, "A contrast", data_used, metrics, settings)
    return metrics
