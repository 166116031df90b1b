"""What the repairer is shown: the question, the flawed attempt, what the environment said. Never the gold.

The texts are Jinja templates in the folder `prompts`, one a case; a folder of one's own may replace them. Variables:
question, attempt (turns and replies as text), notes (errors and stop reason), weaknesses (of a right attempt), reason
and rejected (why the last rewriting was not accepted, and its text; empty at first).
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

from tirkit.scoring.quality import QualityScore, hedge_words
from tirkit.types import Message, StopReason, Task, Trajectory, UserError

FOLDER = Path(__file__).parent / "prompts"


class Case(StrEnum):
    """Why an attempt is repaired: right but poor (the paper's case A), or wrong (case B). The template's name."""

    POOR = "poor"
    WRONG = "wrong"


class PromptError(UserError):
    """A repair prompt cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Flawed:
    """An attempt to repair; `place` is its place among the attempts at its task."""

    task: Task
    place: int
    trajectory: Trajectory
    score: QualityScore

    @property
    def case(self) -> Case:
        """By whether it is right."""
        return Case.POOR if self.score.right else Case.WRONG

    @property
    def key(self) -> str:
        """Names it among all attempts of a run."""
        return f"{self.task.id}#{self.place}"


class Templates:
    """The repair prompts of a folder. Raises PromptError where one is missing, broken or uses an unknown variable."""

    def __init__(self, folder: Path | None = None):
        folder = folder or FOLDER
        environment = Environment(
            loader=FileSystemLoader(folder), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=False
        )
        probe = dict.fromkeys(("question", "attempt", "reason", "rejected"), "x") | {
            "notes": ["x"],
            "weaknesses": ["x"],
        }
        self._templates = {}
        for case in Case:
            try:
                self._templates[case] = environment.get_template(f"{case}.jinja")
                self._templates[case].render(probe)
            except (TemplateError, OSError, UnicodeDecodeError) as error:
                reason = f"{type(error).__name__}: {error}"
                raise PromptError(f"repair prompt {folder / f'{case}.jinja'} cannot be used: {reason}") from error

    def messages(self, flawed: Flawed, reason: str = "", rejected: Trajectory | None = None) -> tuple[Message, ...]:
        """The repairer's prompt: the task's system messages, then the filled template as the user's."""
        system = [message for message in flawed.task.prompt if message.role == "system"]
        text = self._templates[flawed.case].render(
            question=question_text(flawed.task),
            attempt=attempt_text(flawed.trajectory),
            notes=notes(flawed.trajectory),
            weaknesses=weaknesses(flawed.trajectory, flawed.score),
            reason=reason,
            rejected="" if rejected is None else attempt_text(rejected),
        )
        return (*system, Message(role="user", content=text.strip()))


def question_text(task: Task) -> str:
    """What the task asks: its one message, or its conversation with the speakers' names."""
    asked = [message for message in task.prompt if message.role != "system"]
    if len(asked) == 1:
        return asked[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in asked)


def attempt_text(trajectory: Trajectory) -> str:
    """An attempt as text to read: every turn and what was handed back."""
    lines: list[str] = []
    for turn in trajectory.turns:
        lines.append(f"[assistant]\n{turn.text}")
        lines += [f"[{message.role}]\n{message.content}" for message in turn.reply]
    return "\n".join(lines)


_STOPS = {
    StopReason.MAX_CALLS: "it made more tool calls than allowed",
    StopReason.MAX_TURNS: "it took more turns than allowed",
    StopReason.MAX_TOKENS: "it was cut off: too long",
    StopReason.MALFORMED: "a turn could not be read",
    StopReason.ABSTAINED: "it named unknown tools twice",
}


def notes(trajectory: Trajectory) -> list[str]:
    """What the environment has to say of an attempt: problems of its turns, errors of its tools, why it ended."""
    said: list[str] = []
    for number, turn in enumerate(trajectory.turns, 1):
        said += [f"turn {number}: {problem}" for problem in turn.problems]
        said += [f"turn {number}: tool {r.name!r}: {r.content}" for r in turn.results if r.error is not None]
    return said + ([_STOPS[trajectory.stop]] if trajectory.stop in _STOPS else [])


def weaknesses(trajectory: Trajectory, score: QualityScore) -> list[str]:
    """What costs an attempt its score, in words."""
    said: list[str] = []
    if hedges := hedge_words(trajectory):
        said.append(f"it hedges: {', '.join(hedges)}")
    if score.length is not None and score.length < 1 and score.reference_words is not None:
        more = "longer" if score.words > score.reference_words else "shorter"
        said.append(f"it is {more} than need be: {score.words} words, where {score.reference_words} would do")
    if score.repetition < 1:
        said.append(f"it repeats itself: {1 - score.repetition:.0%} of its three-word sequences occur more than once")
    if score.tool_error_rate:
        said.append(f"{score.tool_error_rate:.0%} of its tool calls fail")
    if score.well_formed < 1:
        said.append("it does not keep to the form")
    return said
