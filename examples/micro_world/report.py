"""Runs → one row an arm, as Markdown and as an HTML report with the curves."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from examples.micro_world.arms import ARMS, CHOSEN
from examples.micro_world.figure import svg
from scipy import stats

from tirkit.evaluation.charts import Curve, Panel
from tirkit.evaluation.metrics import over_seeds
from tirkit.evaluation.report import ReportData, Table, write_report
from tirkit.methods.autotool.diagnose import ModeProbe, collapse_warning
from tirkit.store import write_atomic

RunRecord = Mapping[str, Any]
Reader = Callable[[RunRecord], float]

BACK = 0.5  # a share is back where it reaches this again: in `modes` every run starts there
BASE = ("std", CHOSEN["std"])  # what every arm is compared with
WINDOW_ANSWERS = 5 * 24 * 8  # to hard problems in a window
SHARES = {"modes": "Share of hard problems that are thought about", "routes": "Share of thoughts by the rare route"}
WATCHED = {"modes": "think/hard", "routes": "all/hard"}  # the share that must not die
TITLES = {"modes": "Modes: does thinking survive where it pays?", "routes": "Routes: does the rare route come back?"}
NOTE = (
    "Means over seeds ± half a 95 % interval (Student's t). In percent, but for tokens. What is least and the step of "
    "recovery are of windows of five steps."
)


def least(run: RunRecord) -> float:
    """The least share of the watched series in any window."""
    return min(watched(run))


def recovery(run: RunRecord) -> int | None:
    """The first step, from the minimum on, by which the watched share is at `BACK`; None if it never is."""
    shares = watched(run)
    lowest = shares.index(min(shares))
    later = zip(run["curve"][lowest:], shares[lowest:], strict=True)
    return next((point["step"] for point, share in later if share >= BACK), None)


def watched(run: RunRecord) -> list[float]:
    """The watched series, 0 where there was no answer to count."""
    return [point.get(WATCHED[run["study"]], 0.0) for point in run["curve"]]


def warned(run: RunRecord) -> int | None:
    """The first step at which the library's warning of mode collapse is given, by the answers to hard problems.

    They are the ones that chose to think, where the library forces some: here there are enough of them.
    """
    probes = [_probe(point) for point in run["curve"]]
    ends = range(1, len(probes) + 1)
    return next((probes[end - 1].step for end in ends if collapse_warning(probes[:end])), None)


def _probe(point: Mapping[str, float]) -> ModeProbe:
    return ModeProbe(
        step=int(point["step"]),
        think_rate=point["think/hard"],
        think_accuracy=point.get("right/hard/think", 0.0),
        num_forced=round(point["think/hard"] * WINDOW_ANSWERS),
        no_think_accuracy=point.get("right/hard/no_think"),
    )


def during(run: RunRecord) -> float:
    """Accuracy on hard problems over the whole of training."""
    return mean([point["right/hard"] for point in run["curve"]])


def end(way: str, series: str, when: str = "after") -> Reader:
    """A series at the end, or `when`: sampled freely ("auto") or with a mode or route forced."""
    return lambda run: run[when][way].get(series, 0.0)


def reward(run: RunRecord) -> float:
    """Mean reward at the end: what every arm maximises, and what settings were chosen by, on validation problems."""
    auto = run["after"]["auto"]
    kinds = [name.removeprefix("think/") for name in auto if name.startswith("think/")]
    return sum(_reward(auto, kind) for kind in kinds) / len(kinds)


def _reward(point: Mapping[str, float], kind: str) -> float:
    """±0.5 with and ±1 without thinking, by the share of each; malformed answers, which are few, count as wrong."""
    think = point[f"think/{kind}"]
    with_it, without = (point.get(f"right/{kind}/{mode}", 0.0) for mode in ("think", "no_think"))
    return think * (2 * with_it - 1) / 2 + (1 - think) * (2 * without - 1)


def tokens(run: RunRecord) -> float:
    """Tokens an answer at the end, over easy and hard problems alike."""
    return (end("auto", "tokens/easy")(run) + end("auto", "tokens/hard")(run)) / 2


COLUMNS: Mapping[str, Mapping[str, tuple[Reader, float]]] = {  # head → reader, and what it is multiplied by
    "modes": {
        "least thinking, hard": (least, 100),
        "hard right in training": (during, 100),
        "reward": (reward, 100),
        "hard right": (end("auto", "right/hard"), 100),
        "easy right": (end("auto", "right/easy"), 100),
        "tokens": (tokens, 1),
        "thinks, hard": (end("auto", "think/hard"), 100),
        "thinks, easy": (end("auto", "think/easy"), 100),
        "hard right, made to think": (end("think", "right/hard"), 100),
    },
    "routes": {
        "rare route in training": (lambda run: mean(watched(run)), 100),
        "hard right in training": (during, 100),
        "hard right": (end("auto", "right/hard"), 100),
        "rare route": (end("auto", "all/hard"), 100),
        "right by it": (end("all", "right/hard"), 100),
        "right by the other": (end("rough", "right/hard"), 100),
        "thinks": (end("auto", "think/hard"), 100),
    },
}
START: Mapping[
    str, tuple[str, str]
] = {  # head → way and series of what the shift should move, and of what it should not
    "rare route": ("think", "all/hard"),
    "right by it": ("all", "right/hard"),
    "right by the other": ("rough", "right/hard"),
    "thinks": ("auto", "think/hard"),
}
STEPS: Mapping[str, Mapping[str, Callable[[RunRecord], int | None]]] = {
    "modes": {"thinking back": recovery, "warned": warned},
    "routes": {"route back": recovery},
}


def grouped(runs: Sequence[RunRecord]) -> dict[tuple[str, str], list[RunRecord]]:
    """Complete runs by arm and setting, both in the order of `ARMS`."""
    done = [run for run in runs if run["complete"]]
    pairs = [(arm, candidate) for arm in ARMS for candidate in ARMS[arm].candidates]
    groups = {pair: [run for run in done if (run["arm"], run["candidate"]) == pair] for pair in pairs}
    return {pair: group for pair, group in groups.items() if group}


def make_table(runs: Sequence[RunRecord], study: str) -> Table:
    """One row an arm and setting."""
    rows: list[tuple[str, ...]] = []
    for (arm, setting), group in grouped(runs).items():
        cells = [_cell([scale * read(run) for run in group]) for read, scale in COLUMNS[study].values()]
        steps = [_steps([read(run) for run in group]) for read in STEPS[study].values()]
        rows.append((ARMS[arm].title, setting, str(len(group)), *cells, *steps))
    head = ("arm", "setting", "seeds", *COLUMNS[study], *STEPS[study])
    return Table(title=TITLES[study], head=head, rows=tuple(rows), note=NOTE)


def starts(runs: Sequence[RunRecord]) -> Table:
    """What the arms of each seed start from, before the shift of the route and after it; no rows without one."""
    shifted = {run["seed"]: run for run in runs if run.get("unshifted")}
    rows = [(str(seed), *_shifts([run])) for seed, run in sorted(shifted.items())]
    if len(rows) > 1:
        rows.append(("all", *_shifts(list(shifted.values()))))
    return Table(title="The start, before the shift → after it", head=("seed", *START), rows=tuple(rows), note=NOTE)


def _shifts(runs: Sequence[RunRecord]) -> list[str]:
    return [
        " → ".join(_cell([100 * end(way, series, when)(run) for run in runs]) for when in ("unshifted", "before"))
        for way, series in START.values()
    ]


def differences(runs: Sequence[RunRecord], study: str, base: tuple[str, str]) -> Table:
    """Each arm minus the arm and setting `base`, over the seeds that both have: what seeds share drops out."""
    groups = grouped(runs)
    ours = {run["seed"]: run for run in groups.get(base, ())}
    rows: list[tuple[str, ...]] = []
    for (arm, setting), group in groups.items():
        pairs = [(run, ours[run["seed"]]) for run in group if run["seed"] in ours]
        if pairs and (arm, setting) != base:
            values = [[scale * (read(a) - read(b)) for a, b in pairs] for read, scale in COLUMNS[study].values()]
            rows.append((ARMS[arm].title, setting, str(len(pairs)), *map(_cell, values)))
    head = ("arm", "setting", "seeds", *COLUMNS[study])
    return Table(title=f"Minus {ARMS[base[0]].title}, seed by seed", head=head, rows=tuple(rows), note=NOTE)


def _cell(values: Sequence[float]) -> str:
    middle, half = over_seeds(values)
    return f"{middle:.1f} ± {half:.1f}" if len(values) > 1 else f"{middle:.1f}"


def _steps(steps: Sequence[int | None]) -> str:
    """How many runs got there, and at which step on average."""
    there = [step for step in steps if step is not None]
    return f"{len(there)} of {len(steps)}" + (f" (step {sum(there) / len(there):.0f})" if there else "")


def panels(runs: Sequence[RunRecord], study: str) -> tuple[Panel, ...]:
    """The watched share and accuracy on hard problems over training, means over seeds with standard errors."""
    series = {WATCHED[study]: SHARES[study], "right/hard": "Hard problems answered rightly"}
    return tuple(
        Panel(title=title, curves=tuple(_curve(name, group) for group in grouped(runs).values()), y_label="share")
        for name, title in series.items()
    )


def _curve(name: str, runs: Sequence[RunRecord]) -> Curve:
    points = list(zip(*(run["curve"] for run in runs), strict=True))
    values = [[point.get(name, 0.0) for point in same_step] for same_step in points]
    stderr = tuple(float(stats.sem(v)) for v in values) if len(runs) > 1 else ()
    return Curve(
        name=ARMS[runs[0]["arm"]].title,
        x=tuple(float(same_step[0]["step"]) for same_step in points),
        y=tuple(mean(v) for v in values),
        stderr=stderr,
    )


def markdown(table: Table) -> str:
    """The table as Markdown."""
    lines = [table.head, ("---",) * len(table.head), *table.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write(out: Path, studies: Sequence[str]) -> Path:
    """`STUDY.md` and `STUDY.svg` beside the runs, and one HTML report, which stays out of version control; its page."""
    runs = {study: [json.loads(path.read_text()) for path in sorted((out / study).glob("*.json"))] for study in studies}
    tables: list[Table] = []
    for study, records in runs.items():
        made = [make_table(records, study), differences(records, study, BASE), starts(records)]
        made = [table for table in made if table.rows]
        tables += made
        write_atomic(out / f"{study}.md", "\n".join(f"{t.title}\n\n{markdown(t)}" for t in made))
        write_atomic(out / f"{study}.svg", svg(panels(records, study)[0]))
    write_atomic(out / "report" / ".gitignore", "*\n")
    data = ReportData(
        title="Micro world",
        intro="Twelve ways to reinforce a model that can answer at once or think first; see docs/methods/autotool.md.",
        panels=tuple(panel for study, records in runs.items() for panel in panels(records, study)),
        tables=tuple(tables),
    )
    return write_report(out / "report", data)
