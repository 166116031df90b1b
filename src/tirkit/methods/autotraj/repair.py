"""Poor and wrong attempts are rewritten: by rules first, then by a repairer that sees the attempt and never the gold.

    for every attempt to repair                            A: right but poor            B: wrong
        rules propose, the loop executes, the score judges
        repairer at T = 0, then up to 2 retries at 0.7 with the reason of the rejection
        accepted if well-formed, right, and                S > 0.86, S > the original's    S > 0.80
        else a hard case, kept for RL

Whoever repairs goes through the same loop with the same real tools; a `RepairedTask` says who did what.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tirkit.methods.autotraj.budget import Caps, Metered, Spent
from tirkit.methods.autotraj.prompts import Case, Flawed, Templates, notes
from tirkit.methods.autotraj.rules import Replay, rewrite
from tirkit.methods.autotraj.synthesise import JudgedGroup
from tirkit.rollout.chunks import ProgressFn, in_chunks
from tirkit.rollout.loop import searched_by, stable_seed
from tirkit.rollout.policy import Policy, RolloutRequest, ScriptedPolicy
from tirkit.scoring.quality import (
    Decision,
    QualityScore,
    QualitySettings,
    References,
    count_words,
    find_references,
    hedge_words,
    score_group,
)
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer
from tirkit.text.schema import canonical
from tirkit.types import Record, StopReason, Task, ToolSchema, Trajectory

LoopFn = Callable[[Sequence[RolloutRequest], Policy], list[Trajectory]]
"""The tool loop with everything but the policy, e.g. `functools.partial(rollout, renderer=…, dialect=…, …)`."""
PolicyAt = Callable[[float], Policy]
"""The repairer at a temperature."""


class Repair(Record):
    """An accepted repair, with its original and what changed. `by` is "rules" or the repairer's name."""

    task_id: str
    place: int
    case: Case
    by: str
    tries: int
    changes: tuple[str, ...]
    original: Trajectory
    original_score: QualityScore
    repaired: Trajectory
    score: QualityScore


class HardCase(Record):
    """An attempt no repair was accepted for, and why not, try by try."""

    task_id: str
    place: int
    case: Case
    reasons: tuple[str, ...]


class RepairedTask(Record):
    """What came of all attempts at one task that were to be repaired, and what the repairer spent on them."""

    task_id: str
    repairs: tuple[Repair, ...] = ()
    hard: tuple[HardCase, ...] = ()
    spent: Spent = Spent()


@dataclass(frozen=True)
class RepairSettings:
    """Who repairs what: `cases` and `rules` are the paper's ablations (no A, no B) and ours (no rules).

    `retries` at `temperature` follow a first try at 0.
    """

    cases: tuple[Case, ...] = (Case.POOR, Case.WRONG)
    rules: bool = True
    retries: int = 2
    temperature: float = 0.7
    quality: QualitySettings = field(default_factory=QualitySettings)
    caps: Caps = field(default_factory=Caps)


@dataclass
class _Open:
    """An attempt under repair."""

    flawed: Flawed
    references: References
    reasons: list[str] = field(default_factory=list)
    feedback: tuple[str, Trajectory | None] = ("", None)  # why the last rewriting was rejected, and it
    repair: Repair | None = None
    spent: Spent = field(default_factory=Spent)
    given_up: Literal["", "budget", "failed"] = ""

    @property
    def is_open(self) -> bool:
        """Whether somebody may still try."""
        return self.repair is None and not self.given_up


