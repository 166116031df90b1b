"""Score a file of trajectories: each one's reward, term by term, and its verdict. Bad lines are named."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tirkit.evaluation.tables import visible
from tirkit.scoring.match import Verdict, verdict
from tirkit.scoring.reward import TinrReward
from tirkit.text.dialects import Dialect
from tirkit.text.index import build_index
from tirkit.tools.lines import FileIssue, convert_records, parse_as, read_records
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
class ScoredFile:
    """What could be scored and what could not, both in the order of the file."""

    scores: tuple[Score, ...]
    issues: tuple[FileIssue, ...]


def score_file(path: Path, tasks_path: Path | None = None) -> ScoredFile:
    """Read trajectories (one JSON object a line) and score them against their tasks.

    Without tasks every verdict is "unscored". Raises ScoreError where the file cannot be read.
    """
    try:
        records, issues = read_records(path, "jsonl")
    except OSError as error:
        raise ScoreError(f"{path} cannot be read ({error.strerror}); give a file of trajectories, JSONL") from error
    found = convert_records(path, records, parse_as(Trajectory), issues)
    tasks: dict[str, Task] = {}
    if tasks_path is not None:
        loaded = load_tasks(tasks_path)
        tasks = {task.id: task for task in loaded.tasks}
        issues += loaded.issues
        strays = [(line, t.task_id) for line, t in found if t.task_id not in tasks]
        issues += [FileIssue(str(path), line, f"no task {name!r} in {tasks_path}") for line, name in strays]
        found = [(line, t) for line, t in found if t.task_id in tasks]
    scores = tuple(_score(line, trajectory, tasks) for line, trajectory in found)
    return ScoredFile(scores, tuple(sorted(issues, key=lambda issue: (issue.file != str(path), issue.line))))


def print_scores(path: Path, tasks_path: Path | None, console: Console) -> int:
    """Print a line a trajectory, the bad lines and the means; the exit code: 1 where a line was bad, else 0."""
    scored = score_file(path, tasks_path)
    for score in scored.scores:
        console.print(score_line(score), markup=False, highlight=False, soft_wrap=True)
    for issue in scored.issues:
        console.print(str(issue), style="red", markup=False, highlight=False, soft_wrap=True)
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
    return visible(f"{score.line}: {score.trajectory.task_id!r} {score.verdict}, {terms}, {ended}")


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
