"""The types that carry the pipeline, from a question to a trained model.

A `Task` is rolled out into a `Group` of `Trajectory`s; each is scored into a `RewardBreakdown`; scores become SFT
examples, preference pairs or advantages. Everything here is frozen, strict about its fields and round-trips through
JSON: `Type.model_validate_json(x.model_dump_json()) == x`.

A trajectory of a task with two-step tool use, spelled out (ids are made up; `s` = sampled by the policy, `r` = reply):

    prompt      <|im_start|>user\\nHow warm is it in Oslo?<|im_end|>\\n<|im_start|>assistant\\n    prompt_ids
    turn 0  s   <tool_token>\\n<<get_weather>>\\n</tool_token><|im_end|>                        ids, logps
            r   \\n<|im_start|>tool\\n{"name": "get_weather", …}<|im_end|>\\n<|im_start|>assistant\\n  reply_ids
    turn 1  s   <tool_call>\\n{"name": "<<get_weather>>", "arguments": {"city": "Oslo"}}\\n</tool_call><|im_end|>
            r   \\n<|im_start|>tool\\n21 C<|im_end|>\\n<|im_start|>assistant\\n
    turn 2  s   <answer>21 C</answer><|im_end|>
            r   (empty: nothing follows the last turn)

    completion ids   = s0 + r0 + s1 + r1 + s2
    completion mask  = 1 on all of them, 0 on padding
    tool mask        = 1 on s0, s1, s2; 0 on r0, r1
    loss mask        = completion mask * tool mask
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Role = Literal["system", "user", "assistant", "tool"]
Mode = Literal["think", "no_think"]
Comparison = Literal["exact", "maths", "qa"]


class UserError(Exception):
    """What must stop a run: the message names place, reason and remedy, and is all the user sees."""


class Record(BaseModel):
    """Base of every stored type: frozen, unknown fields refused, no silent type conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Message(Record):
    """One chat message. `role="tool"` carries what the system hands back: documents or results."""

    role: Role
    content: str


class Place(Record):
    """Where an argument goes in an HTTP request, under `name` (its own if empty).

    style: how a list is written there: the name again for each item, or one text with a comma, space or pipe between
    them. An object becomes a list of keys and values in turn; with "repeat" each of its keys is a name of its own, with
    "deep" `name[key]`. "json" writes any value as JSON. A body is written as JSON or as a form, whatever the style.
    """

    at: Literal["path", "query", "header", "json_body", "form_body"]
    name: str = ""
    style: Literal["repeat", "comma", "space", "pipe", "deep", "json"] = "repeat"


class PythonOrigin(Record):
    """A function of a file (`my_tools.py`) or module; its decorator says whether it is read-only."""

    kind: Literal["python"]
    source: str
    function: str


class HttpOrigin(Record):
    """An operation of a service: `method` and `url`, whose {placeholders} are arguments, as `places` says of each.

    In `headers` and in an McpOrigin's, {NAME} stands for an environment variable, read when the tool is called.
    """

    kind: Literal["http"]
    method: str
    url: str
    places: dict[str, Place] = Field(default_factory=dict)
    headers: dict[str, str] = Field(default_factory=dict)
    read_only: bool = False


class McpOrigin(Record):
    """The tool `tool` of an MCP server: an address, or a command that gets the environment variables named in `env`."""

    kind: Literal["mcp"]
    server: str
    tool: str
    headers: dict[str, str] = Field(default_factory=dict)
    env: tuple[str, ...] = ()
    read_only: bool = False


Origin = Annotated[PythonOrigin | HttpOrigin | McpOrigin, Field(discriminator="kind")]


class ToolSchema(Record):
    """One tool as the model knows it.

    `name` is unique within a catalogue; where two different tools share a name the later ones get `_2`, `_3`, … and
    keep the name they came with in `original_name`. `parameters` is a JSON Schema of type object. `origin` says how to
    run it, which no model is shown; None: it can't be run.

    >>> ToolSchema(name="add", description="Add two integers.", parameters={"type": "object", "properties": {
    ...     "a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}).name
    'add'
    """

    name: str = Field(min_length=1)
    description: str = ""
    parameters: dict[str, JsonValue] = Field(default_factory=lambda: {"type": "object", "properties": {}})
    source: str = ""
    original_name: str = ""
    origin: Origin | None = None


class ToolCall(Record):
    """A structured request: the tool's plain catalogue name and its arguments with their JSON types.

    >>> ToolCall(name="add", arguments={"a": 1, "b": 2}).arguments["b"]
    2
    """

    name: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)


class ToolErrorKind(StrEnum):
    """Why a call gave no result. All of these are text the model reads; none of them stops the run."""

    UNKNOWN_TOOL = "unknown_tool"
    INVALID_ARGUMENTS = "invalid_arguments"
    RAISED = "raised"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    UNAVAILABLE = "unavailable"


class ToolResult(Record):
    """What came back from one call; `content` is what the model reads, also when `error` says why there is none."""

    name: str
    content: str
    error: ToolErrorKind | None = None
    duration_s: float = 0.0
    truncated: bool = False


