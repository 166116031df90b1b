"""A conversation with a model whose calls are really made: one rollout of the tool loop for each message."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tirkit.evaluation.chat_view import ChatView
from tirkit.rollout.loop import Prompts, RolloutSettings, rollout, stable_seed
from tirkit.rollout.policy import Policy, RolloutRequest
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer
from tirkit.tools.runtime import PythonToolbox
from tirkit.types import Message, Task, ToolCall, ToolErrorKind, ToolResult, ToolSchema, Trajectory, Turn

ASKS, REFUSED = "asks first", "can't be run here"
HELP = """/new    forget the conversation; tools with state begin anew
/tools  the tools there are
/quit   end (so does the end of the input)
Ctrl-C  stop what is being written or run; the message it was for is forgotten"""


@dataclass(frozen=True)
class Partner:
    """Who is talked to. `safe` names the tools that change nothing; `max_context`: tokens, 0 = no bound.

    hint: what the user is told at the start. task: finds the task that a conversation is about, for scripts, which play
    a task's gold.
    """

    name: str
    policy: Policy
    renderer: Renderer
    dialect: Dialect
    tools: Mapping[str, ToolSchema]
    toolbox: PythonToolbox
    safe: frozenset[str]
    settings: RolloutSettings
    max_context: int = 0
    hint: str = ""
    task: Callable[[Sequence[Message]], Task] = field(default=lambda prompt: Task(id="chat", prompt=tuple(prompt)))


def talk(partner: Partner, view: ChatView, yes: bool = False) -> None:
    """Let the user say one thing after the other."""
    shown = [(tool, _remark(partner, tool.name, yes)) for tool in partner.tools.values()]
    counts = ", ".join(f"{n} {what}" for what in (ASKS, REFUSED) if (n := sum(remark == what for _, remark in shown)))
    view.note(f"{partner.name}: {len(shown)} tools{f' ({counts})' if counts else ''}; /help")
    if partner.hint:
        view.note(partner.hint)
    with contextlib.closing(Conversation(partner, view, yes)) as conversation:
        while (said := view.ask_user()) is not None:
            match said.strip():
                case "":
                    continue
                case "/quit":
                    break
                case "/new":
                    conversation.begin()
                case "/tools":
                    view.tools(shown)
                case text if text.startswith("/"):
                    view.note(HELP)
                case text:
                    conversation.say(text)


def _remark(partner: Partner, name: str, yes: bool) -> str:
    if name not in partner.toolbox.functions:
        return REFUSED
    return "" if yes or name in partner.safe else ASKS


class Conversation:
    """What was said so far, and the state of the tools: all of it is one attempt to them.

    Each message of the user's is one rollout of the tool loop, whose prompt is the conversation up to there.
    """

    def __init__(self, partner: Partner, view: ChatView, yes: bool = False) -> None:
        self.partner, self._view, self._yes = partner, view, yes
        self.messages: tuple[Message, ...] = ()
        self._attempt = partner.toolbox.attempt()
        self._number = 0
        self._since = 0.0  # when the model was last given something to go on with

    def begin(self) -> None:
        """Forget everything, the state of the tools too."""
        self.close()
        self.messages, self._attempt = (), self.partner.toolbox.attempt()

    def close(self) -> None:
        """End what tools with state run."""
        self._attempt.close()

    def say(self, text: str) -> Trajectory | None:
        """The model's answer, shown as it comes; None where it was interrupted or there is no room for one."""
        partner, messages = self.partner, (*self.messages, Message(role="user", content=text))
        task = partner.task(messages).model_copy(update={"prompt": messages, "calls_only": False})
        settings = self._settings(task)
        if settings is None:
            self._view.problem(f"the conversation fills the model's {partner.max_context} tokens; /new begins another")
            return None
        self._number += 1
        request, started = RolloutRequest(task, seed=stable_seed("chat", self._number)), time.perf_counter()
        self._since = started
        try:
            (made,) = rollout(
                [request], partner.policy, partner.renderer, partner.dialect, partner.tools, self, settings, self._watch
            )
        except KeyboardInterrupt:
            self._view.problem("stopped; your message is forgotten")
            return None
        self._view.ended(made, time.perf_counter() - started)
        if made.turns:
            self.messages = messages
        for turn in made.turns:
            self.messages = (*self.messages, Message(role="assistant", content=turn.text), *turn.reply)
        return made

    def _settings(self, task: Task) -> RolloutSettings | None:
        """The limits of the next answer, which must fit the model; None where nothing would. Calls run right here."""
        settings = replace(self.partner.settings, workers=0)
        if not self.partner.max_context:
            return settings
        documents = Prompts(self.partner.tools, settings).documents(task)
        room = self.partner.max_context - len(self.partner.renderer.prompt_ids(task.prompt, documents))
        return replace(settings, max_tokens=min(settings.max_tokens, room)) if room > 0 else None

    def _watch(self, turn: Turn) -> None:
        now = time.perf_counter()
        self._view.turn(turn, self.partner.dialect.parse(turn.text), now - self._since)
        self._since = time.perf_counter()

    def run(self, call: ToolCall) -> ToolResult:
        """Make a call of the model's, shown, and asked about where it may change something."""
        self._view.call(call)
        if _remark(self.partner, call.name, self._yes) == ASKS and not self._view.confirm(call):
            said = "the user does not want this call to be made"
            result = ToolResult(name=call.name, content=said, error=ToolErrorKind.UNAVAILABLE)
        else:
            result = self._attempt.run(call)
        self._view.result(result)
        self._since = time.perf_counter()
        return result
