"""Runs a tiny preference task; as a script, for other processes: training_runs.py FOLDER [--often]
[--slowly] [--shard]."""

import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from conftest import tiny_base, tiny_config
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from otterlm.model import OtterModel
from otterlm.signals.reward.objective import RewardObjective, RewardTrainingConfig
from otterlm.training.checkpoint import trainable
from otterlm.training.data.packing import Example
from otterlm.training.processes import this_process
from otterlm.training.sharding import shard_base
from otterlm.training.sources import LiveBase
from otterlm.training.trainer import TrainingConfig, train


def preferences(count: int, seed: int = 0) -> list[Example]:
    """Returns pairs in which the better response is made of tokens 10 to 12 and the worse one of 20 to 22."""
    draw = random.Random(seed)

    def text(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(low, high) for _ in range(draw.randint(2, 5)))

    return [Example(row, text(30, 97), (text(10, 13), text(20, 23))) for row in range(count)]


TRAIN, HELD_OUT = preferences(48), preferences(16, seed=1)
SLOW = TrainingConfig(epochs=1, batch_size=8, learning_rate=1e-3)
OFTEN = TrainingConfig(epochs=12, batch_size=8, learning_rate=1e-3, checkpoint_every=1, patience=99)
SHORT = TrainingConfig(epochs=2, batch_size=8, learning_rate=3e-3, evaluations_per_epoch=2, seed=3)


def new_objective(
    compare: Literal["prefixes", "last"] = "prefixes", seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any
) -> RewardObjective:
    """An untrained adapter, always the same; `seed` and `dtype` are the base's."""
    torch.manual_seed(0)
    otter = OtterModel(tiny_base(num_hidden_layers=2, seed=seed, dtype=dtype), tiny_config(**config))
    return RewardObjective(otter, LiveBase(otter), RewardTrainingConfig(compare=compare, candidates=0))


def sharded_objective() -> RewardObjective:
    """The same with its base split over the processes."""
    whole = new_objective()
    model = shard_base(whole.model)
    return RewardObjective(model, LiveBase(model), whole.config)


def weights(objective: RewardObjective) -> dict[str, Tensor]:
    """Copies of what is trained."""
    return {name: parameter.detach().clone() for name, parameter in trainable(objective).items()}


def run(out: Path, objective: RewardObjective | None = None, config: TrainingConfig = SHORT) -> dict[str, Tensor]:
    """Trains and returns the weights."""
    objective = objective or new_objective()
    train(objective, TRAIN, HELD_OUT, config, out)
    return weights(objective)


def slowly(objective: RewardObjective) -> RewardObjective:
    """Slows the objective down, so that there are moments to kill it in."""
    forward = objective.forward

    def wait(batch):
        time.sleep(0.2)
        return forward(batch)

    objective.forward = wait  # type: ignore[method-assign]
    return objective


def compare_with_whole(out: Path) -> None:
    """Trains with the base whole and with the base split. The last batch gives one process more than the other."""
    split = sharded_objective()
    with torch.no_grad():
        found = {"logits": split.model(torch.arange(3, 20)[None]).logits}
    found["held"] = torch.tensor(sum(p.to_local().numel() for p in split.parameters() if isinstance(p, DTensor)))
    start = weights(split)
    for parts in (1, 2):
        config = replace(SHORT, gradient_accumulation=parts, gradient_checkpointing=parts == 2)
        for name, objective in (("whole", new_objective()), ("split", split)):
            if parts == 2:
                objective.source = LiveBase(objective.model, again=True)
            with torch.no_grad():
                for key, value in trainable(objective).items():
                    value.copy_(start[key])
            train(objective, TRAIN[:45], [*HELD_OUT, *TRAIN[45:46]], config, out / f"{name}-{parts}")
            found |= {f"{name}-{parts}.{key}": value for key, value in weights(objective).items()}
    rank = this_process().process_index
    split.model.save_pretrained(out / f"adapter-{rank}")
    save_file(found | {f"start.{key}": value for key, value in start.items()}, out / f"found-{rank}.safetensors")


if __name__ == "__main__":
    out, options = Path(sys.argv[1]), sys.argv[2:]
    if "--shard" in options:
        compare_with_whole(out)
        sys.exit()
    objective = slowly(new_objective()) if "--slowly" in options else new_objective()
    print("ready", flush=True)
    trained = run(out, objective, OFTEN if "--often" in options else SLOW)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    save_file(trained, out / f"weights-{rank}.safetensors")
