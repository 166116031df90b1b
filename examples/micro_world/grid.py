"""Runs, each in its own small file: a killed grid goes on where it stopped, and a partial one can be reported."""

import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from examples.micro_world.arms import ARMS
from examples.micro_world.model import new_model
from examples.micro_world.studies import STUDIES
from examples.micro_world.training import Measured, Point, Sizes, measure, reinforce
from examples.micro_world.world import Split
from transformers import Qwen3ForCausalLM

from tirkit.rollout.loop import stable_seed
from tirkit.store import write_atomic


@dataclass(frozen=True)
class Run:
    """One arm with one of its candidate settings and one seed, which draws the world too.

    `split`: the problems that what came out is measured on.
    """

    study: str
    arm: str
    candidate: str
    seed: int
    split: Split
    sizes: Sizes

    def path(self, out: Path) -> Path:
        """Where its result is."""
        return out / self.study / f"{self.arm}.{self.candidate.replace(' ', '')}.{self.seed}.json"

    def is_complete(self, out: Path) -> bool:
        """Whether it ran to its end."""
        return self.path(out).exists() and json.loads(self.path(out).read_text())["complete"]


def run_all(runs: Sequence[Run], out: Path, jobs: int) -> None:
    """Whatever of `runs` is not complete, `jobs` at a time, one thread each; a single job runs in this process."""
    left = [(run, out) for run in runs if not run.is_complete(out)]
    starts = list({(run.study, run.seed): (run, out) for run, _ in left}.values())
    if jobs == 1:
        torch.set_num_threads(1)
        for run in left:
            execute(*run)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, torch.set_num_threads, (1,)) as pool:
        pool.starmap(make_start, starts, chunksize=1)
        pool.starmap(execute, left, chunksize=1)


def make_start(run: Run, out: Path) -> tuple[Qwen3ForCausalLM, Mapping[str, Measured]]:
    """What all arms of a seed start from, and how it answers: "before", and "unshifted" where it was then shifted.

    Made once, kept beside the results, out of version control.
    """
    study, sizes, path = STUDIES[run.study], run.sizes, out / ".starts" / f"{run.study}.{run.seed}.pt"
    if path.exists():
        model, saved = new_model(run.seed), torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        return model, saved["measured"]
    tasks = study.world(run.seed).tasks(sizes.measured, run.split, run.seed, study.depths)
    model, measured = study.competent(sizes, run.seed), dict[str, Measured]()
    if study.rare is not None:
        measured["unshifted"] = measure(model, tasks, study.ways, run.seed)
        study.shift(model, sizes, run.seed)
    measured["before"] = measure(model, tasks, study.ways, run.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / ".gitignore").write_text("*\n")
    part = path.with_suffix(".part")
    torch.save({"model": model.state_dict(), "measured": measured}, part)
    part.replace(path)
    return model, measured


def execute(run: Run, out: Path) -> None:
    """Start → reinforcement → measurement; the file is there from the first window on, and says when it is complete."""
    began, study, sizes, curve = time.process_time(), STUDIES[run.study], run.sizes, list[Point]()
    world = study.world(run.seed)
    model, measured = make_start(run, out)

    def write(**more: Any) -> None:
        record = {"complete": False, **measured, "curve": curve, **more}
        record |= {"study": run.study, "arm": run.arm, "candidate": run.candidate, "seed": run.seed}
        write_atomic(run.path(out), json.dumps(rounded(record), indent=None) + "\n")

    def on_point(point: Point) -> None:
        curve.append(point)
        write()

    tasks = world.tasks(sizes.steps * sizes.problems, "train", stable_seed("rl", run.seed), study.depths)
    reinforce(model, tasks, ARMS[run.arm].candidates[run.candidate], sizes, run.seed, on_point)
    tasks = world.tasks(sizes.measured, run.split, run.seed, study.depths)
    after = measure(model, tasks, study.ways, run.seed)
    write(complete=True, after=after, split=run.split, cpu_seconds=time.process_time() - began)


def rounded(value: Any) -> Any:
    """The same with every float cut to four decimals."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value
