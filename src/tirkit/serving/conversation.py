"""A client's messages as one of our conversations, token for token what a rollout would have made of it."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from tirkit.serving.api import ApiError, ApiMessage
from tirkit.text.dialects import Dialect, print_document
from tirkit.text.render import Renderer
from tirkit.types import Message, Role, Task, ToolSchema, Turn


@dataclass(frozen=True)
class Conversation:
    """What stands before the turn to write; `turns` are the assistant's so far, `prompt` all before the first."""

    prompt: tuple[Message, ...]
    turns: tuple[Turn, ...]
    messages: tuple[Message, ...]
    ids: tuple[int, ...]
    tools: tuple[ToolSchema, ...]

    def followed(self, renderer: Renderer, turn: Turn, reply: Sequence[Message]) -> "Conversation":
        """The conversation after one more turn and what it was answered."""
        ids = turn.ids or tuple(renderer.completion_ids(turn.text))
        said = Message(role="assistant", content=turn.text)
        return Conversation(
            self.prompt,
            (*self.turns, turn),
            (*self.messages, said, *reply),
            (*self.ids, *ids, *renderer.reply_ids(reply)),
            self.tools,
        )


def plain_messages(messages: Sequence[ApiMessage]) -> list[list[Message]]:
    """The messages as they are: the assistant's are its own words. One list up to each turn of the assistant's."""
    if any(message.tool_calls for message in messages):
        raise ApiError(400, "a model served as text takes the assistant's calls as its text, not as tool_calls")
    return _split([Message(role=_role(message), content=message.content) for message in messages])


def tool_messages(
    messages: Sequence[ApiMessage], dialect: Dialect, tools: Mapping[str, ToolSchema]
) -> list[list[Message]]:
    """The messages with calls and replies printed in the dialect, selections and their documents put back in.

    Results are handed back together, in the order of the calls they answer. ApiError where they do not belong to calls.
    """
    said: list[Message] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        if message.role == "tool":
            raise ApiError(400, f"messages.{at - 1}: role 'tool' must follow an assistant's tool_calls")
        if message.role != "assistant":
            said.append(Message(role=_role(message), content=message.content))
        elif message.tool_calls:
            answers = list(takewhile(lambda one: one.role == "tool", messages[at:]))
            at += len(answers)
            said += _calls(message, dialect, tools)
            said.append(_results(message, answers))
        else:
            said.append(_reply(message, dialect))
    return _split(said)


def converse(
    parts: list[list[Message]], tools: tuple[ToolSchema, ...], renderer: Renderer, dialect: Dialect
) -> Conversation:
    """Put `parts` together as a rollout does: nothing that a turn saw is rendered again after it."""
    if not parts[0]:
        raise ApiError(400, "the first message must not be the assistant's: it must answer something")
    if not parts[-1]:
        raise ApiError(400, "the last message must not be the assistant's: there is nothing to answer")
    prompt = tuple(parts[0])
    conversation = Conversation(prompt, (), prompt, tuple(renderer.prompt_ids(prompt, tools)), tools)
    for said, *reply in parts[1:]:
        parsed = dialect.parse(said.content)
        turn = Turn(text=said.content, selected=parsed.selected, calls=parsed.calls, answer=parsed.answer)
        conversation = conversation.followed(renderer, turn, reply)
    return conversation


def task_by_question(tasks: Sequence[Task]) -> Callable[[Conversation], Task]:
    """Finds the task that a conversation is about by its question, for scripts, which play a task's gold."""
    return _TaskByQuestion({_question(task.prompt): task for task in tasks})


@dataclass(frozen=True)
class _TaskByQuestion:
    tasks: Mapping[str, Task]

    def __call__(self, conversation: Conversation) -> Task:
        question = _question(conversation.prompt)
        if question not in self.tasks:
            raise ApiError(400, f"the script holds no task that asks {question[:80]!r}", code="no_such_task")
        return self.tasks[question]


def _question(prompt: Sequence[Message]) -> str:
    return next((message.content for message in reversed(prompt) if message.role == "user"), "")


def _split(said: Sequence[Message]) -> list[list[Message]]:
    """The prompt; then each of the assistant's turns with what follows it. The last part is empty if nothing does."""
    parts: list[list[Message]] = [[]]
    for message in said:
        if message.role == "assistant":
            parts.append([])
        parts[-1].append(message)
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts.append([])
    return parts


def _role(message: ApiMessage) -> Role:
    return "system" if message.role == "developer" else message.role


def _calls(message: ApiMessage, dialect: Dialect, tools: Mapping[str, ToolSchema]) -> list[Message]:
    calls = [call.call() for call in message.tool_calls or ()]
    think = message.reasoning_content or message.content
    try:
        if not dialect.selects:
            return [Message(role="assistant", content=dialect.print_calls(calls, think))]
        names = tuple(dict.fromkeys(call.name for call in calls))
        return [
            Message(role="assistant", content=dialect.print_selection(names, think)),
            documents(names, tools),
            Message(role="assistant", content=dialect.print_calls(calls)),
        ]
    except (ValueError, KeyError) as error:
        raise ApiError(400, str(error.args[0])) from error


def documents(names: Sequence[str], tools: Mapping[str, ToolSchema]) -> Message:
    """What a selection is answered."""
    return Message(role="tool", content="\n".join(print_document(tools[name]) for name in names))


def _results(message: ApiMessage, answers: Sequence[ApiMessage]) -> Message:
    contents = defaultdict[str, list[str]](list)  # clients that make up ids may give one to two calls
    for answer in answers:
        contents[str(answer.tool_call_id)].append(answer.content)
    wanted = [call.id for call in message.tool_calls or ()]
    if sorted(wanted) != sorted(str(answer.tool_call_id) for answer in answers):
        raise ApiError(400, f"each of the tool_calls {wanted} must be answered by one message of role 'tool'")
    return Message(role="tool", content="\n".join(contents[id_].pop(0) for id_ in wanted))


def _reply(message: ApiMessage, dialect: Dialect) -> Message:
    try:
        return Message(role="assistant", content=dialect.print_answer(message.content, message.reasoning_content))
    except ValueError as error:
        raise ApiError(400, str(error)) from error
