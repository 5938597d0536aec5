"""Two processes that average their gradients make the updates of one process that sees both batches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parallel_run import SCHEDULE, STEPS
from safetensors.torch import load_file
from tiny_training import Sines

from subjectgen.train.checkpoint import NAME
from subjectgen.train.loop import Budget, run

HERE = Path(__file__).parent


class BothBatches(Sines):
    """The loss over the batches that two processes have at a step."""

    def loss(self, step):
        (first, figures), (second, _) = super().loss(2 * step), super().loss(2 * step + 1)
        return (first + second) / 2, figures


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    run(BothBatches(), tmp_path / "one", Budget(steps=STEPS), SCHEDULE)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*launch, str(HERE / "parallel_run.py"), str(tmp_path / "two")], check=True, env=environment, timeout=240
    )
    one, two = (load_file(tmp_path / name / "sines" / NAME) for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
