"""From data to a saved reward adapter: what `otter train reward` does."""

from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from otterlm.bases import check_context
from otterlm.config import OtterConfig
from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.training.packing import Limits, tokenize
from otterlm.training.reward import RewardObjective, RewardTrainingConfig, start_from_probe
from otterlm.training.rows import PairRow, hold_out, read_rows
from otterlm.training.sources import LiveBase, RecordedBase, Source
from otterlm.training.trainer import TrainingConfig, train


def train_reward(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: str,
    out: Path,
    config: OtterConfig,
    reward: RewardTrainingConfig,
    training: TrainingConfig,
    limits: Limits,
    eval_data: str | None = None,
    eval_fraction: float = 0.1,
    record: bool = False,
    save_dtype: torch.dtype = torch.bfloat16,
) -> dict[str, float]:
    """Trains an adapter and saves it into `out`.

    Args:
        base: the frozen model.
        tokenizer: its tokenizer.
        data: pairs or scored texts, see `otterlm.training.rows.read_rows`.
        out: folder for the adapter, the metrics and the checkpoint; a checkpoint found there is gone on with.
        config: shape of the adapter.
        reward: what is learned.
        training: how.
        limits: tokens of a prompt and of a response.
        eval_data: rows to evaluate on; without it, `eval_fraction` of `data` is held out.
        eval_fraction: see there.
        record: keep the base's intermediates on disk (`out/recording`), so that later epochs do not run it.
        save_dtype: of the saved tensors.

    Returns:
        The metrics of the saved weights on the rows to evaluate on.

    Raises:
        OtterError: see `read_rows`, `train` and `OtterModel.save_pretrained`.
    """
    rows = read_rows(data)
    if eval_data is None:
        held = hold_out(rows, eval_fraction, training.seed)
    else:
        held = set(range(len(rows), len(rows) + len(more := read_rows(eval_data))))
        rows = [*rows, *more]
    pairs = {isinstance(row, PairRow) for row in rows}
    if len(pairs) != 1:
        raise OtterError("the data mixes pairs with scored texts: train on one kind at a time")
    examples = tokenize(rows, tokenizer, limits)
    check_context(base.config, max(example.longest for example in examples))
    train_examples = [example for example in examples if example.row not in held]
    eval_examples = [example for example in examples if example.row in held]
    if not train_examples or not eval_examples:
        raise OtterError(f"{len(rows)} rows are too few to train on and hold out a part of")
    base = base.to(PartialState().device)
    model = OtterModel(base, config).train()
    source: Source = LiveBase(model)
    if record:
        with PartialState().main_process_first():
            source = RecordedBase(model, examples, out / "recording")
    objective = RewardObjective(model, source, reward)
    if reward.probe_start and pairs == {True} and not (out / "checkpoint.safetensors").exists():
        start_from_probe(objective, train_examples)
    metrics = train(objective, train_examples, eval_examples, training, out, tokenizer.pad_token_id or 0)
    if PartialState().is_main_process:
        model.save_pretrained(
            out,
            card=_card(base, data, metrics, len(train_examples), len(eval_examples), reward, training, limits),
            dtype=save_dtype,
        )
    return metrics


def _card(
    base: PreTrainedModel,
    data: str,
    metrics: dict[str, float],
    train_rows: int,
    eval_rows: int,
    reward: RewardTrainingConfig,
    training: TrainingConfig,
    limits: Limits,
) -> str:
    measured = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(metrics.items()) if name != "step")
    settings = asdict(training) | asdict(reward) | {f"max_{k}_tokens": v for k, v in asdict(limits).items()}
    used = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
    return (
        f"# A reward for {base.config._name_or_path}\n\n"
        "An Otter adapter: inserted parameters that predict a reward beside every token and leave the logits as they\n"
        "are, bit for bit (arXiv 2408.10764).\n\n"
        f"Trained on {train_rows} rows of `{Path(data).name}`. On {eval_rows} rows held out to decide when to stop:\n\n"
        f"| metric | value |\n|---|---|\n{measured}\n\n"
        f"| setting | value |\n|---|---|\n{used}\n"
    )
