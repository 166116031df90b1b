"""How every benchmark measures and writes: interleaved repeats, medians with spread, memory in a process of its own.

A benchmark is a module of this package with `run(repeats) -> list[Result]`. Our arm comes first; the others are told as
multiples of it. Everything runs on one thread.
"""

import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median

import pydantic.dataclasses
import torch
from pydantic import TypeAdapter

from tirkit.evaluation.charts import Curve, Panel
from tirkit.evaluation.report import ReportData, write_report

PAGE = Path("docs/benchmarks.md")
PEERS = ("torch", "transformers", "trl")


@dataclass(frozen=True)
class Arm:
    """One way to do the work: `run` does it once, everything set up before."""

    name: str
    run: Callable[[], object]


@pydantic.dataclasses.dataclass(frozen=True)
class Timing:
    """Wall seconds of one arm (median, fastest, slowest) and its median CPU seconds, over `repeats`."""

    name: str
    median_s: float
    low_s: float
    high_s: float
    repeats: int
    cpu_s: float


@pydantic.dataclasses.dataclass(frozen=True)
class Result:
    """One benchmark at one setting.

    `timings`: ours first. `memory`: peak MB by name of an arm. `limit_s`: what no implementation can beat, as measured.
    `x` and `x_label` place the setting on a curve. `items` of `unit` are what a repeat works off (rates are told then).
    """

    benchmark: str
    setting: str
    timings: list[Timing]
    memory: dict[str, float] = field(default_factory=dict)
    limit_s: float | None = None
    notes: str = ""
    x: float | None = None
    x_label: str = ""
    items: float = 0
    unit: str = ""


def compare(title: str, arms: Sequence[Arm], repeats: int = 5) -> list[Timing]:
    """Time the arms in turn (A B A B …), after one run each to warm up; one line of progress on stderr."""
    torch.set_num_threads(1)
    for arm in arms:
        arm.run()
    seconds: dict[str, list[tuple[float, float]]] = {arm.name: [] for arm in arms}
    for _ in range(repeats):
        for arm in arms:
            seconds[arm.name].append(_timed(arm.run))
    timings = [_timing(name, pairs) for name, pairs in seconds.items()]
    print(f"{title}: " + ", ".join(f"{t.name} {t.median_s:.4g} s" for t in timings), file=sys.stderr, flush=True)
    return timings


