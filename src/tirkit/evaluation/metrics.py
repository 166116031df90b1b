"""Numbers of one attempt, and means over attempts with their error. Pure.

An `Item` is one task attempted once, its metrics by name. A metric is a number in [0, 1] or a count; it is None where
the task does not judge it (the calls of a task that has no gold calls), and such items are left out of its mean.

An interval is over items: it says how far the mean could move with other questions, not with another seed.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from scipy import stats

from tirkit.scoring.calls import call_scores, recalled
from tirkit.scoring.match import Verdict, verdict
from tirkit.types import Record, StopReason, Task, Trajectory

NUM_RESAMPLES = 2000
COVERAGE = 0.95
CALL_METRICS = (
    "id_em",
    "id_f1",
    "call_em",
    "tool_accuracy",
    "parameter_accuracy",
    "parameter_given_tool",
    "joint_accuracy",
    "valid_json",
)


class Estimate(Record):
    """A mean over `n` items, its standard error (None for one item) and its 95 % bootstrap interval `low` … `high`.

    >>> str(Estimate(mean=0.75, stderr=0.25, low=0.25, high=1.0, n=4))
    '0.750 ± 0.250'
    """

    mean: float
    stderr: float | None
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.stderr is None else f"{self.mean:.3f} ± {self.stderr:.3f}"


class Item(Record):
    """What one attempt at one task came to. `seen` is None where the task has no gold calls to judge it by."""

    task_id: str
    kind: str = ""
    seen: bool | None = None
    metrics: dict[str, float | None]
    stop: StopReason
    problems: tuple[str, ...] = ()


class Knowledge(Record):
    """How well one tool is remembered: document → token, token → document (exact, and field F1)."""

    name: str
    seen: bool | None = None
    memorise: float
    recall: float
    recall_f1: float


def estimate(values: Iterable[float | None], seed: int = 0) -> Estimate | None:
    """Mean, standard error s / √n and percentile bootstrap interval over the values that are not None.

    Resampling n values with replacement draws how often each distinct value occurs from a multinomial, so that is what
    is drawn. None if there is no value. Where all values are equal, error and interval are 0 wide: of n failures and no
    success, take 3 / n as the upper end.
    """
    x = np.array([value for value in values if value is not None], dtype=float)
    if len(x) == 0:
        return None
    distinct, counts = np.unique(x, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(x), counts / len(x), size=NUM_RESAMPLES)
    low, high = np.quantile(draws @ distinct / len(x), [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    stderr = float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else None
    return Estimate(mean=float(x.mean()), stderr=stderr, low=float(low), high=float(high), n=len(x))


def paired_difference(
    first: Mapping[str, float | None], second: Mapping[str, float | None], seed: int = 0
) -> Estimate | None:
    """Estimate of `first - second`, task by task: the same questions put to two arms.

    Tasks that either arm leaves unjudged are left out. Raises ValueError if the arms answered different tasks.
    """
    if first.keys() != second.keys():
        odd = sorted(first.keys() ^ second.keys())
        raise ValueError(f"paired arms must have the same tasks; only one of them has {odd[:3]} ({len(odd)} in all)")
    pairs = ((first[task], second[task]) for task in first)
    return estimate((a - b for a, b in pairs if a is not None and b is not None), seed)


def paired_over_seeds(
    first: Sequence[Mapping[str, float | None]], second: Sequence[Mapping[str, float | None]], seed: int = 0
) -> Estimate | None:
    """Estimate of `first - second`; entry i of each holds the values by task of its run with seed i.

    Seeds and tasks are resampled independently of each other, so the interval covers how both differ; with few seeds it
    is still too narrow. Error and interval are the bootstrap's, n counts tasks. Tasks that a run leaves unjudged are
    left out. Raises ValueError if the runs answered different tasks.
    """
    names = {name for values in (*first, *second) for name in values}
    if odd := sorted(name for name in names if any(name not in values for values in (*first, *second))):
        raise ValueError(f"paired arms must have the same tasks; only some of them have {odd[:3]} ({len(odd)} in all)")
    rows = [[(a[name], b[name]) for a, b in zip(first, second, strict=True)] for name in sorted(names)]
    judged = [[a - b for a, b in row if a is not None and b is not None] for row in rows]
    x = np.array([row for row in judged if len(row) == len(first)], dtype=float)  # tasks × seeds
    if x.size == 0:
        return None
    rng, (n, k) = np.random.default_rng(seed), x.shape
    means = np.array([x[rng.integers(n, size=n)][:, rng.integers(k, size=k)].mean() for _ in range(NUM_RESAMPLES)])
    low, high = np.quantile(means, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    stderr = float(means.std()) if x.size > 1 else None
    return Estimate(mean=float(x.mean()), stderr=stderr, low=float(low), high=float(high), n=n)


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Mean over runs with different seeds, and half the width of its 95 % interval (Student's t); 0 for one run.

    >>> [round(x, 3) for x in over_seeds([1.0, 2.0, 3.0])]  # t(0.975, 2) = 4.303, standard error 1 / sqrt(3)
    [2.0, 2.484]
    """
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, float(stats.t.ppf((1 + COVERAGE) / 2, len(values) - 1) * stats.sem(values))


