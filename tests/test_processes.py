"""Guards training on several processes: the same global batches end with the same weights as on one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import SLOW, new_objective, run, weights


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    # Not accelerate launch: with --cpu it starts one process, whatever --num_processes says, unless there is MPI.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).with_name("training_runs.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    two = tmp_path / "two"
    done = subprocess.run(
        [*launch, str(script), str(two)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
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