@dataclass
class Repairer:
    """Repairs judged groups. `policy_at` None: by rules alone.

    dialect, tools: as the loop's. renderer: gives ids to what the rules propose.
    """

    loop: LoopFn
    renderer: Renderer
    dialect: Dialect
    tools: Mapping[str, ToolSchema]
    policy_at: PolicyAt | None = None
    settings: RepairSettings = field(default_factory=RepairSettings)
    templates: Templates = field(default_factory=Templates)
    seed: int = 0

    def repair(
        self,
        groups: Sequence[JudgedGroup],
        tasks: Mapping[str, Task],
        *,
        done: Iterable[RepairedTask] = (),
        keep: Callable[[Sequence[RepairedTask]], None] | None = None,
        chunk: int = 32,
        progress: ProgressFn | None = None,
    ) -> list[RepairedTask]:
        """One record a group, in their order; `done` and `keep` as `in_chunks` has them.

        What was spent before an interruption counts; only what a chunk spent that was never stored is lost.
        """
        done, by_id = list(done), {group.task_id: group for group in groups}
        spent = sum((record.spent for record in done), Spent())

        def work(part: Sequence[Task]) -> list[RepairedTask | None]:
            nonlocal spent
            opened = [self._open(by_id[task.id], task) for task in part]
            spent = self._repair([one for group in opened for one in group], spent)
            return [self._record(task, group) for task, group in zip(part, opened, strict=True)]

        chosen = [tasks[group.task_id] for group in groups]
        return in_chunks(chosen, work, done=done, keep=keep, chunk=chunk, progress=progress)

    def _open(self, group: JudgedGroup, task: Task) -> list[_Open]:
        right = [score.right for score in group.scores]
        references = find_references(group.trajectories, task, self.settings.quality, right)
        flawed = [
            Flawed(task, place, trajectory, score)
            for place, (trajectory, score) in enumerate(zip(group.trajectories, group.scores, strict=True))
            if group.decisions[place] is Decision.REPAIR
        ]
        return [_Open(one, references) for one in flawed if one.case in self.settings.cases]

    def _repair(self, opened: list[_Open], spent: Spent) -> Spent:
        """Rules, then the repairer's tries, each for all that is left; what has been spent by then."""
        if self.settings.rules:
            self._by_rules(opened)
        for number in range(self.settings.retries + 1 if self.policy_at else 0):
            left = [one for one in opened if one.is_open]
            if not left:
                break
            spent = self._by_policy(left, number, spent)
        return spent

    def _by_rules(self, opened: list[_Open]) -> None:
        proposed = [(one, rewrite(one.flawed.trajectory, one.flawed.task, self.dialect, self.tools)) for one in opened]
        changed = [(one, rewriting) for one, rewriting in proposed if rewriting is not None]
        texts = {one.flawed.key: rewriting.texts for one, rewriting in changed}
        policy = ScriptedPolicy(Replay(texts), self.renderer, "rules")
        requests = [
            RolloutRequest(one.flawed.task.model_copy(update={"id": one.flawed.key}), one.flawed.trajectory.copy_index)
            for one, _ in changed
        ]
        for (one, rewriting), attempt in zip(changed, self._roll(requests, policy), strict=True):
            self._judge(one, attempt, "rules", 1, rewriting.changes)

    def _by_policy(self, opened: list[_Open], number: int, spent: Spent) -> Spent:
        assert self.policy_at is not None
        policy = Metered(self.policy_at(self.settings.temperature if number else 0.0), self.settings.caps, spent)
        requests: list[RolloutRequest] = []
        for one in opened:
            flawed = one.flawed
            # What the rules made of it is no concern of the repairer's.
            prompt = self.templates.messages(flawed, *(one.feedback if number else ("", None)))
            asked = {"id": f"{flawed.key}.{number}", "prompt": prompt, "query": searched_by(flawed.task)}
            task = flawed.task.model_copy(update=asked)
            seed = stable_seed(self.seed, "repair", task.id)
            requests.append(RolloutRequest(task, flawed.trajectory.copy_index, seed))
        for one, request, attempt in zip(opened, requests, self._roll(requests, policy), strict=True):
            one.spent += policy.by_task[request.task.id]
            if attempt.stop is StopReason.POLICY_FAILED:
                one.given_up = "budget" if request.task.id in policy.refused else "failed"
            else:
                self._judge(one, attempt, policy.name, number + 1, ())
        return policy.total

    def _roll(self, requests: list[RolloutRequest], policy: Policy) -> list[Trajectory]:
        return self.loop(requests, policy) if requests else []

    def _judge(self, one: _Open, attempt: Trajectory, by: str, tries: int, changes: tuple[str, ...]) -> None:
        """Accept the attempt, or note why not."""
        flawed = one.flawed
        repaired = as_attempt_at(flawed, attempt)
        (score,) = score_group([repaired], flawed.task, self.settings.quality, references=one.references)
        if reason := rejection(flawed, repaired, score, self.settings.quality):
            one.reasons.append(f"{by}: {reason}")
            one.feedback = reason, repaired
            return
        one.repair = Repair(
            task_id=flawed.task.id,
            place=flawed.place,
            case=flawed.case,
            by=by,
            tries=tries,
            changes=(*changes, *what_changed(flawed.trajectory, repaired)),
            original=flawed.trajectory,
            original_score=flawed.score,
            repaired=repaired,
            score=score,
        )

    def _record(self, task: Task, opened: list[_Open]) -> RepairedTask | None:
        """None where the endpoint failed: nothing is known of that task yet."""
        if any(one.given_up == "failed" for one in opened):
            return None
        hard = [
            HardCase(
                task_id=task.id,
                place=one.flawed.place,
                case=one.flawed.case,
                reasons=(*one.reasons, *(["the budget is used up"] if one.given_up == "budget" else [])),
            )
            for one in opened
            if one.repair is None
        ]
        repairs = tuple(one.repair for one in opened if one.repair is not None)
        return RepairedTask(
            task_id=task.id,
            repairs=repairs,
            hard=tuple(hard),
            spent=sum((one.spent for one in opened), Spent()),
        )


