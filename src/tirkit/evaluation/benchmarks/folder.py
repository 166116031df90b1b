"""The folder of an evaluation: all that a report or a comparison wants, so that nothing is asked again.

OUT/setting.json           what was asked for; the same folder is not continued with other settings
OUT/cases/NAME.jsonl       one `AskedCase` a line: the questions with their gold
OUT/records/NAME.jsonl     one `CaseAttempt` a line
OUT/summaries/NAME.json    who scored, what was checked against the training questions, what was left out
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError

from tirkit.evaluation.benchmarks.base import Benchmark, BenchmarkError, Case, CaseAttempt, CaseResult, Totals
from tirkit.evaluation.benchmarks.changes import Kind
from tirkit.evaluation.benchmarks.overlap import Overlap
from tirkit.evaluation.benchmarks.registry import BENCHMARKS, benchmark
from tirkit.evaluation.run import EvaluationResult
from tirkit.store import whole_lines, write_atomic
from tirkit.types import Record, Task, ToolSchema

Documents = Literal["all", "pool", "retrieve", "none"]
SETTING = "setting.json"
RecordT = TypeVar("RecordT", bound=BaseModel)


class BenchmarkSetting(Record):
    """How benchmarks are run. `arm` names the model in tables.

    documents: "all" (those the case brings, as its authors ask), "pool" (those of all cases together), "retrieve" (of
    that pool, or of the model's catalogue where that has all of them, the `k` that BM25 ranks first; where tools keep a
    state, of the case's own), "none" (the tools are in the weights, under the names of the catalogue that is given).
    limit: at most so many cases of each category, drawn by `seed`. held_out: without those that a training question
    equals or resembles. official: the authors' scorer decides, where there is one. change: how cases are asked
    otherwise than their authors do; paraphrases: the file of those.
    """

    arm: str
    documents: Documents = "all"
    k: int = 5
    limit: int = 0
    seed: int = 0
    held_out: bool = False
    categories: tuple[str, ...] = ()
    official: bool = False
    change: Kind = ""
    paraphrases: str = ""
    max_turns: int = 20
    max_calls: int = 64
    max_new_tokens: int = 512
    max_tokens: int = 4096
    batch_size: int = 64


class AskedCase(Record):
    """A case as a reader wants it beside an attempt: the task, whose `gold_rounds` is one right answer, the gold that
    the scorer reads, the documents of the tools that the gold calls.
    """

    task: Task
    gold: JsonValue = None
    tools: tuple[ToolSchema, ...] = ()


class Summary(Record):
    """What a benchmark's records do not say: how many cases were to be asked, how many were left out since the model's
    catalogue lacks their tools or it was trained on their like, how many records of the data could not be used.
    """

    checker: str
    overlap: Overlap
    num_cases: int
    left_out: int = 0
    trained_on: int = 0
    num_issues: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """One benchmark, done: results in the order of the cases, and the leaderboard's aggregates."""

    benchmark: Benchmark
    setting: BenchmarkSetting
    summary: Summary
    results: tuple[CaseResult, ...]

    @property
    def totals(self) -> Totals:
        """The leaderboard's aggregates."""
        return self.benchmark.totals(self.results)

    @property
    def unanswered(self) -> int:
        """Cases that the endpoint gave no answer to."""
        return self.summary.num_cases - len(self.results)

    def evaluation(self) -> EvaluationResult:
        """The same as an arm's result, for tables, paired tests and reports; `success` is the scorer's verdict."""
        return EvaluationResult(
            arm=self.setting.arm,
            stage=self.benchmark.name,
            seed=self.setting.seed,
            items=tuple(result.item for result in self.results),
            seconds=self.summary.seconds,
        )


def is_evaluation(folder: Path) -> bool:
    """Whether an evaluation was begun in the folder."""
    return (folder / SETTING).exists()


def records_path(out: Path, name: str) -> Path:
    """Where the attempts at a benchmark's cases are kept."""
    return out / "records" / f"{name}.jsonl"


def check_setting(out: Path, setting: BenchmarkSetting) -> None:
    """Begin or continue the folder. BenchmarkError where it holds another setting's results."""
    if is_evaluation(out) and (stored := read_setting(out)) != setting:
        old, new = stored.model_dump(), setting.model_dump()
        changed = "; ".join(f"{name} was {old[name]!r}, is {new[name]!r}" for name in old if old[name] != new[name])
        raise BenchmarkError(f"{out} holds results of another setting ({changed}); give another folder")
    write_atomic(out / SETTING, setting.model_dump_json(indent=2))


def read_setting(out: Path) -> BenchmarkSetting:
    """The folder's setting. BenchmarkError where there is none, or a damaged one."""
    if not is_evaluation(out):
        raise BenchmarkError(f"{out} is no evaluation (no {SETTING}); make one with `tirkit eval … --out {out}`")
    try:
        return BenchmarkSetting.model_validate_json((out / SETTING).read_text(encoding="utf-8"))
    except ValidationError as error:
        raise BenchmarkError(
            f"{out / SETTING} was written by another version or damaged; give another folder"
        ) from error


def write_asked(out: Path, name: str, cases: Iterable[Case], shared: Iterable[ToolSchema]) -> None:
    """Keep the cases that are to be asked; `shared` are the tools of those that bring none."""
    tools = {tool.name: tool for tool in shared}
    asked = (_asked(case, tools) for case in cases)
    write_atomic(out / "cases" / f"{name}.jsonl", "".join(f"{case.model_dump_json()}\n" for case in asked))


def _asked(case: Case, shared: Mapping[str, ToolSchema]) -> AskedCase:
    own = {tool.name: tool for tool in case.tools}
    called = dict.fromkeys(call.name for call in case.task.gold_calls or ())
    found = (own.get(name) or shared.get(name) for name in called)
    return AskedCase(task=case.task, gold=case.gold, tools=tuple(tool for tool in found if tool is not None))


def write_summary(out: Path, name: str, summary: Summary) -> None:
    """Keep the summary."""
    write_atomic(out / "summaries" / f"{name}.json", summary.model_dump_json(indent=2))


def read_results(path: Path) -> Iterator[CaseAttempt]:
    """The stored attempts of a benchmark; a torn last line is left out. BenchmarkError for a damaged line."""
    return _read(path, CaseAttempt)


def read_asked(out: Path, name: str) -> Iterator[AskedCase]:
    """The cases of a benchmark that were to be asked, in their order."""
    return _read(out / "cases" / f"{name}.jsonl", AskedCase)


def _read(path: Path, kind: type[RecordT]) -> Iterator[RecordT]:
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            yield kind.model_validate_json(line)
        except ValidationError as error:
            raise BenchmarkError(f"{path}:{number} is damaged ({error.errors()[0]['msg']}); remove the line") from error


def read_outcomes(out: Path) -> list[Outcome]:
    """All benchmarks of the folder, as far as they got. BenchmarkError where it is none, or damaged."""
    setting = read_setting(out)
    return [_outcome(out, setting, name) for name in BENCHMARKS if (out / "summaries" / f"{name}.json").exists()]


def _outcome(out: Path, setting: BenchmarkSetting, name: str) -> Outcome:
    summary = Summary.model_validate_json((out / "summaries" / f"{name}.json").read_text(encoding="utf-8"))
    done = {attempt.case_id: attempt.result for attempt in read_results(records_path(out, name))}
    asked = [case.task.id for case in read_asked(out, name)]
    return Outcome(benchmark(name), setting, summary, ordered(done, asked))


def ordered(results: Mapping[str, CaseResult], case_ids: Iterable[str]) -> tuple[CaseResult, ...]:
    """The results of these cases, in their order; what is not there is left out."""
    return tuple(results[name] for name in case_ids if name in results)
