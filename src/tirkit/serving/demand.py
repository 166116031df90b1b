"""What a request demands of calls: which tools may be called, whether one must be, and how many.

A call is forced by the beginning of the turn, which the policy is given; a selection that can only be one is made here.
What the model writes behind that beginning is its own. If it cannot be used, the answer is a refusal that says why.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tirkit.serving.api import ApiError, ChatRequest, Delta
from tirkit.serving.conversation import Conversation
from tirkit.serving.reader import Acts
from tirkit.text.control import ANSWER_OPEN, CALL_OPEN, SELECT_OPEN
from tirkit.text.dialects import Dialect
from tirkit.text.mode import with_mode
from tirkit.types import ToolCall, ToolSchema


@dataclass(frozen=True)
class Demand:
    """What must and may be called. `allowed`: these tools only; None: any. `single`: one call at most.

    documents: of the tools that the prompt must hold. selects: tools whose selection is made for the model, as the text
    `selection`. begins: how its first turns begin. tags: whether a conversation begins with a mode's tag.
    """

    allowed: frozenset[str] | None = None
    must: bool = False
    single: bool = False
    documents: tuple[ToolSchema, ...] = ()
    selects: tuple[str, ...] = ()
    selection: str = ""
    begins: tuple[str, ...] = ()
    tags: bool = False

    def opening(self, conversation: Conversation) -> str:
        """The turn that selects, after `conversation`."""
        return self._tagged(conversation, self.selection)

    def begin(self, conversation: Conversation, turn: int) -> str:
        """How the `turn`-th turn of the answer must begin."""
        begin = self.begins[turn] if turn < len(self.begins) else ""
        return self._tagged(conversation, begin) if begin else ""

    def _tagged(self, conversation: Conversation, text: str) -> str:
        # A turn that is made to call has no place to think.
        return with_mode(text, "no_think") if self.tags and not conversation.turns else text


def make_demand(request: ChatRequest, as_text: bool, dialect: Dialect, tools: Mapping[str, ToolSchema]) -> Demand:
    """The demand of `request`; `tools` are those in the model's weights.

    ApiError where it contradicts itself or names tools that the model does not know.
    """
    given = _given_tools(request)
    offered = frozenset(tool.name for tool in given)
    _check(request, as_text, offered, frozenset(tools) if dialect.index else None)
    free = Demand(
        allowed=offered or None,
        single=request.parallel_tool_calls is False,
        documents=() if dialect.index else given,
        tags=dialect.modes,
    )
    if request.tool_choice == "none":
        # A model that is shown documents replies by itself where there are none; one that has them in its weights must
        # be made to.
        begins = (ANSWER_OPEN,) if dialect.index else ()
        return replace(free, allowed=frozenset[str](), documents=(), begins=begins)
    if request.tool_choice == "required":
        return replace(free, must=True, begins=(SELECT_OPEN, CALL_OPEN) if dialect.selects else (CALL_OPEN,))
    if (named := request.named) is None:
        return free
    forced = replace(free, allowed=frozenset({named}), must=True, single=True, begins=(_call_head(dialect, named),))
    if not dialect.selects:
        return forced
    return replace(forced, selects=(named,), selection=dialect.print_selection((named,)))


def _given_tools(request: ChatRequest) -> tuple[ToolSchema, ...]:
    """The tools that a request offers. ApiError where two have one name."""
    given = [tool.function for tool in request.tools or ()]
    names = [tool.name for tool in given]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ApiError(400, f"the tool {twice[0]!r} is given twice", param="tools")
    return tuple(ToolSchema(name=t.name, description=t.description, parameters=t.parameters) for t in given)


def _check(request: ChatRequest, as_text: bool, offered: frozenset[str], learned: frozenset[str] | None) -> None:
    """`learned`: the tools in the weights; None where tools come with requests."""
    choice, named = request.tool_choice, request.named
    if learned is not None and (strange := sorted(offered - learned)):
        raise ApiError(400, f"this model's tools are in its weights; it does not know {strange[0]!r}", param="tools")
    known = offered or learned or frozenset[str]()
    if as_text and choice not in (None, "auto"):
        raise ApiError(400, "a model served as text chooses for itself: leave tool_choice out", param="tool_choice")
    if named is not None and named not in known:
        raise ApiError(400, f"tool_choice names {named!r}, which is not among the tools", param="tool_choice")
    if choice == "required" and not known:
        raise ApiError(400, "tool_choice 'required' needs tools", param="tool_choice")


def _call_head(dialect: Dialect, name: str) -> str:
    """A call of `name` up to its arguments, and to where tokens end: the space belongs to what follows."""
    return dialect.print_calls([ToolCall(name=name, arguments={})]).rpartition(" {}")[0]


def outcome(demand: Demand, acts: Acts, cut: bool) -> Delta:
    """The end of an answer whose last turn does `acts`; `cut`: there was no room for more."""
    if demand.single:
        acts = replace(acts, calls=acts.calls[:1])
    problem = acts.problem or _problem(demand, acts)
    if cut and (problem or not acts.calls):
        return Delta(finish="length")
    if problem:
        return Delta(refusal=f"What the model wrote cannot be used: {problem}", finish="stop")
    if acts.calls:
        return Delta(calls=acts.calls, finish="tool_calls")
    return Delta(finish="stop")


def _problem(demand: Demand, acts: Acts) -> str:
    """Why the acts are not what was demanded; empty where they are."""
    strange = [call.name for call in acts.calls if demand.allowed is not None and call.name not in demand.allowed]
    if strange:
        return f"it calls {strange[0]!r}, which this request does not allow"
    if acts.selected and not acts.calls:
        return f"it selects {', '.join(acts.selected)} again instead of calling"
    return "it calls no tool, which this request demands" if demand.must and not acts.calls else ""
