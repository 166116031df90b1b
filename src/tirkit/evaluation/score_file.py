"""Score a file of trajectories: each one's verdict, quality and reward, term by term. Bad lines are named."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tirkit.evaluation.quality import blind_scores, relate, relation_table
from tirkit.evaluation.tables import visible
from tirkit.scoring.match import Verdict
from tirkit.scoring.quality import Decision, QualityScore, QualitySettings, decide, is_right, score_group
from tirkit.scoring.reward import TinrReward
from tirkit.text.dialects import Dialect
from tirkit.text.index import build_index
from tirkit.tools.lines import FileIssue, convert_records, read_records
from tirkit.tools.logs import LoggedAttempt, read_attempt
from tirkit.tools.questions import load_tasks
from tirkit.types import RewardBreakdown, Task, ToolSchema, Trajectory, UserError


class ScoreError(UserError):
    """The file cannot be scored at all; the message says what to do."""


@dataclass(frozen=True)
class Score:
    """One trajectory's. `reward` is None where nothing says what right would be: then the verdict is unscored.

    `blind` is its quality measured against the other attempts at its task only, see `tirkit.evaluation.quality`.
    """

    line: int
    trajectory: Trajectory
    quality: QualityScore
    blind: QualityScore
    decision: Decision
    reward: RewardBreakdown | None

    @property
    def verdict(self) -> Verdict:
        """By the task's target, else by what the log says."""
        right = self.quality.right
        return Verdict.UNSCORED if right is None else Verdict.RIGHT if right else Verdict.WRONG


@dataclass(frozen=True)
class ScoredFile:
    """What could be scored and what could not, both in the order of the file."""

    scores: tuple[Score, ...]
    issues: tuple[FileIssue, ...]


def score_file(path: Path, tasks_path: Path | None = None, settings: QualitySettings | None = None) -> ScoredFile:
    """Read trajectories in any form of `tirkit.tools.logs` and score them against their tasks.

    Without tasks a verdict is what the log says of the attempt, else "unscored". Raises ScoreError where the file
    cannot be read.
    """
    try:
        records, issues = read_records(path)
    except OSError as error:
        raise ScoreError(
            f"{path} cannot be read ({error.strerror}); give a file of trajectories, JSON Lines"
        ) from error
    found = convert_records(path, records, read_attempt, issues)
    tasks = {attempt.task.id: attempt.task for _, attempt in reversed(found)}
    if tasks_path is not None:
        loaded = load_tasks(tasks_path)
        tasks = {task.id: task for task in loaded.tasks}
        issues += loaded.issues
        strays = [(line, a.task.id) for line, a in found if a.task.id not in tasks]
        issues += [FileIssue(str(path), line, f"no task {name!r} in {tasks_path}") for line, name in strays]
        found = [(line, a) for line, a in found if a.task.id in tasks]
    scores = _score_all(found, tasks, settings or QualitySettings())
    return ScoredFile(scores, tuple(sorted(issues, key=lambda issue: (issue.file != str(path), issue.line))))


def print_scores(path: Path, tasks_path: Path | None, console: Console) -> int:
    """Print a line a trajectory, the bad lines and the means; the exit code: 1 where a line was bad, else 0."""
    scored = score_file(path, tasks_path)
    for score in scored.scores:
        console.print(score_line(score), markup=False, highlight=False, soft_wrap=True)
    for issue in scored.issues:
        console.print(str(issue), style="red", markup=False, highlight=False, soft_wrap=True)
    verdicts = {score.verdict for score in scored.scores}
    if {Verdict.RIGHT, Verdict.WRONG} <= verdicts:
        blind, tasks = zip(*((score.blind, score.trajectory.task_id) for score in scored.scores), strict=True)
        console.print(relation_table(relate(blind, tasks)))
    console.print(_summary(scored), highlight=False)
    return 1 if scored.issues else 0


def score_line(score: Score) -> str:
    """One trajectory's score on one line, its problems included."""
    q = score.quality
    length = "–" if q.length is None else f"{q.length:.2f}"
    quality = f"S {q.total:.3f} (hesitation {q.hesitation:.0f}, length {length}, repetition {q.repetition:.2f})"
    reward = ""
    if score.reward is not None:
        parts = ", ".join(f"{term.name} {term.weight * term.value:.3g}" for term in score.reward.terms)
        reward = f", reward {score.reward.total:.3g} ({parts})"
    problems = [problem for turn in score.trajectory.turns for problem in turn.problems]
    ended = "; ".join((str(score.trajectory.stop), *problems))
    head = f"{score.line}: {score.trajectory.task_id!r} {score.verdict}"
    return visible(f"{head}, {quality}, {score.decision}{reward}, {ended}")


def _summary(scored: ScoredFile) -> str:
    scores = scored.scores
    judged = Counter(score.verdict for score in scores)
    decided = Counter(score.decision for score in scores)
    right, wrong = judged[Verdict.RIGHT], judged[Verdict.WRONG]
    parts = [f"{len(scores)} trajectories, {right} of {right + wrong} judged ones right"]
    rewards = [score.reward.total for score in scores if score.reward is not None]
    parts += [f"mean S {_mean([score.quality.total for score in scores]):.3f}"] if scores else []
    parts += [f"mean reward {_mean(rewards):.3f}"] if rewards else []
    parts += [f"{count} to {decision}" for decision in Decision if (count := decided[decision])]
    return ", ".join([*parts, f"{len(scored.issues)} bad lines"])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _score_all(
    found: Sequence[tuple[int, LoggedAttempt]], tasks: Mapping[str, Task], settings: QualitySettings
) -> tuple[Score, ...]:
    """Scores in the order of the file; attempts at one task are measured against each other."""
    groups: dict[str, list[tuple[int, LoggedAttempt]]] = {}
    for line, attempt in found:
        groups.setdefault(attempt.task.id, []).append((line, attempt))
    scores: list[Score] = []
    for name, group in groups.items():
        task, attempts = tasks[name], [attempt.trajectory for _, attempt in group]
        right = [is_right(a.trajectory, task) if _has_target(task) else a.success for _, a in group]
        qualities = score_group(attempts, task, settings, right=right)
        blind = blind_scores(attempts, task, right, settings)
        decisions = decide(qualities, settings)
        for i, (line, attempt) in enumerate(group):
            reward = _reward(attempt.trajectory, task) if _has_target(task) else None
            scores.append(Score(line, attempt.trajectory, qualities[i], blind[i], decisions[i], reward))
    return tuple(sorted(scores, key=lambda score: score.line))


def _has_target(task: Task) -> bool:
    return task.gold_calls is not None or task.answer is not None


def _reward(trajectory: Trajectory, task: Task) -> RewardBreakdown:
    return TinrReward(_dialect(trajectory))(trajectory, task)


def _dialect(trajectory: Trajectory) -> Dialect:
    """The dialect to ask for: with a selection where the trajectory holds one.

    That lets no call without a selection pass in a dialect that wants one: the tool loop noted it as a problem.
    """
    names = dict.fromkeys(trajectory.selected)
    return Dialect(build_index([ToolSchema(name=name) for name in names])) if names else Dialect()
