"""What changes in how a model is asked do to it: each changed run against the plain one, case by case."""

from collections.abc import Mapping, Sequence

from tirkit.evaluation.benchmarks.changes import KINDS, Kind
from tirkit.evaluation.benchmarks.folder import Outcome
from tirkit.evaluation.metrics import estimate
from tirkit.evaluation.paired import compare
from tirkit.evaluation.tables import EMPTY, percent


def robustness_table(plain: Sequence[Outcome], changed: Mapping[Kind, Sequence[Outcome]]) -> str:
    """Markdown: a row a benchmark and change; points and their interval over the cases that both runs answered.

    `obeys`: of the attempts that read an order in a tool's result, those that followed it.
    """
    lines = [
        "| benchmark | change | n | plain % | changed % | points | 95 % interval | lost / won | p | obeys % |",
        "|---" * 10 + "|",
    ]
    for outcome in plain:
        for kind, outcomes in changed.items():
            other = next((one for one in outcomes if one.benchmark is outcome.benchmark), None)
            if other is not None:
                lines.append(f"| {outcome.benchmark.name} | {kind} | {' | '.join(_cells(outcome, other))} |")
    about = [f"- {kind}: {KINDS[kind]}" for kind in changed]
    return "\n".join([*lines, "", "points: changed − plain; p: exact sign test on the cases that changed side", *about])


def _cells(plain: Outcome, changed: Outcome) -> list[str]:
    rights = [{result.case_id: result.score.right for result in one.results} for one in (changed, plain)]
    paired = compare(rights[0], rights[1])
    if paired is None:
        return [EMPTY] * 8
    difference = paired.difference
    return [
        str(difference.n),
        percent(paired.second),
        percent(paired.first),
        f"{100 * difference.mean:+.1f}",
        f"{100 * difference.low:+.1f} … {100 * difference.high:+.1f}",
        f"{len(paired.only_second)} / {len(paired.only_first)}",
        f"{paired.p_value:.2g}",
        percent(estimate(result.score.values.get("obeyed") for result in changed.results)),
    ]
