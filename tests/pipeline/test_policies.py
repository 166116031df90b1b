"""Who attempts tasks beside a trained model."""

from collections.abc import Sequence

from tirkit.pipeline.policies import INSTRUCTIONS, instructed
from tirkit.rollout.loop import searched_by
from tirkit.rollout.policy import RolloutRequest
from tirkit.types import Message, StopReason, Task, Trajectory, Turn


def test_a_model_that_knows_no_format_is_told_it_and_its_attempts_forget_it() -> None:
    asked: list[RolloutRequest] = []

    def attempt(requests: Sequence[RolloutRequest]) -> list[Trajectory]:
        asked.extend(requests)
        turn = Turn(text="<answer>5</answer>", ids=(7, 8), logps=(-1.0, -2.0), answer="5")
        return [
            Trajectory(
                task_id=r.task.id, prompt=r.task.prompt, prompt_ids=(1, 2), turns=(turn,), stop=StopReason.ANSWERED
            )
            for r in requests
        ]

    prompt = (Message(role="user", content="2 + 3?"),)
    (found,) = instructed(attempt)([RolloutRequest(Task(id="t", prompt=prompt), copy_index=1, seed=3)])
    (request,) = asked
    assert request.task.prompt == (Message(role="system", content=INSTRUCTIONS), *prompt)
    assert (request.copy_index, request.seed, searched_by(request.task)) == (1, 3, "2 + 3?")
    assert (found.prompt, found.prompt_ids, found.turns[0].text) == (prompt, (), "<answer>5</answer>")
    assert (found.turns[0].ids, found.turns[0].logps) == ((7, 8), ())
