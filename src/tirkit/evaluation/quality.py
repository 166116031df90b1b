"""Does a quality score go with success? AUC of S and of each of its dimensions, with an interval over tasks.

AUC: how often a random successful attempt scores higher than a random failed one, ties counting half; 0.5 is chance.
"within": the same over pairs of attempts at one task, where the task's difficulty plays no part. An interval is over
tasks, not attempts: attempts at one task resemble each other.

L* and the fewest calls are taken from right attempts, so ℓ and S know the outcome: the shortest right attempt scores
1 because it is right. To see what they say beyond that, `blind_scores` measures each attempt against the others only.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from rich.table import Table

from tirkit.evaluation.metrics import COVERAGE, NUM_RESAMPLES, Estimate
from tirkit.scoring.quality import QualityScore, QualitySettings, find_references, score_group
from tirkit.types import Record, Task, Trajectory

DIMENSIONS: Mapping[str, Callable[[QualityScore], float | None]] = {
    "S": lambda score: score.total,
    "hesitation": lambda score: score.hesitation,
    "length": lambda score: score.length,
    "repetition": lambda score: score.repetition,
    "tool efficiency": lambda score: score.tool_efficiency,
    "no tool errors": lambda score: None if score.tool_error_rate is None else 1 - score.tool_error_rate,
    "well-formed": lambda score: score.well_formed,
    "fewer words": lambda score: -score.words,
}


class Relation(Record):
    """How one dimension goes with success; an AUC is None where there is no pair of a success and a failure."""

    dimension: str
    auc: Estimate | None
    within: Estimate | None


def blind_scores(
    trajectories: Sequence[Trajectory], task: Task, right: Sequence[bool | None], settings: QualitySettings
) -> tuple[QualityScore, ...]:
    """Scores of the attempts at one task, each measured against the others: its own outcome plays no part."""
    scores: list[QualityScore] = []
    for i, trajectory in enumerate(trajectories):
        others = [*trajectories[:i], *trajectories[i + 1 :]]
        references = find_references(others, task, settings, [*right[:i], *right[i + 1 :]], min_attempts=1)
        scores += score_group([trajectory], task, settings, references=references, right=[right[i]])
    return tuple(scores)


def relate(scores: Sequence[QualityScore], tasks: Sequence[str], seed: int = 0) -> list[Relation]:
    """One relation a dimension, over the scores whose `right` is known. tasks: the id of each score's task."""
    known = [(score, task) for score, task in zip(scores, tasks, strict=True) if score.right is not None]
    relations: list[Relation] = []
    for name, read in DIMENSIONS.items():
        points = [(value, bool(score.right), task) for score, task in known if (value := read(score)) is not None]
        relations.append(Relation(dimension=name, auc=_auc(points, False, seed), within=_auc(points, True, seed)))
    return relations


def relation_table(relations: Sequence[Relation]) -> Table:
    """The relations as a table: AUC, its interval, and the numbers of pairs behind it."""
    table = Table(title="how the scores go with success (AUC, 95 % interval over tasks)", title_justify="left")
    for head in ("", "all attempts", "pairs", "within tasks", "pairs"):
        table.add_column(head, justify="left" if not head else "right")
    for relation in relations:
        table.add_row(relation.dimension, *_cells(relation.auc), *_cells(relation.within))
    return table


def _cells(value: Estimate | None) -> tuple[str, str]:
    return ("–", "0") if value is None else (f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]", str(value.n))


def _auc(points: Sequence[tuple[float, bool, str]], within: bool, seed: int) -> Estimate | None:
    """AUC over (value, success, task); resampling draws tasks. `n` counts pairs."""
    names = sorted({task for _, _, task in points})
    place = {task: i for i, task in enumerate(names)}
    good = [(value, place[task]) for value, success, task in points if success]
    bad = [(value, place[task]) for value, success, task in points if not success]
    if not good or not bad:
        return None
    values_G, tasks_G = np.array(good).T
    values_F, tasks_F = np.array(bad).T
    tasks_G, tasks_F = tasks_G.astype(int), tasks_F.astype(int)
    won_GF = (values_G[:, None] > values_F) + 0.5 * (values_G[:, None] == values_F)
    counted_GF = (tasks_G[:, None] == tasks_F) if within else np.ones_like(won_GF)
    if not counted_GF.any():
        return None
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), NUM_RESAMPLES)
    # A task drawn twice brings each of its attempts twice; two draws of it are not pairs of one another within it.
    weights_G = np.ones_like(counts[:, tasks_G]) if within else counts[:, tasks_G]
    weights_F = counts[:, tasks_F]
    totals = np.einsum("rg,gf,rf->r", weights_G, counted_GF, weights_F)
    drawn = np.einsum("rg,gf,rf->r", weights_G, won_GF * counted_GF, weights_F)[totals > 0] / totals[totals > 0]
    low, high = np.quantile(drawn, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Estimate(
        mean=float((won_GF * counted_GF).sum() / counted_GF.sum()),
        stderr=float(drawn.std()),
        low=float(low),
        high=float(high),
        n=int(counted_GF.sum()),
    )
