"""Two processes (gloo, started by torchrun) do what one does."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("processes.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What processes.py trains: here, and on two processes."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""}
    two = subprocess.Popen(
        [*command, str(SCRIPT), str(folder), "2"], env=environment, stderr=subprocess.PIPE, text=True
    )
    spec = importlib.util.spec_from_file_location("processes", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    one = script.run_all(tmp_path_factory.mktemp("one"), 1)
    _, errors = two.communicate(timeout=180)
    assert two.returncode == 0, errors[-4000:]
    return one, torch.load(folder / "results.pt", weights_only=True)


@pytest.mark.parametrize("what", ["sft", "rl"])
def test_two_processes_equal_one(results, what):
    one, two = (result[what] for result in results)
    gaps = torch.cat([(two["weights"][name] - value).abs().flatten() for name, value in one["weights"].items()])
    # Adam moves a weight by up to lr = 0.01 a step whatever the size of its gradient, so where that is rounding error
    # (here 1 weight in 10,000) the two may part a little; a row too many or a wrong scale would move all of them.
    assert gaps.max() < 1e-3
    assert (gaps < 2e-5).float().mean() > 0.999
    assert one["world_size"] == 1
    assert two["world_size"] == 2
    for a, b in zip(one["log"], two["log"], strict=True):
        numbers = {k: v for k, v in a.items() if not k.endswith("_s") and k != "seconds"}
        assert {k: b[k] for k in numbers} == pytest.approx(numbers, rel=1e-5, abs=1e-5)


def test_the_entropy_coefficients_follow_the_entropies_of_all_processes(results):
    """Every one moved, by more than the tolerance of the comparison above, and each gate was open for some."""
    for log in (result["rl"]["log"] for result in results):
        for name in ("think", "all_mode_token"):
            first, second, third = (line[f"entropy_coef/{name}"] for line in log)
            assert first == 0.05
            assert min(abs(second - first), abs(third - second)) > 1e-4
            assert any(0 < line[f"entropy_gate/{name}"] < 1 for line in log)


def test_two_processes_resume_exactly_in_the_middle_of_a_window(results):
    _, two = results
    assert two["resumed"]["log"][-1]["entropy_coef/think"] == two["rl"]["log"][-1]["entropy_coef/think"]
    assert [line["step"] for line in two["resumed"]["log"]] == [1, 2, 3]
    for name, value in two["rl"]["weights"].items():
        assert torch.equal(two["resumed"]["weights"][name], value), name