def acu(items: Sequence[Item], num_parameters: float, seed: int = 0) -> Estimate | None:
    """Accuracy per computation: success / (parameters in billions × thousands of output tokens), a ratio of means.

    Its error and interval are over resampled items, success and tokens together. None where nothing is judged.
    """
    pairs = [(item.metrics.get("success"), item.metrics["output_tokens"]) for item in items]
    judged = np.array([pair for pair in pairs if pair[0] is not None], dtype=float)
    if len(judged) == 0:
        return None
    unit = num_parameters / 1e9 / 1e3
    rng = np.random.default_rng(seed)
    means = (judged[rng.integers(len(judged), size=len(judged))].mean(0) for _ in range(NUM_RESAMPLES))
    ratios = np.array([success / (unit * tokens) for success, tokens in means])
    low, high = np.quantile(ratios, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    success, tokens = judged.mean(0)
    stderr = float(ratios.std()) if len(judged) > 1 else None
    return Estimate(
        mean=float(success / (unit * tokens)), stderr=stderr, low=float(low), high=float(high), n=len(judged)
    )


def is_seen(task: Task, seen: Collection[str]) -> bool | None:
    """Whether all of the task's gold tools are among `seen`; None where it has no gold calls."""
    names = {call.name for call in task.gold_calls or ()}
    return names <= set(seen) if names else None


def item_metrics(trajectory: Trajectory, task: Task) -> dict[str, float | None]:
    """All metrics of one attempt, by name; those of the calls are defined by `tirkit.scoring.calls.call_scores`.

    Agreement with the gold calls is None where the task does not judge calls, `success` where nothing can judge it,
    `think_rate` (1 for an attempt that thinks) where an attempt has no mode.
    Tokens: of the prompt, handed back (documents, results), written by the policy.
    """
    scores = {} if task.gold_calls is None else call_scores(trajectory, task)
    judged = verdict(trajectory, task)
    problems = any(turn.problems for turn in trajectory.turns)
    thinks = None if trajectory.mode is None else float(trajectory.mode == "think")
    finished = trajectory.stop in (StopReason.ANSWERED, StopReason.CALLS_COMPLETE)
    return {
        "success": None if judged is Verdict.UNSCORED else float(judged is Verdict.RIGHT),
        **{name: scores.get(name) for name in CALL_METRICS},
        "well_formed": float(finished and not problems),
        "prompt_tokens": float(len(trajectory.prompt_ids)),
        "reply_tokens": float(sum(len(turn.reply_ids) for turn in trajectory.turns)),
        "output_tokens": float(trajectory.num_sampled),
        "num_calls": float(len(trajectory.calls)),
        "think_rate": thinks,
    }


def make_item(trajectory: Trajectory, task: Task, seen: Collection[str], **extra: float | None) -> Item:
    """The item of one attempt; `extra` are metrics only the caller knows, such as seconds.

    Besides `item_metrics`: recall of tools and of whole calls over the gold calls to seen and to unseen tools.
    """
    used = {call.name for call in task.gold_calls or ()}
    for split, names in (("seen", used & set(seen)), ("unseen", used - set(seen))):
        extra[f"{split}_tool_recall"], extra[f"{split}_call_recall"] = recalled(trajectory, task, names) or (None, None)
    results = (result for turn in trajectory.turns for result in turn.results)
    errors = tuple(f"tool error: {result.error}" for result in results if result.error)
    return Item(
        task_id=task.id,
        kind=task.kind,
        seen=is_seen(task, seen),
        metrics={**item_metrics(trajectory, task), **extra},
        stop=trajectory.stop,
        problems=(*(problem for turn in trajectory.turns for problem in turn.problems), *errors),
    )


def groups_of(item: Item) -> tuple[str, ...]:
    """The groups an item counts in: 'all', 'seen' or 'unseen', its kind as 'kind: …', its mode as 'mode: …'."""
    split = () if item.seen is None else ("seen" if item.seen else "unseen",)
    thinks = item.metrics.get("think_rate")
    mode = () if thinks is None else ("mode: think" if thinks else "mode: no_think",)
    return ("all", *split, *((f"kind: {item.kind}",) if item.kind else ()), *mode)


def summarise(items: Sequence[Item], seed: int = 0) -> dict[str, dict[str, Estimate]]:
    """Group → metric → estimate, for every group of `groups_of` that has an item judged by that metric."""
    members: dict[str, list[Item]] = {"all": []}
    for item in items:
        for group in groups_of(item):
            members.setdefault(group, []).append(item)
    summary: dict[str, dict[str, Estimate]] = {}
    for group, chosen in members.items():
        names = dict.fromkeys(name for item in chosen for name in item.metrics)
        estimates = {name: estimate((item.metrics.get(name) for item in chosen), seed) for name in names}
        summary[group] = {name: value for name, value in estimates.items() if value is not None}
    return summary
