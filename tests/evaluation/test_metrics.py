import numpy as np
import pytest

from tirkit.evaluation.metrics import (
    Item,
    acu,
    estimate,
    groups_of,
    is_seen,
    item_metrics,
    make_item,
    paired_difference,
    paired_over_seeds,
    summarise,
)
from tirkit.types import Message, StopReason, Task, ToolCall, ToolErrorKind, ToolResult, Trajectory, Turn

ADD = ToolCall(name="add", arguments={"a": 1, "b": 2})
PROMPT = (Message(role="user", content="1 + 2?"),)


def attempt(*turns: Turn, stop: StopReason = StopReason.ANSWERED) -> Trajectory:
    return Trajectory(task_id="t", prompt=PROMPT, prompt_ids=(5, 6, 7), turns=turns, stop=stop)


def task(**fields: object) -> Task:
    return Task.model_validate({"id": "t", "prompt": PROMPT, "gold_rounds": ((ADD,),), "answer": "3"} | fields)


RIGHT = attempt(
    Turn(text="", ids=(1, 2), selected=("add",), reply_ids=(3, 4, 5)),
    Turn(text="", ids=(6,), calls=(ADD,), reply_ids=(7,), results=(ToolResult(name="add", content="3"),)),
    Turn(text="", ids=(8, 9), answer="3"),
)


def item(task_id: str, success: float | None, seen: bool | None = None, kind: str = "") -> Item:
    return Item(task_id=task_id, kind=kind, seen=seen, metrics={"success": success}, stop=StopReason.ANSWERED)


def test_estimate_by_hand() -> None:
    # mean 3/4; deviations 1/4, 1/4, 1/4, -3/4: squares sum to 12/16; s² = (12/16)/3 = 1/4; s/√4 = 1/4
    value = estimate([1, 1, 1, 0])
    assert value is not None
    assert value.mean == 0.75
    assert value.stderr == pytest.approx(0.25, abs=1e-12)
    # P(mean of 4 draws = 1) = .75⁴ = .316 > .025 and P(mean <= .25) = .051 > .025 > P(mean = 0) = .004
    assert (value.low, value.high, value.n) == (0.25, 1.0, 4)


def test_estimate_of_nothing_one_and_equal_values() -> None:
    assert estimate([]) is None
    assert estimate([None]) is None
    one = estimate([None, 0.5])
    assert one is not None
    assert (one.mean, one.stderr, one.low, one.high, one.n) == (0.5, None, 0.5, 0.5, 1)
    assert str(one) == "0.500"
    same = estimate([0.25] * 10)
    assert same is not None
    assert (same.stderr, same.low, same.high) == (0, 0.25, 0.25)


def test_the_interval_is_that_of_plain_resampling() -> None:
    x = np.random.default_rng(1).normal(size=300)
    value = estimate(x.tolist())
    assert value is not None
    rng = np.random.default_rng(2)
    means = x[rng.integers(0, 300, (20_000, 300))].mean(1)
    assert (value.low, value.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.01)


def test_the_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(3)
    found = [estimate(rng.binomial(1, 0.7, 200).tolist(), seed) for seed in range(300)]
    covered = np.mean([value.low <= 0.7 <= value.high for value in found if value is not None])
    assert 0.91 <= covered <= 0.98  # 0.95, give or take 300 trials


def test_estimates_are_reproducible() -> None:
    values = np.random.default_rng(0).random(50).tolist()
    assert estimate(values, 1) == estimate(values, 1) != estimate(values, 2)


def test_paired_difference_by_hand() -> None:
    # differences 0, 1, -1, 1 (e is not judged by one arm): mean 1/4; squares of deviations 1/16, 9/16, 25/16, 9/16
    # sum 44/16, s² = 11/12, s/√4 = .478714
    first = {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0, "e": 1.0}
    second = {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0, "e": None}
    value = paired_difference(first, second)
    assert value is not None
    assert (value.mean, value.n) == (0.25, 4)
    assert value.stderr == pytest.approx(0.478714, abs=1e-6)


