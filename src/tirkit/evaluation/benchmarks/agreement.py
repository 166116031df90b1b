"""Our comparison of calls held against the authors' checker: on gold, and on thousands of predictions near it."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tirkit.evaluation.benchmarks.base import Case
from tirkit.evaluation.benchmarks.mutants import mutants
from tirkit.types import ToolCall

Problem = Callable[[Sequence[ToolCall], Case], str]  # why calls are wrong, "" where they are right
Accepted = Callable[[Case], Sequence[Mapping[str, Sequence[Any]]]]  # call by call, the values of every parameter
CRASH = "crash"


@dataclass(frozen=True)
class Disagreement:
    """One prediction that only one of the two calls right; `ours` and `theirs` say why not, "" is right."""

    case: Case
    change: str
    calls: tuple[ToolCall, ...]
    ours: str
    theirs: str


@dataclass(frozen=True)
class Agreement:
    """How often both said right, both wrong; where they differ."""

    both_right: int
    both_wrong: int
    disagreements: tuple[Disagreement, ...]

    @property
    def num_compared(self) -> int:
        """Predictions that both judged."""
        return self.both_right + self.both_wrong + len(self.disagreements)

    def classes(self) -> Counter[tuple[str, str, str, str]]:
        """(category, change, ours, theirs) → how often."""
        return Counter((d.case.task.kind, d.change, d.ours or "right", d.theirs or "right") for d in self.disagreements)


def compare(
    cases: Iterable[Case],
    ours: Problem,
    theirs: Problem,
    accepted: Accepted,
    num_mutants: int = 5,
    seed: int = 0,
) -> Agreement:
    """Both checkers on the gold calls of every case that has some, and on `num_mutants` changed copies of each.

    A checker of theirs that raises counts as wrong, with "crash" as the reason.
    """
    rng = random.Random(seed)
    counts: Counter[bool] = Counter()
    found: list[Disagreement] = []
    for case in cases:
        gold = case.task.gold_calls
        if not gold:
            continue
        for change, calls in [("gold", list(gold)), *mutants(gold, accepted(case), rng, num_mutants)]:
            mine, other = ours(calls, case), _guarded(theirs, calls, case)
            if bool(mine) is bool(other):
                counts[not mine] += 1
            else:
                found.append(Disagreement(case, change, tuple(calls), mine, other))
    return Agreement(counts[True], counts[False], tuple(found))


def _guarded(problem: Problem, calls: Sequence[ToolCall], case: Case) -> str:
    try:
        return problem(calls, case)
    except Exception as error:  # whatever a checker of others raises on odd input
        return f"{CRASH}: {type(error).__name__}"


def agreement_table(agreements: Mapping[str, Agreement]) -> str:
    """Markdown: a row a checker, then a row a class of disagreement."""
    lines = ["| checker | predictions | both right | both wrong | differ |", "|---|---|---|---|---|"]
    for name, found in agreements.items():
        counts = (found.num_compared, found.both_right, found.both_wrong, len(found.disagreements))
        lines.append(f"| {name} | {' | '.join(f'{count:,}' for count in counts)} |")
    lines += ["", "| checker | category | change | ours | theirs | n |", "|---|---|---|---|---|---|"]
    for name, found in agreements.items():
        lines += [f"| {name} | {' | '.join(kind)} | {n} |" for kind, n in found.classes().most_common()]
    return "\n".join(lines)