class StopReason(StrEnum):
    """Why a trajectory ended."""

    ANSWERED = "answered"  # the policy wrote its final reply
    CALLS_COMPLETE = "calls_complete"  # the task is only about the calls, and they were made
    MAX_CALLS = "max_calls"  # one more tool call than allowed
    MAX_TURNS = "max_turns"
    MAX_TOKENS = "max_tokens"  # a turn or the whole completion hit its token budget
    MALFORMED = "malformed"  # the turn could not be read: see Turn.problems
    ABSTAINED = "abstained"  # unknown tools selected twice
    POLICY_FAILED = "policy_failed"  # the endpoint gave nothing after its retries


class Turn(Record):
    """One policy generation and the replies it triggers.

    `text` is what the policy wrote (end-of-turn token left out); `ids` the same as token ids, end of turn included,
    with their `logps` under the sampling policy (empty where unknown). `reply_ids` is everything up to the point where
    the policy goes on. `selected`, `calls`, `answer` and `problems` are what the dialect read in `text`. The first
    `given` of `ids` were put there, a forced mode tag.
    """

    text: str
    ids: tuple[int, ...] = ()
    logps: tuple[float, ...] = ()
    selected: tuple[str, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    answer: str | None = None
    problems: tuple[str, ...] = ()
    results: tuple[ToolResult, ...] = ()
    reply: tuple[Message, ...] = ()
    reply_ids: tuple[int, ...] = ()
    given: int = 0


class Trajectory(Record):
    """The finished record of one attempt at a task; see the module docstring for one with its masks.

    >>> t = Trajectory(task_id="t", prompt=(Message(role="user", content="hi"),), turns=(Turn(text="a"),),
    ...                stop=StopReason.ANSWERED)
    >>> Trajectory.model_validate_json(t.model_dump_json()) == t
    True
    """

    task_id: str
    prompt: tuple[Message, ...]
    prompt_ids: tuple[int, ...] = ()
    turns: tuple[Turn, ...]
    stop: StopReason
    mode: Mode | None = None
    seed: int = 0
    copy_index: int = 0
    policy: str = ""

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """All tool calls, in the order they were made."""
        return tuple(call for turn in self.turns for call in turn.calls)

    @property
    def selected(self) -> tuple[str, ...]:
        """Names of all selected tools, in order, once per selection."""
        return tuple(name for turn in self.turns for name in turn.selected)

    @property
    def answer(self) -> str | None:
        """The final reply, None where the trajectory never got there."""
        return self.turns[-1].answer if self.turns else None

    @property
    def num_sampled(self) -> int:
        """Tokens of the policy's turns, thinking and mode tag included, a forced tag too."""
        return sum(len(turn.ids) for turn in self.turns)


class Group(Record):
    """The G trajectories of one task."""

    task_id: str
    trajectories: tuple[Trajectory, ...]


class RewardTerm(Record):
    """One named term of a reward; it contributes `weight * value`."""

    name: str
    value: float
    weight: float = 1.0


class RewardBreakdown(Record):
    """A reward and the named, weighted terms it is the sum of.

    >>> RewardBreakdown(terms=(RewardTerm(name="format", value=1.0), RewardTerm(name="calls", value=1.5))).total
    2.5
    """

    terms: tuple[RewardTerm, ...]

    @property
    def total(self) -> float:
        """The reward: the weighted sum of the terms."""
        return sum(term.weight * term.value for term in self.terms)


class Task(Record):
    """One problem: prompt messages, the tools it may use, its target.

    `tools` names the task's toolset, empty = the whole catalogue. `gold_rounds` holds the gold calls, those of one
    round (made at once, before any result is seen) together; None says the calls are not what is judged, `()` that no
    tool must be called. `answer` is the target of the final reply, `other_answers` are as good; `comparison` says when
    a reply counts as one of them: "exact" (equal numbers or equal once normalised), "maths" (equal expressions) or "qa"
    (exact, or a word F1 of at least 0.5). With `calls_only` the attempt ends when the calls are made and nothing is
    executed. `query` is what documents are searched by, the last user message if empty. `thoughts` is worked reasoning
    for a scripted teacher, one a round and one for the reply; it is never shown to a policy.

    >>> Task(id="q1", prompt=(Message(role="user", content="2 + 3?"),), answer="5").gold_calls is None
    True
    """

    id: str
    prompt: tuple[Message, ...]
    tools: tuple[str, ...] = ()
    gold_rounds: tuple[tuple[ToolCall, ...], ...] | None = None
    answer: str | None = None
    other_answers: tuple[str, ...] = ()
    comparison: Comparison = "exact"
    calls_only: bool = False
    split: str = ""
    kind: str = ""
    query: str = ""
    thoughts: tuple[str, ...] = ()

    @property
    def gold_calls(self) -> tuple[ToolCall, ...] | None:
        """All gold calls in order; None where the calls are not judged."""
        return None if self.gold_rounds is None else tuple(call for calls in self.gold_rounds for call in calls)

    @property
    def answers(self) -> tuple[str, ...]:
        """All right answers; empty where the reply is not judged."""
        return () if self.answer is None else (self.answer, *self.other_answers)
