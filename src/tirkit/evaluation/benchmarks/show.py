"""Outcomes of benchmarks as tables of text."""

from collections.abc import Sequence

from tirkit.evaluation.benchmarks.base import by_category
from tirkit.evaluation.benchmarks.folder import Outcome
from tirkit.evaluation.metrics import Estimate, estimate
from tirkit.evaluation.tables import EMPTY, percent

COLUMNS = {  # metric: (head, whether it is a share)
    "success": ("right %", True),
    "call_em": ("call EM %", True),
    "false_call": ("false calls %", True),
    "thinks": ("thinks %", True),
    "prompt_tokens": ("prompt tokens", False),
    "output_tokens": ("output tokens", False),
}


def outcomes_table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a row a benchmark, means ± standard error over its cases; then what each leaderboard reports."""
    heads = [head for head, _ in COLUMNS.values()]
    lines = [f"| benchmark | n | {' | '.join(heads)} | scored by |", "|---" * (len(heads) + 3) + "|"]
    for outcome in outcomes:
        result = outcome.evaluation()
        cells = [_cell(result.estimate(metric), share) for metric, (_, share) in COLUMNS.items()]
        lines.append(
            f"| {outcome.benchmark.name} | {len(outcome.results)} | {' | '.join(cells)} | {outcome.summary.checker} |"
        )
    for outcome in outcomes:
        lines += [
            "",
            f"**{outcome.benchmark.name}**: {totals_text(outcome)}",
            "",
            *(f"- {note}" for note in notes(outcome)),
        ]
    return "\n".join(lines)


def categories_table(outcome: Outcome) -> str:
    """Markdown: a row a category: cases, percent right ± standard error, why the others are wrong."""
    lines = ["| category | n | right % | wrong since |", "|---|---|---|---|"]
    for category, results in by_category(outcome.results).items():
        reasons: dict[str, int] = {}
        for result in results:
            if result.score.why:
                reasons[result.score.why] = reasons.get(result.score.why, 0) + 1
        why = ", ".join(f"{reason} {n}" for reason, n in sorted(reasons.items(), key=lambda item: -item[1]))
        right = percent(estimate(result.score.right for result in results))
        lines.append(f"| {category} | {len(results)} | {right} | {why} |")
    return "\n".join(lines)


def _cell(value: Estimate | None, share: bool) -> str:
    if value is None:
        return EMPTY
    return percent(value) if share else f"{value.mean:,.0f}"


def totals_text(outcome: Outcome) -> str:
    """The leaderboard's aggregates, in percent."""
    return ", ".join(f"{name} {EMPTY if v is None else f'{100 * v:.1f}'}" for name, v in outcome.totals.items())


def notes(outcome: Outcome) -> list[str]:
    """What a reader of the numbers must know."""
    about = outcome.summary
    known = [
        (str(about.overlap), True),
        (f"{outcome.unanswered} cases were not answered: run again", outcome.unanswered),
        (f"{about.left_out} cases left out: the model's catalogue lacks their tools", about.left_out),
        (f"{about.trained_on} cases left out: training questions equal or resemble them", about.trained_on),
        (f"{about.num_issues} records of the data could not be used", about.num_issues),
    ]
    return [text for text, holds in known if holds]
