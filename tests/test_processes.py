"""Guards training on several processes: the same global batches end with the same weights as on one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import refused, tiny_base
from safetensors.torch import load_file
from training_runs import SLOW, new_objective, run, sharded_objective, weights

from otterlm.model import OtterModel
from otterlm.training.recipes import Run


def launch(out: Path, *options: str) -> None:
    """Runs `training_runs.py` in two processes."""
    # Not accelerate launch: with --cpu it starts one process, whatever --num_processes says, unless there is MPI.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).with_name("training_runs.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, str(script), str(out), *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    two = tmp_path / "two"
    launch(two)
    one, start = run(tmp_path / "one", config=SLOW), weights(new_objective())
    ranks = [load_file(two / f"weights-{rank}.safetensors") for rank in range(2)]
    assert all(ranks[0][name].equal(ranks[1][name]) for name in one)
    # As a whole: Adam makes whole steps of the rounding noise in gradients that are almost zero.
    moved, apart = (
        torch.cat([(weight - other[name]).flatten() for name, weight in one.items()]).norm()
        for other in (start, ranks[0])
    )
    assert moved > 1e-2
    assert apart < 0.05 * moved


@pytest.mark.slow
def test_a_base_that_is_split_over_two_processes(tmp_path: Path) -> None:
    """Each holds half of the blocks, the logits are the base's, and training ends with the same bits.

    In two parts a step, the parts of the last batch are cut otherwise, so there it ends near them.
    """
    launch(tmp_path, "--shard")
    base = tiny_base(num_hidden_layers=2)
    blocks = sum(parameter.numel() for parameter in base.model.layers.parameters())
    logits = base(torch.arange(3, 20)[None]).logits
    for rank in range(2):
        found = load_file(tmp_path / f"found-{rank}.safetensors")
        assert torch.equal(found["logits"], logits)
        assert int(found["held"]) == blocks // 2

        def of(run: str, found: dict[str, torch.Tensor] = found) -> dict[str, torch.Tensor]:
            return {name.removeprefix(run): value for name, value in found.items() if name.startswith(run)}

        start, split = of("start."), of("split-2.")
        assert len(start) > 10
        whole = of("whole-1.")
        assert all(torch.equal(value, whole[name]) for name, value in of("split-1.").items())
        moved, apart = (
            torch.cat([(weight - other[name]).flatten() for name, weight in split.items()]).norm()
            for other in (start, of("whole-2."))
        )
        assert moved > 1e-2
        assert apart < 0.05 * moved
        adapter = OtterModel.from_pretrained(base, tmp_path / f"adapter-{rank}")
        saved = {f"model.adapters.{name}": value for name, value in adapter.adapters.state_dict().items()}
        assert all(torch.equal(saved[name], value) for name, value in split.items())


def test_one_process_splits_nothing(tmp_path: Path) -> None:
    refused(sharded_objective, "there is one", "torchrun")
    refused(lambda: Run(tmp_path, shard=True, record=True), "--record", "--shard")
    refused(lambda: Run(tmp_path, shard=True).needs_whole_base("the base writes"), "the base writes", "--shard")