def test_paired_difference_of_arms_that_move_together_is_certain() -> None:
    rng = np.random.default_rng(0)
    first = {str(i): float(x) for i, x in enumerate(rng.integers(0, 2, 100))}
    value = paired_difference(first, dict(first))
    assert value is not None
    assert (value.mean, value.low, value.high) == (0, 0, 0)


def test_paired_difference_refuses_different_tasks() -> None:
    with pytest.raises(ValueError, match=r"only one of them has \['b'\]"):
        paired_difference({"a": 1.0}, {"a": 1.0, "b": 0.0})


def test_paired_difference_over_seeds_by_hand() -> None:
    # Seed 0: 1, 0 (c is unjudged in one run); seed 1: 1, 1. Mean 3/4, two tasks. A seed's or a task's part of it is
    # 1/2 at least (seed 0 twice; b twice, seed 0 twice: 0), 1 at most.
    first = [{"a": 1.0, "b": 0.0, "c": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}]
    second = [{"a": 0.0, "b": 0.0, "c": None}, {"a": 0.0, "b": 0.0, "c": 1.0}]
    value = paired_over_seeds(first, second)
    assert value is not None
    assert (value.mean, value.low, value.high, value.n) == (0.75, 0, 1, 2)
    assert paired_over_seeds([], []) is None


def test_paired_difference_over_seeds_covers_how_seeds_differ() -> None:
    # Every task of a seed differs alike: within a seed all is certain, between seeds nothing is.
    first = [dict.fromkeys("abcd", 1.0), dict.fromkeys("abcd", 0.0)]
    value = paired_over_seeds(first, [dict.fromkeys("abcd", 0.0)] * 2)
    assert value is not None
    assert (value.mean, value.low, value.high) == (0.5, 0, 1)
    assert value.stderr == pytest.approx(0.125**0.5, abs=0.02)  # one of 0, 1/2, 1 with weights 1/4, 1/2, 1/4
    with pytest.raises(ValueError, match=r"only some of them have \['d'\]"):
        paired_over_seeds(first, [dict.fromkeys("abc", 0.0)] * 2)


def test_metrics_of_a_right_attempt() -> None:
    shares = ("success", "id_em", "id_f1", "call_em", "tool_accuracy", "parameter_accuracy", "joint_accuracy")
    counts = {"prompt_tokens": 3, "reply_tokens": 4, "output_tokens": 5, "num_calls": 1}
    expected = dict.fromkeys((*shares, "parameter_given_tool", "valid_json", "well_formed"), 1.0) | counts
    assert item_metrics(RIGHT, task()) == expected | {"think_rate": None}


def test_metrics_of_a_wrong_argument() -> None:
    wrong = attempt(
        Turn(text="", selected=("add",)),
        Turn(text="", calls=(ToolCall(name="add", arguments={"a": 1, "b": "2"}),)),
        Turn(text="", answer="3"),
    )
    metrics = item_metrics(wrong, task())
    shares = {name: metrics[name] for name in ("id_em", "tool_accuracy", "valid_json", "well_formed")}
    assert shares == dict.fromkeys(shares, 1)
    wrong_ones = ("success", "call_em", "parameter_accuracy", "parameter_given_tool", "joint_accuracy")
    assert [metrics[name] for name in wrong_ones] == [0] * 5


def test_metrics_of_a_malformed_attempt() -> None:
    broken = attempt(Turn(text="{", problems=("call 1: bad JSON in '{'",)), stop=StopReason.MALFORMED)
    metrics = item_metrics(broken, task())
    zero = ("success", "id_em", "id_f1", "call_em", "tool_accuracy", "valid_json", "well_formed")
    assert [metrics[name] for name in zero] == [0] * 7
    assert metrics["parameter_given_tool"] is None  # the tool was not right


