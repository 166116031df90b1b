"""Cases in which the user speaks several times and the tools keep a state: one rollout a user turn.

The whole conversation becomes one trajectory: what the user says next stands in the reply of the turn before, as a
message of the user's. So a scorer can tell the user's turns apart (`user_turns`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tirkit.tools.runtime import Toolbox
from tirkit.types import Message, StopReason, Task, ToolSchema, Trajectory, Turn

# One attempt at a task over these tools, run by this toolbox.
Ask = Callable[[Task, Sequence[ToolSchema], Toolbox], Trajectory]


@dataclass(frozen=True)
class Move:
    """One user turn: what the user says, the tools there are from now on, the gold rounds of calls."""

    message: Message
    tools: tuple[ToolSchema, ...]
    task: Task


def converse(
    case_id: str,
    moves: Sequence[Move],
    toolbox: Toolbox,
    ask: Ask,
    done: Callable[[Trajectory], bool] = lambda made: False,
) -> Trajectory:
    """Let the user make all moves, or those until an attempt that is `done`.

    A turn that cannot be read ends the user's turn as a reply does; one that hits a limit ends the conversation. What
    stands before the last message of the first move's prompt is said first.
    """
    before = moves[0].task.prompt[:-1]
    messages: tuple[Message, ...] = before
    turns: list[Turn] = []
    made: Trajectory | None = None
    prompt_ids: tuple[int, ...] = ()
    for move in moves:
        if turns:
            turns[-1] = turns[-1].model_copy(update={"reply": (*turns[-1].reply, move.message)})
        messages = (*messages, move.message)
        task = move.task.model_copy(update={"prompt": messages, "tools": tuple(tool.name for tool in move.tools)})
        made = ask(task, move.tools, toolbox)
        prompt_ids = prompt_ids or made.prompt_ids
        turns += made.turns
        for turn in made.turns:
            messages = (*messages, Message(role="assistant", content=turn.text), *turn.reply)
        if made.stop not in (StopReason.ANSWERED, StopReason.MALFORMED) or done(made):
            break
    assert made is not None, "a conversation needs a move"
    prompt = (*before, moves[0].message)
    return made.model_copy(
        update={"task_id": case_id, "prompt": prompt, "prompt_ids": prompt_ids, "turns": tuple(turns)}
    )


def user_turns(trajectory: Trajectory) -> list[list[Turn]]:
    """The assistant's turns, those of each of the user's turns together."""
    found: list[list[Turn]] = [[]]
    for turn in trajectory.turns:
        found[-1].append(turn)
        if any(message.role == "user" for message in turn.reply):
            found.append([])
    return found
