"""Results → rows of text, for the terminal and the report alike. Several seeds of one arm make one row."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tirkit.evaluation.metrics import Estimate, estimate, groups_of, paired_over_seeds
from tirkit.evaluation.run import EvaluationResult

EMPTY = "–"
LEGEND = {"prompt": "prompt", "trained": "trained on (written by the policy)", "masked": "handed back, not trained on"}
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")


@dataclass(frozen=True)
class Column:
    """A metric over a group of items; a share is shown in percent, anything else as a plain mean."""

    key: str
    head: str
    metric: str
    group: str = "all"
    share: bool = True

    def text(self, value: Estimate | None) -> str:
        """'81.2 ± 2.1' in percent, or '143'."""
        if value is None:
            return EMPTY
        return percent(value) if self.share else f"{value.mean:.3g}" if value.mean < 100 else f"{value.mean:,.0f}"


HEADLINE = (
    Column("success", "accuracy %", "success"),
    Column("seen", "seen tools %", "success", "seen"),
    Column("unseen", "unseen tools %", "success", "unseen"),
    Column("call_em", "call EM %", "call_em"),
    Column("prompt_tokens", "prompt tokens", "prompt_tokens", share=False),
    Column("reply_tokens", "tokens handed back", "reply_tokens", share=False),
    Column("output_tokens", "output tokens", "output_tokens", share=False),
    Column("seconds", "seconds a task", "seconds", share=False),
)
SHARES = {
    "success": "accuracy",
    "id_em": "id EM",
    "id_f1": "id F1",
    "call_em": "call EM",
    "tool_accuracy": "tool accuracy",
    "parameter_accuracy": "parameter accuracy",
    "parameter_given_tool": "parameters given tool",
    "joint_accuracy": "joint accuracy",
    "seen_tool_recall": "tools found, seen",
    "seen_call_recall": "calls found, seen",
    "unseen_tool_recall": "tools found, unseen",
    "unseen_call_recall": "calls found, unseen",
    "valid_json": "valid JSON",
    "well_formed": "well-formed",
}


@dataclass(frozen=True)
class ArmRow:
    """One arm's estimates and their text, by column key."""

    arm: str
    seeds: tuple[int, ...]
    estimates: dict[str, Estimate | None]
    cells: dict[str, str]


def percent(value: Estimate | None) -> str:
    """Mean ± standard error in percent, one decimal.

    >>> percent(Estimate(mean=0.8125, stderr=0.02, low=0.77, high=0.85, n=400))
    '81.2 ± 2.0'
    """
    if value is None:
        return EMPTY
    return f"{100 * value.mean:.1f}" if value.stderr is None else f"{100 * value.mean:.1f} ± {100 * value.stderr:.1f}"


def by_arm(results: Sequence[EvaluationResult]) -> dict[str, list[EvaluationResult]]:
    """Arm → its results, one a seed, both in order of appearance."""
    arms: dict[str, list[EvaluationResult]] = {}
    for result in results:
        arms.setdefault(result.arm, []).append(result)
    return arms


def pooled(results: Sequence[EvaluationResult], metric: str, group: str = "all") -> dict[str, float | None]:
    """The metric by task id, averaged over the seeds of one arm."""
    per_seed = [result.values(metric, group) for result in results]
    names = dict.fromkeys(task for values in per_seed for task in values)
    found = {task: [v for values in per_seed if (v := values.get(task)) is not None] for task in names}
    return {task: sum(values) / len(values) if values else None for task, values in found.items()}


def arm_rows(results: Sequence[EvaluationResult], columns: Sequence[Column] = HEADLINE) -> list[ArmRow]:
    """One row an arm."""
    rows: list[ArmRow] = []
    for arm, runs in by_arm(results).items():
        values = {column.key: estimate(pooled(runs, column.metric, column.group).values()) for column in columns}
        cells = {column.key: column.text(values[column.key]) for column in columns}
        rows.append(ArmRow(arm, tuple(run.seed for run in runs), values, cells))
    return rows


