"""Put benchmarks to a policy: every attempt stored as it comes, so that a run that was killed goes on.

    OUT/setting.json           what was asked for; the same folder is not continued with other settings
    OUT/records/NAME.jsonl     one `CaseResult` a line
    OUT/overlap/NAME.json      what was checked against the training questions

An attempt that an endpoint failed to answer is not stored: it is made again by the next run.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from tirkit.evaluation.benchmarks.base import (
    Benchmark,
    BenchmarkError,
    Case,
    CaseResult,
    Loaded,
    ScoreFn,
    Totals,
)
from tirkit.evaluation.benchmarks.overlap import Overlap, overlap
from tirkit.evaluation.benchmarks.worlds import Pool, worlds
from tirkit.evaluation.metrics import make_item
from tirkit.evaluation.run import EvaluationResult, ProgressFn
from tirkit.rollout.loop import RolloutSettings, rollout, stable_seed
from tirkit.rollout.policy import Policy, RolloutRequest
from tirkit.store import append_lines, whole_lines, write_atomic
from tirkit.text.control import THINK_CLOSE, THINK_OPEN
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer
from tirkit.tools.lines import FileIssue
from tirkit.tools.runtime import Toolbox
from tirkit.types import Record, StopReason, Task, ToolSchema, Trajectory

Documents = Literal["all", "retrieve", "none"]


class BenchmarkSetting(Record):
    """How benchmarks are run. `arm` names the model in tables.

    documents: "all" (those the case brings, as its authors ask), "retrieve" (of the tools of all cases the `k` that
    BM25 ranks first), "none" (the tools are in the weights, under the names of the catalogue that is given).
    limit: at most so many cases of each category, drawn by `seed`. official: the authors' scorer decides, where there
    is one.
    """

    arm: str
    documents: Documents = "all"
    k: int = 5
    limit: int = 0
    seed: int = 0
    categories: tuple[str, ...] = ()
    official: bool = False
    max_turns: int = 20
    max_calls: int = 64
    max_new_tokens: int = 512
    max_tokens: int = 4096
    batch_size: int = 64


@dataclass(frozen=True)
class Outcome:
    """One benchmark, done: results in the order of the cases, the leaderboard's aggregates, who scored, what was not
    answered, what training shares with it, and which records of its data could not be used.
    """

    benchmark: Benchmark
    setting: BenchmarkSetting
    results: tuple[CaseResult, ...]
    totals: Totals
    checker: str
    overlap: Overlap
    unanswered: int = 0
    left_out: int = 0
    issues: tuple[FileIssue, ...] = ()
    seconds: float = 0.0

    def evaluation(self) -> EvaluationResult:
        """The same as an arm's result, for tables, paired tests and reports; `success` is the scorer's verdict."""
        return EvaluationResult(
            arm=self.setting.arm,
            stage=self.benchmark.name,
            seed=self.setting.seed,
            items=tuple(result.item for result in self.results),
            seconds=self.seconds,
        )


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
    _check_setting(out, setting)
    return [_run(asking, benchmark, data, out, setting) for benchmark in benchmarks]


def _check_setting(out: Path, setting: BenchmarkSetting) -> None:
    path = out / "setting.json"
    if path.exists():
        try:
            stored = BenchmarkSetting.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError as error:
            raise BenchmarkError(f"{path} was written by another version or damaged; give another folder") from error
        if stored != setting:
            old, new = stored.model_dump(), setting.model_dump()
            changed = "; ".join(f"{name} was {old[name]!r}, is {new[name]!r}" for name in old if old[name] != new[name])
            raise BenchmarkError(f"{out} holds results of another setting ({changed}); give another folder")
    write_atomic(path, setting.model_dump_json(indent=2))


def _run(asking: Asking, benchmark: Benchmark, data: Path, out: Path, setting: BenchmarkSetting) -> Outcome:
    started = time.perf_counter()
    own = tuple(category for category in setting.categories if category in benchmark.categories)
    loaded = benchmark.load(data, setting.limit, setting.seed, own)
    batches, left_out = _batches(asking, benchmark, loaded, setting)
    cases = [case for batch in batches for case in batch.cases]
    score, checker = _scorer(benchmark, setting.official)
    shared = overlap(cases, asking.training, asking.tools)
    write_atomic(out / "overlap" / f"{benchmark.name}.json", shared.model_dump_json(indent=2))
    path = out / "records" / f"{benchmark.name}.jsonl"
    known = {case.task.id for case in cases}
    done = {result.case_id: result for result in read_results(path) if result.case_id in known}
    show = asking.progress(benchmark.name) if asking.progress else None
    toolbox = benchmark.toolbox(data / benchmark.folder) if benchmark.toolbox else None
    first = len(done)
    for batch in batches:
        todo = [case for case in batch.cases if case.task.id not in done]
        if not todo:
            continue
        began = time.perf_counter()
        tasks = [batch.task(case) for case in todo]
        trajectories = attempt(asking, benchmark, todo, tasks, batch.tools, toolbox, _limits(setting), setting.seed)
        each = (time.perf_counter() - began) / len(todo)
        results = [
            make_result(batch.back(trajectory), case, score, each)
            for case, trajectory in zip(todo, trajectories, strict=True)
            if trajectory.stop is not StopReason.POLICY_FAILED
        ]
        append_lines(path, (result.model_dump_json() for result in results))
        done |= {result.case_id: result for result in results}
        if show:
            rate = (time.perf_counter() - started) / max(len(done) - first, 1)
            right = sum(result.score.right for result in done.values()) / max(len(done), 1)
            show(len(done), len(cases), {"right": right}, rate * (len(cases) - len(done)))
    results = tuple(done[case.task.id] for case in loaded.cases if case.task.id in done)
    return Outcome(
        benchmark=benchmark,
        setting=setting,
        results=results,
        totals=benchmark.totals(results),
        checker=checker,
        overlap=shared,
        unanswered=len(cases) - len(results),
        left_out=left_out,
        issues=loaded.issues,
        seconds=time.perf_counter() - started,
    )


def attempt(
    asking: Asking,
    benchmark: Benchmark,
    cases: Sequence[Case],
    tasks: Sequence[Task],
    tools: Mapping[str, ToolSchema],
    toolbox: Toolbox | None,
    limits: RolloutSettings,
    seed: int = 0,
) -> list[Trajectory]:
    """One attempt at each case, its task put in the names of `tools`; side by side, or, with `play`, in turn."""

    def roll(asked: Sequence[Task], known: Mapping[str, ToolSchema], box: Toolbox | None, workers: int):
        requests = [RolloutRequest(task, 0, stable_seed(seed, task.id, 0)) for task in asked]
        settings = replace(limits, workers=workers)
        return rollout(requests, asking.policy, asking.renderer, asking.dialect, known, box, settings)

    if benchmark.play is None:
        return roll(tasks, tools, toolbox, limits.workers)

    # A state wants its calls in order: no threads.
    def ask(task: Task, known: Sequence[ToolSchema], box: Toolbox) -> Trajectory:
        return roll([task], {tool.name: tool for tool in known}, box, 0)[0]

    return [benchmark.play(case, ask) for case in cases]


def _scorer(benchmark: Benchmark, official: bool) -> tuple[ScoreFn, str]:
    if official and benchmark.official is not None:
        return benchmark.official(), benchmark.official_name
    return benchmark.score, "tirkit"


def _limits(setting: BenchmarkSetting) -> RolloutSettings:
    prompt: Literal["none", "documents", "retrieve"] = "documents" if setting.documents == "all" else setting.documents
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
    if benchmark.play is not None and setting.documents != "all":
        raise BenchmarkError(f'{benchmark.name} has tools that change as it goes: it is run with documents="all"')
    if setting.documents == "all":
        made = worlds(loaded.cases, loaded.tools, setting.batch_size)
        return [_Batch(tuple(world.cases), world.tools) for world in made], 0
    if setting.documents == "none" and not asking.tools:
        raise BenchmarkError('documents="none" is for a model that remembers its tools: give its catalogue')
    remembered = setting.documents == "none"
    pool = Pool(asking.tools) if remembered else Pool.of(loaded.cases, loaded.tools)
    cases = [case for case in loaded.cases if pool.has(case) and pool.knows(case.task)]
    chunks = (tuple(cases[at : at + setting.batch_size]) for at in range(0, len(cases), setting.batch_size))
    return [_Batch(chunk, dict(pool.tools), pool) for chunk in chunks], len(loaded.cases) - len(cases)


def make_result(trajectory: Trajectory, case: Case, score: ScoreFn, seconds: float | None = None) -> CaseResult:
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
    return CaseResult(
        case_id=case.task.id,
        category=case.task.kind,
        group=case.group,
        score=verdict,
        item=make_item(trajectory, case.task, (), **extra),
        trajectory=trajectory,
    )


def _thinks(text: str) -> bool:
    return bool(text.partition(THINK_OPEN)[2].partition(THINK_CLOSE)[0].strip())


def read_results(path: Path) -> Iterator[CaseResult]:
    """The stored results of a benchmark; a torn last line is left out. BenchmarkError for a damaged line."""
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            yield CaseResult.model_validate_json(line)
        except ValidationError as error:
            raise BenchmarkError(f"{path}:{number} is damaged ({error.errors()[0]['msg']}); remove the line") from error


def rescore(outcome: Outcome, cases: Iterable[Case], score: ScoreFn) -> Outcome:
    """The same attempts under another scorer; nothing is asked again."""
    by_id = {case.task.id: case for case in cases}
    results = tuple(
        make_result(r.trajectory, by_id[r.case_id], score, r.item.metrics.get("seconds")) for r in outcome.results
    )
    return replace(outcome, results=results, totals=outcome.benchmark.totals(results))
