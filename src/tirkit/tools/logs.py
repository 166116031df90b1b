"""Read what other systems logged: conversations with tool calls become trajectories and tasks.

Forms, told apart by their keys, also mixed in one file:
    ours         {"task_id", "prompt", "turns", "stop", …}: the fields of `Trajectory`
    OpenAI chat  {"messages" (or "traj"): [{"role", "content", "tool_calls", …}], "tools"?}
    ShareGPT     {"conversations": [{"from", "value"}], "system"?, "tools"?}

In the last two may stand beside it: "task_id" (attempts at one task share it; without it, attempts with equal prompts
do), "trial", "model", and the outcome: "success" (true or false) or "reward" (1 or more is a success). What stands
before the assistant's first message is the prompt; a user who speaks later is part of what is handed back.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

from pydantic import JsonValue

from tirkit.text.control import ANSWER_CLOSE, ANSWER_OPEN, CALL_CLOSE, CALL_OPEN, THINK_CLOSE, THINK_OPEN
from tirkit.text.dialects import Dialect, parse_json, print_json
from tirkit.tools.catalogue import read_tool
from tirkit.tools.lines import parse_as
from tirkit.types import Message, Role, StopReason, Task, ToolErrorKind, ToolResult, ToolSchema, Trajectory, Turn

Object = dict[str, JsonValue]

_ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "function_response"), "tool"),
}
_THOUGHT = re.compile(rf"{THINK_OPEN}(.*?){THINK_CLOSE}", re.DOTALL)
_CALL = re.compile(rf"{CALL_OPEN}(.*?){CALL_CLOSE}", re.DOTALL)
_RESULT_TAGS = re.compile(r"</?tool_response>")
_ERROR = re.compile(r'\s*(?:error\b|exception\b|traceback\b|\{\s*"error"\s*:)', re.IGNORECASE)
_DIALECT = Dialect()
_parse_trajectory = parse_as(Trajectory)


@dataclass(frozen=True)
class LoggedAttempt:
    """One attempt of a log. `task` holds its prompt and no target; `success` is None where the log says nothing."""

    trajectory: Trajectory
    task: Task
    success: bool | None = None
    tools: tuple[ToolSchema, ...] = ()


def read_attempt(value: JsonValue) -> LoggedAttempt:
    """One attempt in any of the forms. Raises ValueError with the reason if it is none.

    What our dialect can't hold (arguments that are no JSON, a reply that spells a tag) is a problem of its turn,
    as it would be in a rollout.
    """
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    if "turns" in value:
        trajectory = _parse_trajectory(value)
        return LoggedAttempt(trajectory, Task(id=trajectory.task_id, prompt=trajectory.prompt))
    for key, read in (("messages", _read_openai), ("traj", _read_openai), ("conversations", _read_sharegpt)):
        if key in value:
            return _attempt(value, [read(item) for item in _objects(value[key], key)])
    raise ValueError('none of "turns" (ours), "messages" (OpenAI chat) and "conversations" (ShareGPT) is there')


@dataclass
class _Said:
    """One message of a log in one form for all."""

    role: Role
    text: str
    think: str = ""
    calls: list[str] = field(default_factory=list)  # as JSON, maybe a bad one
    name: str = ""


@dataclass
class _Draft:
    """A turn being put together."""

    said: _Said
    replies: list[_Said] = field(default_factory=list)


def _attempt(value: Object, said: list[_Said]) -> LoggedAttempt:
    first = next((i for i, message in enumerate(said) if message.role == "assistant"), None)
    if first is None:
        raise ValueError("no message of the assistant")
    system = value.get("system")
    head = [_Said("system", system)] if isinstance(system, str) and system else []
    prompt = tuple(Message(role=message.role, content=message.text) for message in [*head, *said[:first]])
    turns = tuple(_turn(draft) for draft in _drafts(said[first:]))
    task_id, trial, model = value.get("task_id"), value.get("trial"), value.get("model")
    tools = tuple(_read_tools(value.get("tools")))
    name = str(task_id) if isinstance(task_id, str | int) else _prompt_id(prompt)
    trajectory = Trajectory(
        task_id=name,
        prompt=prompt,
        turns=turns,
        stop=_stop(turns[-1]),
        copy_index=trial if isinstance(trial, int) else 0,
        policy=model if isinstance(model, str) else "",
    )
    task = Task(id=name, prompt=prompt, tools=tuple(tool.name for tool in tools))
    return LoggedAttempt(trajectory, task, _success(value), tools)


def _stop(last: Turn) -> StopReason:
    """A log that ends with the results of calls was about the calls; one that ends with calls was cut off."""
    if last.answer:
        return StopReason.ANSWERED
    return StopReason.CALLS_COMPLETE if last.results else StopReason.MAX_TURNS


def _success(value: Object) -> bool | None:
    success, reward = value.get("success"), value.get("reward")
    if isinstance(success, bool):
        return success
    return reward >= 1 if isinstance(reward, int | float) else None


def _drafts(said: Iterable[_Said]) -> list[_Draft]:
    """Turns: what the assistant said until somebody else speaks, and what was said then."""
    drafts: list[_Draft] = []
    for message in said:
        if message.role != "assistant":
            drafts[-1].replies.append(message)
        elif drafts and not drafts[-1].replies:
            before = drafts[-1].said
            text = "\n".join(filter(None, (before.text, message.text)))
            think = "\n".join(filter(None, (before.think, message.think)))
            drafts[-1].said = _Said("assistant", text, think, before.calls + message.calls)
        else:
            drafts.append(_Draft(message))
    return drafts


def _turn(draft: _Draft) -> Turn:
    """The turn as our dialect writes it, and what is wrong with it; words beside a call are its thought."""
    said = draft.said
    think = "\n".join(filter(None, (said.think, said.text if said.calls else "")))
    calls = f"{CALL_OPEN}\n{chr(10).join(said.calls)}\n{CALL_CLOSE}"
    acts = calls if said.calls else f"{ANSWER_OPEN}{said.text}{ANSWER_CLOSE}"
    text = f"{THINK_OPEN}\n{think}\n{THINK_CLOSE}\n{acts}" if think else acts
    parsed = _DIALECT.parse(text)
    names = [call.name for call in parsed.calls]
    told = [message for message in draft.replies if message.role == "tool"]
    reply = [Message(role=message.role, content=message.text) for message in draft.replies if message.role != "tool"]
    if told:
        reply.insert(0, Message(role="tool", content="\n".join(message.text for message in told)))
    return Turn(
        text=text,
        calls=parsed.calls,
        answer=parsed.answer,
        problems=parsed.problems,
        results=tuple(
            ToolResult(
                name=message.name or (names[i] if i < len(names) else ""),
                content=message.text,
                error=ToolErrorKind.RAISED if _ERROR.match(message.text) else None,
            )
            for i, message in enumerate(told)
        ),
        reply=tuple(reply),
    )


def _read_openai(item: Object) -> _Said:
    said = _said(item.get("role"), _content(item.get("content")))
    said.name = str(item.get("name") or "")
    reasoning = item.get("reasoning_content") or item.get("reasoning")
    if isinstance(reasoning, str):
        said.think = "\n".join(filter(None, (reasoning.strip(), said.think)))
    calls = [call.get("function") for call in _objects(item.get("tool_calls") or [], "tool_calls")]
    calls += [item["function_call"]] if item.get("function_call") else []
    said.calls += [_call(call) for call in calls]
    return said


def _read_sharegpt(item: Object) -> _Said:
    kind, text = item.get("from", item.get("role")), _content(item.get("value", item.get("content")))
    if kind not in ("function_call", "tool_call"):
        return _said(kind, text)
    try:
        calls = json.loads(text)
    except ValueError:
        return _Said("assistant", "", calls=[_one_line(text)])
    return _Said("assistant", "", calls=[_call(call) for call in (calls if isinstance(calls, list) else [calls])])


def _said(role: JsonValue, text: str) -> _Said:
    """A message; of the assistant's text thoughts and calls are taken out."""
    known = _ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        raise ValueError(f"a message by {role!r}; known are {', '.join(_ROLES)}")
    if known != "assistant":
        return _Said(known, _RESULT_TAGS.sub("", text).strip() if known == "tool" else text)
    think = "\n".join(part.strip() for part in _THOUGHT.findall(text))
    calls = [_one_line(part) for part in _CALL.findall(text)]
    rest = _CALL.sub("", _THOUGHT.sub("", text)).replace(ANSWER_OPEN, "").replace(ANSWER_CLOSE, "")
    return _Said("assistant", rest.strip(), think, calls)


