"""Real trajectories through the scoring and pairing: what a log with outcomes gives before any training.

    python examples/airline.py gpt4o_airline_trajectories.jsonl

The file is tau-bench's gpt-4o log of an airline's service desk: a conversation a line, several attempts a task, reward
0 or 1. Prints how S and each of its dimensions go with success (AUC; each attempt measured against the *other* attempts
at its task, so that its own outcome plays no part), and how many pairs (success ≻ failure at the same task) there are.

This is a check that real records pass through the pipeline. It is no result: 27 pairs of 8 tasks say nothing about S.
You should see no bad line, 60 attempts at 15 tasks, 27 pairs, and `results/airline.json` written.
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tirkit.evaluation.quality import Relation, relate, relation_table
from tirkit.evaluation.score_file import Score, ScoredFile, score_file
from tirkit.methods.autotraj.pairs import Preference, outcome_pairs
from tirkit.methods.autotraj.synthesise import JudgedGroup
from tirkit.types import Record, UserError


class Report(Record):
    """What is written. `decisions`: what the keep rule says; `higher_score`: pairs whose chosen attempt has more S."""

    attempts: int
    tasks: int
    successes: int
    bad_lines: int
    calls: int
    tool_errors: int
    decisions: dict[str, int]
    pairs: int
    tasks_with_pairs: int
    higher_score: int
    relations: tuple[Relation, ...]
    note: str = "a check of the pipeline on real records, not a result"


def judged_groups(scores: tuple[Score, ...]) -> list[JudgedGroup]:
    """The attempts by task, with blind scores."""
    groups: defaultdict[str, list[Score]] = defaultdict(list)
    for score in scores:
        groups[score.trajectory.task_id].append(score)
    return [
        JudgedGroup(
            task_id=name,
            trajectories=tuple(score.trajectory for score in group),
            scores=tuple(score.blind for score in group),
            decisions=tuple(score.decision for score in group),
        )
        for name, group in groups.items()
    ]


def make_report(scored: ScoredFile) -> tuple[Report, list[Preference]]:
    """The numbers, and the pairs."""
    scores, groups = scored.scores, judged_groups(scored.scores)
    pairs = outcome_pairs(groups)
    results = [result for score in scores for turn in score.trajectory.turns for result in turn.results]
    decisions = [str(score.decision) for score in scores]
    report = Report(
        attempts=len(scores),
        tasks=len(groups),
        successes=sum(score.quality.right is True for score in scores),
        bad_lines=len(scored.issues),
        calls=sum(len(score.trajectory.calls) for score in scores),
        tool_errors=sum(result.error is not None for result in results),
        decisions={decision: decisions.count(decision) for decision in sorted(set(decisions))},
        pairs=len(pairs),
        tasks_with_pairs=len({pair.task_id for pair in pairs}),
        higher_score=sum(pair.chosen_score > pair.rejected_score for pair in pairs),
        relations=tuple(relate([score.blind for score in scores], [score.trajectory.task_id for score in scores])),
    )
    return report, pairs


def main(
    file: Annotated[Path, typer.Argument(help="trajectories with rewards, JSONL", show_default=False)],
    out: Annotated[Path, typer.Option(help="where the numbers go")] = Path("results/airline.json"),
) -> None:
    """Score a log of real attempts and pair them by outcome."""
    report, _ = make_report(score_file(file))
    console = Console()
    console.print(relation_table(report.relations))
    console.print(
        f"{report.attempts} attempts at {report.tasks} tasks, {report.successes} right, {report.calls} calls, "
        f"{report.tool_errors} results look like errors, {report.bad_lines} bad lines\n"
        f"keep rule: {', '.join(f'{count} {decision}' for decision, count in report.decisions.items())}\n"
        f"{report.pairs} pairs success ≻ failure of {report.tasks_with_pairs} tasks; S is higher for the success in "
        f"{report.higher_score}\n{report.note}",
        highlight=False,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(report.model_dump_json(indent=1) + "\n")


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")
