"""Put benchmarks to a policy: every attempt stored as it comes, so that a run that was killed goes on.

What is left behind is in `folder`. An attempt that an endpoint failed to answer is not stored: it is made again by the
next run. What was written is let go once it is stored, so memory does not grow with it.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tirkit.evaluation.benchmarks.base import (
    Benchmark,
    BenchmarkError,
    Case,
    CaseAttempt,
    CaseResult,
    Loaded,
    ScoreFn,
    sample,
)
from tirkit.evaluation.benchmarks.changes import Change, make_change
from tirkit.evaluation.benchmarks.folder import (
    BenchmarkSetting,
    Outcome,
    Summary,
    check_setting,
    ordered,
    read_results,
    records_path,
    write_asked,
    write_summary,
)
from tirkit.evaluation.benchmarks.overlap import overlap
from tirkit.evaluation.benchmarks.worlds import Pool, worlds
from tirkit.evaluation.metrics import make_item
from tirkit.evaluation.run import ProgressFn
from tirkit.rollout.loop import RolloutSettings, rollout, stable_seed
from tirkit.rollout.policy import Policy, RolloutRequest
from tirkit.store import append_lines
from tirkit.text.control import THINK_CLOSE, THINK_OPEN
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer
from tirkit.tools.runtime import Toolbox
from tirkit.types import StopReason, Task, ToolSchema, Trajectory


@dataclass
class Asking:
    """The model that is asked: a policy with its renderer and dialect, and what it was trained on."""

    policy: Policy
    renderer: Renderer
    dialect: Dialect
    tools: Sequence[ToolSchema] = ()
    training: Sequence[Task] = ()
    progress: Callable[[str], ProgressFn] | None = field(default=None)


def run_benchmarks(
    asking: Asking, benchmarks: Iterable[Benchmark], data: Path, out: Path, setting: BenchmarkSetting
) -> list[Outcome]:
    """Every benchmark in turn, each case attempted once, greedily or as the policy samples.

    asking.tools: the catalogue that the model remembers, for documents="none". data: folder of all data.
    Raises BenchmarkError for a folder of another setting, a missing official scorer, missing data.
    """
    check_setting(out, setting)
    return [_run(asking, benchmark, data, out, setting) for benchmark in benchmarks]


def _run(asking: Asking, benchmark: Benchmark, data: Path, out: Path, setting: BenchmarkSetting) -> Outcome:
    started = time.perf_counter()
    loaded, trained_on = _load(asking, benchmark, data, setting)
    paraphrases = Path(setting.paraphrases) if setting.paraphrases else None
    change = make_change(setting.change, benchmark, loaded, setting.documents, setting.seed, paraphrases)
    given = {case.task.id: case for case in loaded.cases}
    asked = change.loaded(loaded)
    batches, left_out = _batches(asking, benchmark, asked, setting)
    known = {case.task.id for batch in batches for case in batch.cases}
    cases = [case for case in asked.cases if case.task.id in known]
    score, checker = _scorer(benchmark, setting.official)
    summary = Summary(
        checker=checker,
        overlap=overlap([given[case.task.id] for case in cases], asking.training, asking.tools),
        num_cases=len(cases),
        left_out=left_out,
        trained_on=trained_on,
        num_issues=len(loaded.issues),
    )
    write_asked(out, benchmark.name, cases, asked.tools)
    write_summary(out, benchmark.name, summary)
    done = {a.case_id: a.result for a in read_results(records_path(out, benchmark.name)) if a.case_id in known}
    toolbox = change.toolbox(benchmark.toolbox(data / benchmark.folder)) if benchmark.toolbox else None
    show = _Shown(asking, benchmark, len(cases), done)
    for batch in batches:
        todo = [case for case in batch.cases if case.task.id not in done]
        if todo:
            began = time.perf_counter()
            tasks, todo = [batch.task(case) for case in todo], [given[case.task.id] for case in todo]
            limits = _limits(setting)
            made = attempt(asking, benchmark, todo, tasks, batch.tools, toolbox, limits, setting.seed, change)
            if benchmark.play is None:
                made = [change.names.back(batch.back(trajectory)) for trajectory in made]
            attempts = _judged(made, todo, change.scored(score), (time.perf_counter() - began) / len(todo))
            append_lines(records_path(out, benchmark.name), (a.model_dump_json() for a in attempts))
            done |= {a.case_id: a.result for a in attempts}
            show()
    summary = summary.model_copy(update={"seconds": time.perf_counter() - started})
    write_summary(out, benchmark.name, summary)
    return Outcome(benchmark, setting, summary, ordered(done, (case.task.id for case in cases)))


def _load(asking: Asking, benchmark: Benchmark, data: Path, setting: BenchmarkSetting) -> tuple[Loaded, int]:
    """(the cases to be asked, how many were left out since training questions equal or resemble them)."""
    own = tuple(category for category in setting.categories if category in benchmark.categories)
    if not setting.held_out:
        return benchmark.load(data, setting.limit, setting.seed, own), 0
    loaded = benchmark.load(data, categories=own)
    found = overlap(loaded.cases, asking.training)
    kept = [case for case in loaded.cases if case.task.id not in found.equal | found.similar]
    if not kept:
        raise BenchmarkError(f"all {len(loaded.cases)} cases of {benchmark.name} resemble training questions")
    return replace(loaded, cases=sample(kept, setting.limit, setting.seed)), len(loaded.cases) - len(kept)


def _judged(made: Sequence[Trajectory], cases: Sequence[Case], score: ScoreFn, seconds: float) -> list[CaseAttempt]:
    """The attempts, scored; without those that no endpoint answered."""
    return [
        make_result(trajectory, case, score, seconds)
        for case, trajectory in zip(cases, made, strict=True)
        if trajectory.stop is not StopReason.POLICY_FAILED
    ]


class _Shown:
    """Progress of one benchmark."""

    def __init__(self, asking: Asking, benchmark: Benchmark, total: int, done: Mapping[str, CaseResult]):
        self._show = asking.progress(benchmark.name) if asking.progress else None
        self._total, self._done = total, done
        self._first, self._started = len(done), time.perf_counter()

    def __call__(self) -> None:
        if self._show:
            num = len(self._done)
            rate = (time.perf_counter() - self._started) / max(num - self._first, 1)
            right = sum(result.score.right for result in self._done.values()) / max(num, 1)
            self._show(num, self._total, {"right": right}, rate * (self._total - num))


def attempt(
    asking: Asking,
    benchmark: Benchmark,
    cases: Sequence[Case],
    tasks: Sequence[Task],
    tools: Mapping[str, ToolSchema],
    toolbox: Toolbox | None,
    limits: RolloutSettings,
    seed: int = 0,
    change: Change | None = None,
) -> list[Trajectory]:
    """One attempt at each case, its task put in the names of `tools`; side by side, or, with `play`, in turn.

    With `play` the case is the authors', and what is asked and called passes through `change` on its way.
    """
    change = change or Change()

    def roll(asked: Sequence[Task], known: Mapping[str, ToolSchema], box: Toolbox | None, workers: int):
        requests = [RolloutRequest(task, 0, stable_seed(seed, task.id, 0)) for task in asked]
        settings = replace(limits, workers=workers)
        return rollout(requests, asking.policy, asking.renderer, asking.dialect, known, box, settings)

    if benchmark.play is None:
        return roll(tasks, tools, toolbox, limits.workers)

    # A state wants its calls in order: no threads.
    def ask(task: Task, known: Sequence[ToolSchema], box: Toolbox) -> Trajectory:
        task, known = change.asked(task, known)
        return change.names.back(roll([task], {tool.name: tool for tool in known}, change.toolbox(box), 0)[0])

    return [benchmark.play(case, ask) for case in cases]


def _scorer(benchmark: Benchmark, official: bool) -> tuple[ScoreFn, str]:
    if official and benchmark.official is not None:
        return benchmark.official(), benchmark.official_name
    return benchmark.score, "tirkit"


def _limits(setting: BenchmarkSetting) -> RolloutSettings:
    prompt: Literal["none", "documents", "retrieve"] = (
        "documents" if setting.documents in ("all", "pool") else setting.documents
    )
    return RolloutSettings(
        max_turns=setting.max_turns,
        max_calls=setting.max_calls,
        max_new_tokens=setting.max_new_tokens,
        max_tokens=setting.max_tokens,
        prompt=prompt,
        k=setting.k,
    )


@dataclass(frozen=True)
class _Batch:
    """Cases asked together; with a pool they are asked in its names."""

    cases: tuple[Case, ...]
    tools: dict[str, ToolSchema]
    pool: Pool | None = None

    def task(self, case: Case) -> Task:
        return self.pool.task(case) if self.pool else case.task

    def back(self, trajectory: Trajectory) -> Trajectory:
        return self.pool.back(trajectory) if self.pool else trajectory


def _batches(
    asking: Asking, benchmark: Benchmark, loaded: Loaded, setting: BenchmarkSetting
) -> tuple[list[_Batch], int]:
    """(the cases in batches, how many were left out since the model's catalogue lacks their tools)."""
    if benchmark.play is not None and setting.documents in ("pool", "none"):
        raise BenchmarkError(
            f'{benchmark.name} has tools that change as it goes: it is run with documents="all" or "retrieve"'
        )
    if setting.documents == "all" or benchmark.play is not None:
        made = worlds(loaded.cases, loaded.tools, setting.batch_size)
        return [_Batch(tuple(world.cases), world.tools) for world in made], 0
    if setting.documents == "none" and not asking.tools:
        raise BenchmarkError('documents="none" is for a model that remembers its tools: give its catalogue')
    pool = _pool(asking, loaded, setting)
    cases = [case for case in loaded.cases if pool.has(case) and pool.knows(case.task)]
    chunks = (tuple(cases[at : at + setting.batch_size]) for at in range(0, len(cases), setting.batch_size))
    return [_Batch(chunk, dict(pool.tools), pool) for chunk in chunks], len(loaded.cases) - len(cases)


def _pool(asking: Asking, loaded: Loaded, setting: BenchmarkSetting) -> Pool:
    """The model's own catalogue where it is remembered, or searched and has all that the cases are about."""
    own = Pool(asking.tools)
    if setting.documents == "none":
        return own
    known = asking.tools and all(own.has(case) and own.knows(case.task) for case in loaded.cases)
    return own if known and setting.documents == "retrieve" else Pool.of(loaded.cases, loaded.tools)


def make_result(trajectory: Trajectory, case: Case, score: ScoreFn, seconds: float | None = None) -> CaseAttempt:
    """The attempt, scored.

    Besides the metrics of the papers an item has `thinks` (1 where a turn thinks) and, where no tool is needed,
    `false_call` (1 where one was called all the same); `success` is the scorer's verdict.
    """
    verdict = score(trajectory, case)
    idle = case.task.gold_rounds == ()
    extra = {
        "success": verdict.right,
        "thinks": float(any(_thinks(turn.text) for turn in trajectory.turns)),
        "false_call": float(bool(trajectory.calls)) if idle else None,
        "seconds": seconds,
    }
    return CaseAttempt(
        case_id=case.task.id,
        category=case.task.kind,
        group=case.group,
        score=verdict,
        item=make_item(trajectory, case.task, (), **extra),
        trajectory=trajectory,
    )


def _thinks(text: str) -> bool:
    return bool(text.partition(THINK_OPEN)[2].partition(THINK_CLOSE)[0].strip())


def rescore(outcome: Outcome, attempts: Iterable[CaseAttempt], cases: Iterable[Case], score: ScoreFn) -> Outcome:
    """The stored attempts under another scorer; nothing is asked again."""
    by_id = {case.task.id: case for case in cases}
    judged = (make_result(a.trajectory, by_id[a.case_id], score, a.item.metrics.get("seconds")) for a in attempts)
    results = {one.case_id: one.result for one in judged}
    return replace(outcome, results=ordered(results, (result.case_id for result in outcome.results)))
