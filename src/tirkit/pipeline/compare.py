"""A config beside its arms: run them all, then one table and one report."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers.utils import logging as transformers_logging

from tirkit.config import ConfigError, arm_names, load_config
from tirkit.evaluation.charts import Curve, Panel
from tirkit.evaluation.metrics import summarise
from tirkit.evaluation.report import Example, ReportData, Table, write_report
from tirkit.evaluation.run import EvaluationResult, KnowledgeResult
from tirkit.evaluation.terminal import arms_table, duration
from tirkit.pipeline.sources import load_tokenizer
from tirkit.store import RunFolder, StageMark, write_atomic
from tirkit.text.index import build_index
from tirkit.text.masks import coloured, token_row
from tirkit.text.render import Renderer
from tirkit.types import ToolSchema, Trajectory, UserError

METHOD = "method"
TRAINED = ("internalise", "warmup", "rl")
STAGES_SHOWN = ("prepare", "internalise", "synthesise", "warmup", "rl", "evaluate")
LINES_OF_A_FAILURE = 15


class ArmFailedError(UserError):
    """A run of a comparison ended with an error."""


def compare_arms(
    config: Path, overrides: Sequence[str], arms: Sequence[str], seeds: Sequence[int], out: Path, jobs: int
) -> None:
    """Run every arm with every seed, `jobs` at a time in processes of one thread each, then report them together.

    Runs that are complete are not run again. Raises `ArmFailedError` naming the log of a run that failed, after the
    others have ended.
    """
    known = [METHOD, *arm_names(config)]
    chosen = known if list(arms) == ["all"] else list(arms)
    if unknown := [arm for arm in chosen if arm not in known]:
        raise ConfigError(f"{config}: no arm {unknown[0]!r}; it has: {', '.join(known)}")
    if not chosen or not seeds or jobs < 1:
        raise ConfigError("compare needs at least one arm, one seed and one job")
    for arm in chosen:  # a mistake in a config is said before anything runs
        load_config(config, overrides, "" if arm == METHOD else arm)
    console, started = Console(), time.monotonic()
    runs = [(arm, seed) for seed in seeds for arm in chosen]
    folders = [out / f"{arm}-{seed}" for arm, seed in runs]
    show = _Show(console, [folder.name for folder in folders])

    def run(arm: str, seed: int, folder: Path) -> int:
        return _run([str(config), f"seed={seed}", *overrides, *(() if arm == METHOD else ("--arm", arm))], folder, show)

    with ThreadPoolExecutor(jobs) as pool:
        codes = list(pool.map(run, *zip(*runs, strict=True), folders))
    if failed := [folder for folder, code in zip(folders, codes, strict=True) if code]:
        log = _log(failed[0])
        tail = "\n".join(log.read_text().splitlines()[-LINES_OF_A_FAILURE:])
        raise ArmFailedError(f"{len(failed)} of {len(runs)} runs failed; {log} ends with\n{tail}")
    path = report_runs(folders, out / "report")
    write_atomic(out / "summary.json", summary(folders))
    console.print(arms_table(_results(folders)))
    console.print(f"{len(runs)} runs in {duration(time.monotonic() - started)}")
    console.print(f"report: {path}", soft_wrap=True)
    console.print("Next:", _next_steps(config, folders[0]), sep="\n", markup=False, highlight=False, soft_wrap=True)


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
    """JSON: every run's metrics by group (mean, standard error, interval, n), its phases' facts and times."""
    runs: list[dict[str, Any]] = []
    for folder in folders:
        run = RunFolder.read(folder)
        marks = [mark for stage in STAGES_SHOWN if (mark := run.mark(stage)) is not None]
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
    return json.dumps(runs, indent=1) + "\n"


class _Show:
    """Prints the lines of several runs, each with the name of its run."""

    def __init__(self, console: Console, names: Sequence[str]) -> None:
        self.console, self.width = console, max(map(len, names))
        self._lock = threading.Lock()

    def __call__(self, name: str, line: str) -> None:
        with self._lock:
            self.console.print(f"{name:<{self.width}} │ {line}", markup=False, highlight=False, soft_wrap=True)


def report_runs(folders: Sequence[Path], out: Path) -> Path:
    """Write one report of several runs, the method's first; returns the page's path."""
    transformers_logging.disable_progress_bar()
    runs = [RunFolder.read(folder) for folder in folders]
    first = runs[0]
    config = first.manifest.config
    seeds = sorted({run.manifest.seed for run in runs})
    data = ReportData(
        title=f"tirkit: {config.name}",
        intro="What the arms reach on the same test questions, how they got there, and one attempt token by token.",
        facts=(
            ("arms", ", ".join(dict.fromkeys(run.manifest.config.name for run in runs))),
            ("seeds", ", ".join(map(str, seeds))),
            ("code", first.manifest.git_rev),
            ("machine", first.manifest.machine),
        ),
        arms=tuple(_results(folders)),
        panels=tuple(_panels(runs)),
        knowledge=tuple(_knowledge(first)),
        examples=tuple(_examples(first)),
        tables=tuple(table for table in (_general_table(first), _stage_table(runs)) if table.rows),
        config=config.model_dump_json(indent=2),
    )
    return write_report(out, data)


def _results(folders: Iterable[Path]) -> list[EvaluationResult]:
    """Test results, the last stage's under the arm's name and earlier ones marked with their stage."""
    found: list[EvaluationResult] = []
    for folder in folders:
        *earlier, last = list(RunFolder.read(folder).read_records("test_results", EvaluationResult)) or [None]
        if last is not None:
            found += [last, *(r.model_copy(update={"arm": f"{r.arm}, after {r.stage}"}) for r in earlier if r)]
    return found


def _panels(runs: Sequence[RunFolder]) -> Iterable[Panel]:
    """Loss of each training stage, and reward, success and entropy of RL, one curve a run."""
    for stage, key, label in (
        ("internalise", "loss", "loss"),
        ("internalise", "loss_recall", "recall loss"),
        ("warmup", "loss", "loss"),
        ("rl", "reward", "reward"),
        ("rl", "entropy", "entropy (nats per token)"),
    ):
        curves = [curve for run in runs if (mark := run.mark(stage)) and (curve := _curve(run, mark, key))]
        if curves:
            yield Panel(title=f"{stage}: {label}", curves=tuple(curves), y_label=label)


def _curve(run: RunFolder, mark: StageMark, key: str) -> Curve | None:
    lines: Any = mark.facts.get("curve", [])
    points: list[Mapping[str, float]] = [line for line in lines if isinstance(line.get(key), int | float)]
    if not points:
        return None
    x, y = zip(*((float(point["step"]), float(point[key])) for point in points), strict=True)
    return Curve(name=f"{run.manifest.config.name}, seed {run.manifest.seed}", x=x, y=y)


def _knowledge(run: RunFolder) -> Iterable[KnowledgeResult]:
    for stage in TRAINED:
        yield from run.read_records(f"knowledge_{stage}", KnowledgeResult)


def _examples(run: RunFolder) -> Iterable[Example]:
    """Two test attempts of the last stage, as spans."""
    stage = next((s for s in reversed(TRAINED) if run.records(f"test_{s}").exists()), "")
    if not stage:
        return
    tokenizer = load_tokenizer(run.model(stage))
    tools = tuple(run.read_records("catalogue", ToolSchema))
    kind = run.manifest.config.catalogue.indexing
    renderer = Renderer(tokenizer, None if kind == "none" else build_index(tools, kind))
    attempts = [t for t in run.read_records(f"test_{stage}", Trajectory) if t.turns]
    longest = sorted(attempts, key=lambda t: -len(t.turns))[:1]
    for trajectory in [*longest, *attempts[:1]]:
        spans = tuple(coloured(token_row(trajectory), renderer.decode_all))
        yield Example(title=trajectory.task_id, spans=spans, facts=(("stopped", str(trajectory.stop)),))


def _general_table(run: RunFolder) -> Table:
    """What the first run has forgotten of the base model's own tasks, phase by phase."""
    rows: list[tuple[str, ...]] = []
    head: tuple[str, ...] = ()
    for stage in ("prepare", *TRAINED):
        mark = run.mark(stage)
        skills: Any = mark.facts.get("general") if mark else None
        if skills:
            head = ("after", *skills)
            rows.append((stage, *(f"{100 * value:.0f}" for value in skills.values())))
    title = "The base model's own tasks (% exact, test phrasing)"
    return Table(title=title, head=head, rows=tuple(rows), note=f"{run.manifest.config.name}; 50 items a skill")


def _stage_table(runs: Sequence[RunFolder]) -> Table:
    """Seconds of every stage of every run, and of training alone."""
    rows: list[tuple[str, ...]] = []
    for run in runs:
        marks = [mark for stage in STAGES_SHOWN if (mark := run.mark(stage)) is not None]
        times = ", ".join(f"{mark.stage} {duration(mark.duration_s)}" for mark in marks)
        total = duration(sum(mark.duration_s for mark in marks))
        rows.append((f"{run.manifest.config.name}, seed {run.manifest.seed}", total, times))
    return Table(title="Time", head=("run", "total", "stages"), rows=tuple(rows), note="wall clock, m:ss")
