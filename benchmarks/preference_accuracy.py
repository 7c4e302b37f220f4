"""Measures preference accuracy on a held-out fifth of the pairs: Otter, a linear probe, and a separate, fully
fine-tuned reward model.

Every method sees the same training pairs, tokens and seeds. Otter holds out an eighth of its training pairs to stop
early. The other held-out pairs decide nothing. Results are appended to OUT/results.jsonl. The separate model is saved
in OUT/finetune-SEED/model, for `otter bench steering --reward-model`; `--pairs` and `--blocks` make a cheaper one.
"""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from otterlm.bases import load_base, load_tokenizer
from otterlm.cli.options import parse_device
from otterlm.cli.scripts import run_script
from otterlm.config import OtterConfig
from otterlm.model import OtterModel
from otterlm.signals.reward.config import RewardConfig
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig, last_states, start_from_probe
from otterlm.training.data.packing import Example
from otterlm.training.data.rows import hold_out, read_rows
from otterlm.training.data.tokens import Limits, tokenize
from otterlm.training.probe import fit_probe
from otterlm.training.recipes.common import Run, on_device, use_device
from otterlm.training.recipes.values import Values, learn_values, prompts_of
from otterlm.training.sources import LiveBase, RecordedBase, Source
from otterlm.training.teachers.reward_model import SeparateRewardModel
from otterlm.training.trainer import TrainingConfig, evaluate, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=["probe", "otter", "finetune"])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--label", default="otter")
    parser.add_argument("--compare", default="prefixes")
    parser.add_argument("--no-probe-start", action="store_true")
    parser.add_argument("--pairs", type=int, help="the separate model learns from so many pairs; all by default")
    parser.add_argument("--blocks", type=int, help="the separate model learns so many blocks, the last; all by default")
    parser.add_argument("--values", action="store_true", help="the second stage, too: the adapter that is shipped")
    parser.add_argument("--value-prompts", type=int, default=1000, help="of the second stage")
    parser.add_argument("--limits", type=int, nargs=2, default=[96, 64], help="tokens of a prompt and of a response")
    parser.add_argument("--device", help="where to train, such as cuda; a GPU runs the base again, without a recording")
    arguments = parser.parse_args()

    if arguments.device is not None:
        use_device(parse_device(arguments.device))
    tokenizer, base = load_tokenizer(arguments.base), on_device(load_base(arguments.base))
    rows, limits = read_rows(arguments.data), Limits(*arguments.limits)
    examples, records = tokenize(rows, tokenizer, limits), base.device.type == "cpu"
    arguments.out.mkdir(parents=True, exist_ok=True)

    def model() -> OtterModel:
        layers = tuple(range(11, 30, 2))
        return OtterModel(base, OtterConfig(layers=layers, signal=RewardConfig())).train()

    @functools.cache
    def source() -> Source:
        return RecordedBase(model(), examples, arguments.out / "recording") if records else LiveBase(model())

    for seed in arguments.seeds:
        held = hold_out(rows, 0.2, seed)
        rest = [example for example in examples if example.row not in held]
        test = [example for example in examples if example.row in held]
        for method in arguments.methods:
            if method == "finetune":
                separate, out = SeparateRewardModel.of(base), arguments.out / f"finetune-{seed}"
                result, label = finetune(separate, rest, test, seed, out, arguments.pairs, arguments.blocks), method
                separate.save_pretrained(out / "model")
                tokenizer.save_pretrained(out / "model")
            elif method == "probe":
                objective = RewardObjective(model(), source(), RewardTrainingConfig())
                weight = fit_probe(*last_states(objective, rest))
                chosen, rejected = last_states(objective, test)
                result = {"accuracy": ((chosen - rejected) @ weight > 0).float().mean().item()}
                label = method
            else:
                adapter = model()
                result, label = otter(adapter, source(), rest, test, seed, arguments), arguments.label
                if arguments.values:
                    print(json.dumps({"method": label, "stage": "first", "seed": seed, **result}), flush=True)
                    values = Values(value_prompts=arguments.value_prompts)
                    run = Run(arguments.out / f"{label}-{seed}", TrainingConfig(seed=seed), record=records)
                    learning = RewardTrainingConfig()
                    folder, prompts = run.out / "adapter", prompts_of(rows, held, values.value_prompts)
                    save = saver(adapter, folder)
                    result |= learn_values(
                        adapter, tokenizer, prompts, None, values, limits.prompt, learning, run, save
                    )
                    result |= evaluate(RewardObjective(adapter, source(), learning).eval(), test, 16, Accelerator())
                    save({})
            line = {"method": label, "seed": seed, "n": len(test), **result}
            print(json.dumps(line), flush=True)
            with (arguments.out / "results.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")


def saver(model: OtterModel, folder: Path) -> Callable[[dict[str, float]], None]:
    """Returns what saves an adapter, whatever its metrics are."""
    return lambda _: model.save_pretrained(folder, dtype=torch.bfloat16)


def finetune(
    model: SeparateRewardModel,
    rest: list[Example],
    test: list[Example],
    seed: int,
    out: Path,
    pairs: int | None,
    blocks: int | None,
) -> dict[str, float]:
    """Trains a separate reward model for one epoch, on all pairs or some, and all its blocks or the last ones."""
    torch.manual_seed(seed)
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed)).tolist()
    decoder = model.classifier.base_model
    if blocks is not None:
        decoder.requires_grad_(False)
        decoder.layers[-blocks:].requires_grad_(True)
    rate = 2e-5 if blocks is None else 5e-5
    config = TrainingConfig(batch_size=8, learning_rate=rate, evaluations_per_epoch=1, warmup=0.1, seed=seed)
    return train(model, [rest[row] for row in order[:pairs]], test, config, out)


def otter(
    model: OtterModel,
    source: Source,
    rest: list[Example],
    test: list[Example],
    seed: int,
    arguments: argparse.Namespace,
) -> dict[str, float]:
    torch.manual_seed(seed)
    reward = RewardTrainingConfig(compare=arguments.compare, probe_start=not arguments.no_probe_start)
    objective = RewardObjective(model, source, reward)
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed)).tolist()
    validation, training = (
        [rest[i] for i in order[: len(rest) // 8]],
        [rest[i] for i in order[len(rest) // 8 :]],
    )
    if reward.probe_start:
        start_from_probe(objective, training)
    config = TrainingConfig(
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        batch_size=16,
        evaluations_per_epoch=4,
        patience=6,
        seed=seed,
    )
    best = train(objective, training, validation, config, arguments.out / f"{arguments.label}-{seed}")
    objective.eval()
    model.save_pretrained(arguments.out / f"{arguments.label}-{seed}" / "adapter", dtype=torch.bfloat16)
    return evaluate(objective, test, 16, Accelerator()) | {"validation": best["accuracy"], "step": best["step"]}


if __name__ == "__main__":
    run_script(main)
