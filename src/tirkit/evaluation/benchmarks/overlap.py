"""What a benchmark's questions share with what a model was trained on; a number is worth little without it."""

from collections.abc import Iterable, Sequence

from tirkit.evaluation.benchmarks.base import Case
from tirkit.methods.autotraj.pairs import NGRAM, contaminated
from tirkit.types import Record, Task, ToolSchema


class Overlap(Record):
    """Questions of `cases` that equal a training question, or share 13 words in a row with one (by id: which); tool
    names of the cases that occur in training.
    """

    num_training: int
    num_cases: int
    equal: dict[str, str]
    similar: dict[str, str]
    num_tools: int
    shared_tools: tuple[str, ...]

    def __str__(self) -> str:
        if not self.num_training:
            return "overlap with training not checked: no training questions were given"
        return (
            f"checked against {self.num_training:,} training questions: {len(self.equal)} of {self.num_cases:,} equal "
            f"one, {len(self.similar)} more share {NGRAM} words in a row with one; "
            f"{len(self.shared_tools):,} of {self.num_tools:,} tool names occur in training"
        )


def overlap(cases: Sequence[Case], training: Iterable[Task], training_tools: Iterable[ToolSchema] = ()) -> Overlap:
    """Check the cases against the tasks a model was trained on, and the tools it was trained on or remembers."""
    training = list(training)
    found = contaminated((case.task for case in cases), training)
    # It was written for the other direction: here the questions compared with are those of training.
    found = {name: why.replace("evaluation question", "training question") for name, why in found.items()}
    equal = {name: why for name, why in found.items() if why.startswith("equals")}
    seen = {call.name for task in training for call in task.gold_calls or ()}
    seen |= {tool.original_name or tool.name for tool in training_tools}
    names = {tool.name for case in cases for tool in case.tools}
    names |= {call.name for case in cases for call in case.task.gold_calls or ()}
    return Overlap(
        num_training=len(training),
        num_cases=len(cases),
        equal=equal,
        similar={name: why for name, why in found.items() if name not in equal},
        num_tools=len(names),
        shared_tools=tuple(sorted(names & seen)),
    )
