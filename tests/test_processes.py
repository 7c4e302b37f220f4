"""Guards training on several processes: the same global batches end with the same weights as on one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import close
from safetensors.torch import load_file
from training_runs import SLOW, new_objective, run, weights


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
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
    for name, weight in one.items():
        close(ranks[0][name], ranks[1][name], 0.0)
        # A preference does not depend on the bias, so what Adam makes of its gradient is rounding noise.
        if not name.endswith("prefix.bias"):
            close(ranks[0][name], weight, 1e-4)
    assert max((weight - start[name]).abs().max() for name, weight in one.items()) > 1e-3
