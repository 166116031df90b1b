"""A config beside its arms: run them all, then one table and one report."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from tirkit.config import ConfigError, RunConfig, arm_names, load_config
from tirkit.evaluation.metrics import summarise
from tirkit.evaluation.run import EvaluationResult
from tirkit.evaluation.tables import differences
from tirkit.evaluation.terminal import arms_table, difference_lines, duration, think_table
from tirkit.pipeline.attempts import results_of
from tirkit.pipeline.branch import shared_stages
from tirkit.pipeline.context import STAGE_ORDER
from tirkit.pipeline.report import report_runs
from tirkit.store import RunFolder, write_atomic
from tirkit.types import UserError

METHOD = "method"
LINES_OF_A_FAILURE = 15


class ArmFailedError(UserError):
    """A run of a comparison ended with an error."""


def compare_arms(
    config: Path, overrides: Sequence[str], arms: Sequence[str], seeds: Sequence[int], out: Path, jobs: int
) -> None:
    """Run every arm with every seed, `jobs` at a time in processes of one thread each, then report them together.

    An arm begins with the stages that it shares with an earlier one. Runs that are complete are not run again. Raises
    `ArmFailedError` naming the log of a run that failed, after the others have ended.
    """
    known = [METHOD, *arm_names(config)]
    chosen = known if list(arms) == ["all"] else list(arms)
    if unknown := [arm for arm in chosen if arm not in known]:
        raise ConfigError(f"{config}: no arm {unknown[0]!r}; it has: {', '.join(known)}")
    if not chosen or not seeds or jobs < 1:
        raise ConfigError("compare needs at least one arm, one seed and one job")
    # A mistake in a config is said before anything runs.
    configs = {arm: load_config(config, overrides, "" if arm == METHOD else arm) for arm in chosen}
    console, started = Console(), time.monotonic()
    runs = [(arm, seed) for seed in seeds for arm in chosen]
    folders = {(arm, seed): out / f"{arm}-{seed}" for arm, seed in runs}
    show = _Show(console, [folder.name for folder in folders.values()])
    sources, codes = arm_sources(configs), dict[tuple[str, int], Future[int]]()

    def run(arm: str, seed: int) -> int:
        source = (sources[arm], seed)
        taken = ("--from", str(folders[source])) if sources[arm] and codes[source].result() == 0 else ()
        named = () if arm == METHOD else ("--arm", arm)
        return _run([str(config), f"seed={seed}", *overrides, *named, *taken], folders[arm, seed], show)

    with ThreadPoolExecutor(jobs) as pool:
        # Those that wait for no other come first, so that no job is held by one that waits.
        for arm, seed in sorted(runs, key=lambda run: sources[run[0]] != ""):
            codes[arm, seed] = pool.submit(run, arm, seed)
    if failed := [folder for run, folder in folders.items() if codes[run].result()]:
        log = _log(failed[0])
        tail = "\n".join(log.read_text().splitlines()[-LINES_OF_A_FAILURE:])
        raise ArmFailedError(f"{len(failed)} of {len(runs)} runs failed; {log} ends with\n{tail}")
    _report(console, list(folders.values()), out)
    console.print(f"{len(runs)} runs in {duration(time.monotonic() - started)}")
    console.print(f"report: {out / 'report' / 'index.html'}", soft_wrap=True)
    next_steps = _next_steps(config, folders[runs[0]])
    console.print("Next:", next_steps, sep="\n", markup=False, highlight=False, soft_wrap=True)


def arm_sources(configs: Mapping[str, RunConfig]) -> dict[str, str]:
    """Arm → the earlier arm it shares most stages with, the first such; "" where it shares only the preparation."""
    sources: dict[str, str] = {}
    for arm, config in configs.items():
        shared = {other: len(shared_stages(configs[other], config)) for other in sources}
        best = max(shared, key=lambda other: shared[other], default="")
        sources[arm] = best if shared.get(best, 0) > 1 else ""
    return sources


def _report(console: Console, folders: Sequence[Path], out: Path) -> None:
    report_runs(folders, out / "report")
    write_atomic(out / "summary.json", summary(folders))
    results = results_of(folders)
    console.print(arms_table([result for result in results if "forced" not in result.stage]))
    for part in (difference_lines(results_of(folders, earlier_too=False)), think_table(results)):
        if part:
            console.print(part, highlight=False, soft_wrap=True)


def _next_steps(config: Path, folder: Path) -> str:
    return (
        f"  tirkit inspect {folder}        look at attempts, token by token\n"
        f"  tirkit plan {config}   what a run takes, before it starts\n"
        f"  tirkit run {config} catalogue.indexing=name --out runs/mine   change a setting, run it yourself"
    )


def _run(arguments: Sequence[str], folder: Path, show: "_Show") -> int:
    """`tirkit run` in a process of its own, its lines shown and logged; the exit code."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tirkit", "run", *arguments, "--out", str(folder)]
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | threads
    )
    assert process.stdout is not None
    with _log(folder).open("a") as file:
        for line in process.stdout:
            file.write(line)
            file.flush()
            show(folder.name, line.rstrip())
    return process.wait()


def _log(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")


def summary(folders: Sequence[Path]) -> str:
    """JSON: every run's metrics by group (mean, standard error, interval, n), its phases' facts and times; the first
    arm's paired differences to the others.
    """
    runs: list[dict[str, Any]] = []
    for folder in folders:
        run = RunFolder.read(folder)
        marks = [mark for stage in STAGE_ORDER[:-1] if (mark := run.mark(stage)) is not None]
        results = {
            result.stage: {
                group: {name: value.model_dump() for name, value in metrics.items()}
                for group, metrics in summarise(result.items).items()
            }
            for result in run.read_records("test_results", EvaluationResult)
        }
        phases = {
            mark.stage: {"duration_s": mark.duration_s, **{k: v for k, v in mark.facts.items() if k != "curve"}}
            for mark in marks
        }
        manifest = run.manifest
        about = {"arm": manifest.config.name, "seed": manifest.seed, "config": manifest.config_digest}
        runs.append({**about, "machine": manifest.machine, "phases": phases, "test": results})
    paired = {arm: value.model_dump() for arm, value in differences(results_of(folders))}
    return json.dumps({"runs": runs, "differences": paired}, indent=1) + "\n"


class _Show:
    """Prints the lines of several runs, each with the name of its run."""

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        self.console, self.width = console, max(map(len, names))
        self._lock = threading.Lock()

    def __call__(self, name: str, line: str) -> None:
        with self._lock:
            self.console.print(f"{name:<{self.width}} │ {line}", markup=False, highlight=False, soft_wrap=True)
