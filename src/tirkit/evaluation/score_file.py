"""Score a file of trajectories: each one's reward, term by term, and its verdict. Bad lines are named, the rest kept."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from tirkit.scoring.match import Verdict, verdict
from tirkit.scoring.reward import TinrReward
from tirkit.text.dialects import Dialect
from tirkit.text.index import build_index
from tirkit.tools.questions import load_tasks
from tirkit.types import RewardBreakdown, Task, ToolSchema, Trajectory, UserError


class ScoreError(UserError):
    """The file cannot be scored at all; the message says what to do."""


@dataclass(frozen=True)
class Score:
    """One trajectory's. `reward` is None where nothing says what right would be: then the verdict is unscored."""

    line: int
    trajectory: Trajectory
    verdict: Verdict
    reward: RewardBreakdown | None


@dataclass(frozen=True)
class BadLine:
    """A line that was left out, and why."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class ScoredFile:
    """What could be scored and what could not, both in the order of the file."""

    scores: tuple[Score, ...]
    issues: tuple[BadLine, ...]


def score_file(path: Path, tasks_path: Path | None = None) -> ScoredFile:
    """Read trajectories (one JSON object a line) and score them against their tasks.

    Without tasks every verdict is "unscored". Raises ScoreError where the file cannot be read.
    """
    issues: list[BadLine] = []
    scores: list[Score] = []
    tasks: dict[str, Task] = {}
    if tasks_path is not None:
        loaded = load_tasks(tasks_path)
        tasks = {task.id: task for task in loaded.tasks}
        issues += [BadLine(str(issue.file), issue.line, issue.reason) for issue in loaded.issues]
    for number, line in _lines(path):
        try:
            trajectory = Trajectory.model_validate_json(line)
        except ValidationError as error:
            issues.append(BadLine(str(path), number, f"not a trajectory: {_first(error)}"))
            continue
        if tasks_path is not None and trajectory.task_id not in tasks:
            issues.append(BadLine(str(path), number, f"no task {trajectory.task_id!r} in {tasks_path}"))
            continue
        scores.append(_score(number, trajectory, tasks))
    return ScoredFile(tuple(scores), tuple(issues))


def print_scores(path: Path, tasks_path: Path | None, console: Console) -> int:
    """Print a line a trajectory, the bad lines and the means; the exit code: 1 where a line was bad, else 0."""
    scored = score_file(path, tasks_path)
    for score in scored.scores:
        console.print(score_line(score), markup=False, highlight=False, soft_wrap=True)
    for issue in scored.issues:
        text = f"{issue.file}:{issue.line}: {issue.reason}"
        console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    rewards = [score.reward.total for score in scored.scores if score.reward is not None]
    right = sum(score.verdict is Verdict.RIGHT for score in scored.scores)
    judged = sum(score.verdict is not Verdict.UNSCORED for score in scored.scores)
    mean = f", mean reward {sum(rewards) / len(rewards):.3f}" if rewards else ""
    summary = f"{len(scored.scores)} trajectories, {right} of {judged} judged ones right{mean}, "
    console.print(f"{summary}{len(scored.issues)} bad lines", highlight=False)
    return 1 if scored.issues else 0


def score_line(score: Score) -> str:
    """One trajectory's score on one line, its problems included."""
    terms = "no reward"
    if score.reward is not None:
        parts = ", ".join(f"{term.name} {term.weight * term.value:.3g}" for term in score.reward.terms)
        terms = f"reward {score.reward.total:.3g} ({parts})"
    problems = [problem for turn in score.trajectory.turns for problem in turn.problems]
    ended = "; ".join((str(score.trajectory.stop), *problems))
    return f"{score.line}: {score.trajectory.task_id!r} {score.verdict}, {terms}, {ended}"


def _score(number: int, trajectory: Trajectory, tasks: Mapping[str, Task]) -> Score:
    task = tasks.get(trajectory.task_id)
    if task is None or (task.gold_calls is None and task.answer is None):
        return Score(number, trajectory, Verdict.UNSCORED, None)
    reward = TinrReward(_dialect(trajectory))(trajectory, task)
    return Score(number, trajectory, verdict(trajectory, task), reward)


def _dialect(trajectory: Trajectory) -> Dialect:
    """The dialect to ask for: with a selection where the trajectory holds one.

    That lets no call without a selection pass in a dialect that wants one: the tool loop noted it as a problem.
    """
    names = dict.fromkeys(trajectory.selected)
    return Dialect(build_index([ToolSchema(name=name) for name in names])) if names else Dialect()


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers. Bytes: a line that is not UTF-8 is bad, not the file."""
    try:
        with path.open("rb") as file:
            yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())
    except OSError as error:
        raise ScoreError(f"{path} cannot be read ({error.strerror}); give a file of trajectories, JSONL") from error


def _first(error: ValidationError) -> str:
    """The first of a validation's errors: where and what."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]