def columns_with_values(rows: Sequence[ArmRow], columns: Sequence[Column] = HEADLINE) -> list[Column]:
    """The columns that at least one arm has a value in."""
    return [column for column in columns if any(row.estimates[column.key] is not None for row in rows)]


def group_names(results: Sequence[EvaluationResult]) -> list[str]:
    """All groups that occur: 'all', 'seen', 'unseen' first, then the kinds by name."""
    names = {group for result in results for item in result.items for group in groups_of(item)}
    first = [name for name in ("all", "seen", "unseen") if name in names]
    return first + sorted(names - set(first))


def group_columns(results: Sequence[EvaluationResult], metric: str) -> list[Column]:
    """One column of `metric` a group."""
    return [Column(name, name.removeprefix("kind: "), metric, name) for name in group_names(results)]


def differences(results: Sequence[EvaluationResult], metric: str = "success") -> list[tuple[str, Estimate]]:
    """(arm, first arm - that arm) for every other arm, over the seeds that both have and the same tasks."""
    arms = {arm: {run.seed: run.values(metric) for run in runs} for arm, runs in by_arm(results).items()}
    found: list[tuple[str, Estimate]] = []
    for arm in list(arms)[1:]:
        first, other = next(iter(arms.values())), arms[arm]
        seeds = [seed for seed in first if seed in other]
        if all(first[seed].keys() == other[seed].keys() for seed in seeds):
            value = paired_over_seeds([first[seed] for seed in seeds], [other[seed] for seed in seeds])
            found += [(arm, value)] if value is not None else []
    return found


def not_compared(results: Sequence[EvaluationResult]) -> list[str]:
    """Arms of which `differences` says nothing: they answered other questions than the first one, or no seed of its."""
    compared = {arm for arm, _ in differences(results)}
    return [arm for arm in list(by_arm(results))[1:] if arm not in compared]


def counts(results: Sequence[EvaluationResult]) -> tuple[dict[str, Counter[str]], dict[str, Counter[str]]]:
    """Arm → how often each stop reason, and each problem (what stands in quotes left out), occurred."""
    stops: dict[str, Counter[str]] = {}
    problems: dict[str, Counter[str]] = {}
    for arm, runs in by_arm(results).items():
        items = [item for run in runs for item in run.items]
        stops[arm] = Counter(str(item.stop) for item in items)
        problems[arm] = Counter(kind_of(problem) for item in items for problem in item.problems)
    return stops, problems


def kind_of(problem: str) -> str:
    """A problem without what is special to one case (what it quotes, a call's number), so that it can be counted.

    >>> kind_of("unknown tool 'fetch'"), kind_of("call 2: bad JSON in '{'")
    ("unknown tool '…'", "call: bad JSON in '…'")
    """
    return re.sub(r"^call \d+", "call", _QUOTED.sub("'…'", problem))


def seeds_note(results: Sequence[EvaluationResult]) -> str:
    """What the ± means, and over how many seeds it was measured."""
    seeds = sorted({result.seed for result in results})
    note = "± is the standard error over items. "
    if len(seeds) == 1:
        return note + f"One seed ({seeds[0]}): another seed would give other numbers, and ± does not say how far off."
    return note + f"Means over the seeds {', '.join(map(str, seeds))}; ± does not cover how seeds differ."


def visible(text: str) -> str:
    r"""The text with its control characters written as escapes, newlines and tabs excepted.

    >>> visible("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    if text.translate({ord("\n"): None, ord("\t"): None}).isprintable():  # nearly always
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def duration(seconds: float) -> str:
    """m:ss, or h:mm:ss; '?' where it is not known.

    >>> duration(75), duration(3675), duration(float("inf"))
    ('1:15', '1:01:15', '?')
    """
    if not seconds < float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