def _timed(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    gc.collect()
    _finish_device()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    _finish_device()
    return time.perf_counter() - wall, time.process_time() - cpu


def _finish_device() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _timing(name: str, seconds: Sequence[tuple[float, float]]) -> Timing:
    walls, cpus = zip(*seconds, strict=True)
    return Timing(name, median(walls), min(walls), max(walls), len(walls), median(cpus))


def peak_memory(function: str, *arguments: str | float | bool | None) -> float:
    """Peak MB of `"module:function"` called with `arguments`, above what the imports take, in a fresh process.

    What a module imports at its top does not count; what it imports while it runs does. Device memory where the
    function used an accelerator. Raises CalledProcessError where it fails.
    """
    command = [sys.executable, "-m", "benchmarks.harness", function, json.dumps(arguments)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def _measure_memory(function: str, arguments: str) -> float:
    module, name = function.split(":")
    torch.set_num_threads(1)
    run = getattr(import_module(module), name)
    before = _peak_mb()
    run(*json.loads(arguments))
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return _peak_mb() - before


def _peak_mb() -> float:
    # Linux hands the parent's ru_maxrss on through exec; VmHWM belongs to this program alone.
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def write_results(results: Iterable[Result], out: Path, page: Path = PAGE) -> str:
    """Write `out`/bench/<benchmark>.json; then, from all that lie there, the page and a report with the plots.

    Returns the page, as Markdown.
    """
    folder, adapter = out / "bench", TypeAdapter(list[Result])
    folder.mkdir(parents=True, exist_ok=True)
    fresh: dict[str, list[Result]] = {}
    for result in results:
        fresh.setdefault(result.benchmark, []).append(result)
    for name, group in fresh.items():
        (folder / f"{name.replace(' ', '_')}.json").write_bytes(adapter.dump_json(group, indent=1) + b"\n")
    groups = [adapter.validate_json(file.read_bytes()) for file in sorted(folder.glob("*.json"))]
    every = {group[0].benchmark: group for group in groups}
    panels = tuple(panel for group in every.values() for panel in _panels(group))
    write_report(folder / "report", ReportData(title="tirkit: benchmarks", panels=panels))
    text = _markdown(every)
    page.write_text(text)
    return text


def _markdown(every: dict[str, list[Result]]) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in PEERS)
    lines = [
        "# Benchmarks",
        "",
        "Written by `python -m benchmarks`; don't edit. Raw numbers: `results/bench/*.json`.",
        f"One thread, runs interleaved, medians with (fastest … slowest); {versions}.",
        "“×”: wall time against the first arm, ours. MB: peak memory of a process of its own, above its imports.",
    ]
    for name, results in every.items():
        head = ["setting", "arm", "seconds", "CPU s", "×", *_extra_heads(results)]
        lines += ["", f"## {name}", "", _row(head), _row(["---"] * len(head))]
        lines += [_row(cells) for result in results for cells in _cells(result, results)]
        lines += [f"\n{note}" for note in dict.fromkeys(result.notes for result in results) if note]
    return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _extra_heads(results: Sequence[Result]) -> list[str]:
    units = {result.unit for result in results if result.items}
    return [f"{'/'.join(sorted(units))} per s"] * bool(units) + ["MB"] * any(result.memory for result in results)


def _cells(result: Result, results: Sequence[Result]) -> list[list[str]]:
    """One table row per arm, and one for the limit."""
    first = result.timings[0].median_s
    rows = []
    for timing in result.timings:
        spread = f"{timing.median_s:.3g} ({timing.low_s:.3g} … {timing.high_s:.3g})"
        row = [result.setting, timing.name, spread, f"{timing.cpu_s:.3g}", f"{timing.median_s / first:.2f}"]
        if any(r.items for r in results):
            row.append(f"{result.items / timing.median_s:,.0f}" if result.items else "")
        if any(r.memory for r in results):
            row.append(f"{result.memory[timing.name]:,.0f}" if timing.name in result.memory else "")
        rows.append(row)
    if result.limit_s is not None:
        name = f"*limit: ours takes {first / result.limit_s:.2f} × it*"
        limit = [result.setting, name, f"{result.limit_s:.3g}", "", f"{result.limit_s / first:.2f}"]
        rows.append(limit + [""] * (len(rows[0]) - len(limit)))
    return rows


def _panels(results: Sequence[Result]) -> list[Panel]:
    """Seconds, and memory where measured, of every arm over the settings: by their x, else by their number."""
    panels = []
    for label in dict.fromkeys(result.x_label for result in results):
        group = [result for result in results if result.x_label == label]
        x = [float(number) if result.x is None else result.x for number, result in enumerate(group, 1)]
        note = "" if label else "; ".join(f"{number}: {result.setting}" for number, result in enumerate(group, 1))
        times = [{t.name: t.median_s for t in r.timings} | ({"limit": r.limit_s} if r.limit_s else {}) for r in group]
        for what, unit, values in (("time", "s", times), ("memory", "MB", [result.memory for result in group])):
            curves = _curves(x, values)
            if curves:
                panel = Panel(
                    title=f"{group[0].benchmark}: {what}", curves=curves, x_label=label or "setting", note=note
                )
                panels.append(panel.model_copy(update={"y_label": unit, "log_x": bool(label), "log_y": True}))
    return panels


def _curves(x: Sequence[float], values: Sequence[dict[str, float]]) -> tuple[Curve, ...]:
    names = dict.fromkeys(name for value in values for name in value)
    points = {name: [(at, value[name]) for at, value in zip(x, values, strict=True) if name in value] for name in names}
    return tuple(Curve(name=n, x=tuple(p[0] for p in ps), y=tuple(p[1] for p in ps)) for n, ps in points.items())


if __name__ == "__main__":
    print(_measure_memory(*sys.argv[1:]))
