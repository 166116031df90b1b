from collections.abc import Mapping, Sequence

import pytest

from tirkit.evaluation.run import EvaluationResult, evaluate
from tirkit.rollout.policy import RolloutRequest
from tirkit.types import Message, StopReason, Task, Trajectory, Turn

TASKS = [Task(id=str(n), prompt=(Message(role="user", content=f"{n}?"),), answer=str(n), kind="echo") for n in range(5)]


class Echo:
    """Answers tasks below 3 rightly; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[RolloutRequest] = []

    def __call__(self, requests: Sequence[RolloutRequest]) -> list[Trajectory]:
        self.asked += requests
        return [attempt(request.task) for request in requests]


def attempt(task: Task) -> Trajectory:
    turn = Turn(text="", answer=task.id if int(task.id) < 3 else "?")
    return Trajectory(task_id=task.id, prompt=task.prompt, turns=(turn,), stop=StopReason.ANSWERED)


def test_evaluate_keeps_every_item_in_order() -> None:
    kept: list[Trajectory] = []
    seen: list[tuple[int, int, Mapping[str, float], float]] = []
    result = evaluate(
        TASKS, Echo(), arm="echo", batch_size=2, seed=7, keep=kept.extend, progress=lambda *a: seen.append(a)
    )
    assert [item.task_id for item in result.items] == ["0", "1", "2", "3", "4"]
    assert list(result.values("success").values()) == [1, 1, 1, 0, 0]
    assert [trajectory.task_id for trajectory in kept] == ["0", "1", "2", "3", "4"]
    assert [(done, total) for done, total, *_ in seen] == [(2, 5), (4, 5), (5, 5)]
    assert seen[-1][2] == {"success": 0.6}
    assert seen[-1][3] == 0
    assert all(item.metrics["seconds"] is not None for item in result.items)
    assert EvaluationResult.model_validate_json(result.model_dump_json()) == result
    value = result.estimate("success", "kind: echo")
    assert value is not None
    assert (value.mean, value.n) == (0.6, 5)
    assert result.estimate("call_em") is None
    assert result.estimate("success", "seen") is None


def test_what_was_done_is_not_done_again() -> None:
    echo = Echo()
    result = evaluate(TASKS, echo, arm="echo", done=[attempt(TASKS[1]), attempt(TASKS[4])], batch_size=2)
    assert [request.task.id for request in echo.asked] == ["0", "2", "3"]
    assert list(result.values("success").values()) == [1, 1, 1, 0, 0]
    whole = evaluate(TASKS, Echo(), arm="echo")
    assert whole.values("success") == result.values("success")
    assert result.values("seconds")["1"] is None


def test_seeds_depend_on_the_task_alone() -> None:
    first, second = Echo(), Echo()
    evaluate(TASKS, first, arm="a", batch_size=1, seed=3)
    evaluate(TASKS[::-1], second, arm="a", batch_size=4, seed=3)
    assert {r.task.id: r.seed for r in first.asked} == {r.task.id: r.seed for r in second.asked}
    assert len({r.seed for r in first.asked}) == len(TASKS)


def test_ids_must_differ() -> None:
    with pytest.raises(ValueError, match="different ids"):
        evaluate([TASKS[0], TASKS[0]], Echo(), arm="echo")
