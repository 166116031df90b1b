"""Two processes (gloo, started by torchrun) do what one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("processes.py")


def run(what, folder, num_processes, steps):
    folder.mkdir(exist_ok=True)
    launcher = [] if num_processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(SCRIPT), what, str(folder), str(num_processes), str(steps)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(folder / "result.pt", weights_only=False)


@pytest.mark.parametrize("what", ["sft", "rl"])
def test_two_processes_equal_one_and_resume_exactly(what, tmp_path):
    one = run(what, tmp_path / "one", 1, 3)
    two = run(what, tmp_path / "two", 2, 3)
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, atol=2e-5, rtol=0, msg=lambda t, name=name: name + t)
    for a, b in zip(one["log"], two["log"], strict=True):
        numbers = {k: v for k, v in a.items() if k.endswith("_s") is False and k != "seconds"}
        assert {k: b[k] for k in numbers} == pytest.approx(numbers, abs=1e-5)
    run(what, tmp_path / "parts", 2, 1)  # for rl: in the middle of a window
    parts = run(what, tmp_path / "parts", 2, 3)
    assert parts["log"][0]["step"] == 1
    if what == "rl":  # its learning rate is constant: a shorter plan is a part of the longer one
        for name, value in two["weights"].items():
            assert torch.equal(parts["weights"][name], value), name