def test_what_a_task_does_not_judge_is_none() -> None:
    metrics = item_metrics(RIGHT, task(gold_rounds=None))
    assert (metrics["success"], metrics["call_em"], metrics["id_f1"], metrics["valid_json"]) == (1, None, None, None)
    assert item_metrics(RIGHT, task(gold_rounds=None, answer=None))["success"] is None


def test_seen_and_unseen_are_judged_per_task() -> None:
    both = task(gold_rounds=((ADD,), (ToolCall(name="mul"),)))
    assert is_seen(both, {"add", "mul"}) is True
    assert is_seen(both, {"add"}) is False
    assert is_seen(task(gold_rounds=()), {"add"}) is None
    assert is_seen(task(gold_rounds=None), {"add"}) is None


def test_make_item_counts_problems_and_tool_errors() -> None:
    failed = ToolResult(name="add", content="too slow", error=ToolErrorKind.TIMEOUT)
    turns = (Turn(text="", problems=("unknown tool 'x'",)), Turn(text="", calls=(ADD,), results=(failed,)))
    made = make_item(attempt(*turns, stop=StopReason.MAX_TURNS), task(kind="sum"), {"add"}, seconds=0.5)
    assert made.problems == ("unknown tool 'x'", "tool error: timeout")
    assert (made.kind, made.seen, made.metrics["seconds"]) == ("sum", True, 0.5)
    assert Item.model_validate_json(made.model_dump_json()) == made
    assert groups_of(made) == ("all", "seen", "kind: sum")


def test_summarise_by_group() -> None:
    items = [item("a", 1, True, "x"), item("b", 0, False, "x"), item("c", 1, False, "y"), item("d", None), item("e", 0)]
    summary = summarise(items)
    means = {group: (found["success"].mean, found["success"].n) for group, found in summary.items()}
    expected = {"all": (0.5, 4), "seen": (1, 1), "unseen": (0.5, 2), "kind: x": (0.5, 2), "kind: y": (1, 1)}
    assert means == expected
    assert summarise([]) == {"all": {}}
    assert summarise([item("d", None, kind="z")])["kind: z"] == {}


def test_metrics_by_mode() -> None:
    long, short = (RIGHT.model_copy(update={"mode": mode}) for mode in ("think", "no_think"))
    wrong = short.model_copy(update={"turns": short.turns[:-1]})
    items = [make_item(t, task(), ()) for t in (long, short, wrong, RIGHT)]
    assert [item.metrics["think_rate"] for item in items] == [1.0, 0.0, 0.0, None]
    assert [groups_of(item)[-1] for item in items] == ["mode: think", "mode: no_think", "mode: no_think", "unseen"]
    summary = summarise(items)
    assert summary["all"]["think_rate"].mean == pytest.approx(1 / 3)
    assert summary["mode: no_think"]["success"].mean == 0.5
    # five tokens in all three turns, three without the last one
    assert summary["mode: no_think"]["output_tokens"].mean == 4
    assert summary["mode: think"]["output_tokens"].mean == 5


def test_accuracy_per_computation_by_hand() -> None:
    def attempted(success: float | None, tokens: float) -> Item:
        return item("t", success).model_copy(update={"metrics": {"success": success, "output_tokens": tokens}})

    # half right at 250 tokens on average, 7 billion parameters: 0.5 / (7 * 0.25)
    items = [attempted(1, 100), attempted(0, 400), attempted(None, 9000)]
    value = acu(items, 7e9)
    assert value is not None
    assert (value.mean, value.n) == (pytest.approx(0.5 / 1.75), 2)
    # two resampled items are both right (1 / 0.7), both wrong (0), or one of each
    assert (value.low, value.high) == (0.0, pytest.approx(1 / 0.7))
    assert acu([attempted(None, 1)], 7e9) is None
    one = acu(items[:1], 7e9)
    assert one is not None
    assert (one.stderr, one.low) == (None, pytest.approx(1 / 0.7))
