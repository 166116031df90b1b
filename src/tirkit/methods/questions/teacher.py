"""A teacher's questions: what it is asked, and how its answer is read.

The prompt is a Jinja template, `prompts/questions.jinja` or a file of one's own; it is given `documents` (one line of
JSON a tool) and `slots` (see `Slot`). The answer is one JSON object a line; a line that is none costs one question.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined, TemplateError
from pydantic import JsonValue

from tirkit.methods.questions.check import Rejection
from tirkit.methods.questions.slots import Draft, Slot
from tirkit.text.control import THINK_CLOSE
from tirkit.text.dialects import parse_json, print_document
from tirkit.types import ToolCall, ToolSchema, UserError

KEYS = {"number", "question", "calls", "reply"}
PROMPT = Path(__file__).parent / "prompts" / "questions.jinja"


class PromptError(UserError):
    """The teacher's prompt cannot be used; the message names the file and what is wrong with it."""


class TeacherPrompt:
    """The prompt of a file. Raises PromptError where it is missing, broken or uses an unknown variable."""

    def __init__(self, path: Path | None = None):
        path = path or PROMPT
        try:
            environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
            self._template = environment.from_string(path.read_text(encoding="utf-8"))
            tool = ToolSchema(name="x")
            self.text([Slot(1, "easy", ()), Slot(2, "hard", (tool,)), Slot(3, "easy", (tool, tool))])
        except (TemplateError, OSError, UnicodeDecodeError) as error:
            raise PromptError(f"teacher's prompt {path} cannot be used: {type(error).__name__}: {error}") from error

    def text(self, slots: Sequence[Slot]) -> str:
        """What the teacher is asked."""
        tools = {tool.name: tool for slot in slots for tool in slot.tools}
        documents = [print_document(tools[name]) for name in sorted(tools)]
        return self._template.render(documents=documents, slots=slots).strip()


def read_drafts(text: str, slots: Sequence[Slot]) -> tuple[dict[int, Draft], Counter[Rejection]]:
    """(drafts by the number of their slot, what was wrong with the rest). What is thought before does not count."""
    wanted, found, refused = {slot.number for slot in slots}, dict[int, Draft](), Counter[Rejection]()
    for line in text.rpartition(THINK_CLOSE)[2].splitlines():
        if not line.strip() or line.strip().startswith("```"):
            continue
        try:
            number, draft = _read(parse_json(line))
        except (ValueError, RecursionError):  # pydantic's ValidationError is a ValueError
            refused[Rejection.UNREADABLE] += 1
            continue
        if number not in wanted or number in found:
            refused[Rejection.UNASKED] += 1
        else:
            found[number] = draft
    if (missing := len(wanted) - len(found) - refused[Rejection.UNREADABLE]) > 0:
        refused[Rejection.MISSING] += missing
    return found, refused


def _read(value: JsonValue) -> tuple[int, Draft]:
    """Raises ValueError for anything but {"number", "question", "calls"[, "reply"]} with the right types."""
    if not isinstance(value, dict) or not {"number", "question", "calls"} <= value.keys() <= KEYS:
        raise ValueError("not an object of number, question, calls and reply")
    number, question, calls, reply = value["number"], value["question"], value["calls"], value.get("reply", "")
    if type(number) is not int or not isinstance(question, str) or not isinstance(reply, str):
        raise ValueError("a value of the wrong type")
    if not isinstance(calls, list):
        raise ValueError("calls is no list")
    return number, Draft(question, tuple(ToolCall.model_validate(call) for call in calls), reply)