def as_attempt_at(flawed: Flawed, attempt: Trajectory) -> Trajectory:
    """What a repairer did, as an attempt at the task itself: its prompt is the original's, so are its place and seed.

    Log-probs are left out: they were those of another prompt.
    """
    turns = tuple(turn.model_copy(update={"logps": ()}) for turn in attempt.turns)
    original = flawed.trajectory
    return attempt.model_copy(
        update={
            "task_id": flawed.task.id,
            "prompt": original.prompt,
            "prompt_ids": original.prompt_ids,
            "turns": turns,
            "copy_index": original.copy_index,
            "seed": original.seed,
        }
    )


def rejection(flawed: Flawed, repaired: Trajectory, score: QualityScore, settings: QualitySettings) -> str:
    """Why a repair is not accepted, in words for the repairer; "" where it is. All comparisons are strict."""
    if score.well_formed < 1:
        return "; ".join(["it is not well-formed", *notes(repaired)])
    if score.right is None:
        return "nothing says whether it is right"
    if not score.right:
        return "its outcome is wrong"
    if flawed.trajectory.mode is not None and repaired.mode != flawed.trajectory.mode:
        return f"it must begin in the mode of the attempt, {flawed.trajectory.mode}"
    wanted = settings.accept_poor if flawed.case is Case.POOR else settings.accept_wrong
    if score.total <= wanted:
        return f"its quality is {score.total:.3f}, more than {wanted} is wanted"
    # An attempt that is not well-formed may well be the shortest right one, and lose nothing else by its form.
    comparable = flawed.case is Case.POOR and flawed.score.well_formed == 1
    if comparable and score.total <= flawed.score.total:
        return f"its quality is {score.total:.3f}, no better than the attempt's {flawed.score.total:.3f}"
    return ""


def what_changed(original: Trajectory, repaired: Trajectory) -> tuple[str, ...]:
    """The differences that matter, in words.

    >>> from tirkit.types import Turn
    >>> one = Trajectory(task_id="t", prompt=(), turns=(Turn(text="a b", answer="1"),), stop=StopReason.ANSWERED)
    >>> what_changed(one, one.model_copy(update={"turns": (Turn(text="a", answer="2"),)}))
    ("answer '1' → '2'", 'words 2 → 1')
    """
    changes: list[str] = []
    before, after = ([canonical(call) for call in t.calls] for t in (original, repaired))
    if before != after:
        changes.append(f"calls {len(before)} → {len(after)}, {len(set(after) - set(before))} of them new")
    if original.answer != repaired.answer:
        changes.append(f"answer {original.answer!r} → {repaired.answer!r}")
    if gone := [word for word in hedge_words(original) if word not in hedge_words(repaired)]:
        changes.append(f"without {', '.join(gone)}")
    if original.stop is not repaired.stop:
        changes.append(f"ended {original.stop} → {repaired.stop}")
    if (words := count_words(original)) != (now := count_words(repaired)):
        changes.append(f"words {words} → {now}")
    return tuple(changes)