def _call(call: JsonValue) -> str:
    """A call on one line of JSON; its arguments may be JSON or a text that holds JSON, also a bad one."""
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise ValueError('a call without "name"')
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments or "{}")
        except (ValueError, RecursionError):
            return f'{{"name": {print_json(call["name"])}, "arguments": {_one_line(arguments)}}}'
    return print_json({"name": call["name"], "arguments": arguments})


def _one_line(text: str) -> str:
    return " ".join(text.split("\n")).strip()


def _content(content: JsonValue) -> str:
    """The text of a message: a string, or a list of parts."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = [part.get("text") for part in _objects(content, "content")]
    if any(not isinstance(part, str) for part in parts):
        raise ValueError("a message holds something that is not text")
    return "\n".join(cast(list[str], parts))


def _objects(value: JsonValue, what: str) -> list[Object]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f'"{what}" must be a list of objects')
    return cast(list[Object], value)


def _read_tools(value: JsonValue) -> Iterable[ToolSchema]:
    if isinstance(value, str):
        value = json.loads(value) if value.strip() else []
    for item in _objects(value or [], "tools"):
        yield read_tool(item.get("function", item))


def _prompt_id(prompt: tuple[Message, ...]) -> str:
    text = "\n".join(f"{message.role} {message.content}" for message in prompt)
    return f"log-{hashlib.blake2b(text.encode(errors='replace'), digest_size=6).hexdigest()}"
