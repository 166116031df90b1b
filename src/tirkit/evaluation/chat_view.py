"""A conversation in the terminal: what the user types, and what the model thinks, selects, calls and answers."""

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.text import Text

from tirkit.evaluation.tables import visible
from tirkit.text.dialects import ParsedTurn, print_json
from tirkit.types import StopReason, ToolCall, ToolResult, ToolSchema, Trajectory, Turn

MAX_SHOWN = 600  # characters of a result; the model reads all of it
YOU = "you> "


class ChatView:
    """Reads lines and prints events. Control characters are shown as escapes, so that no tool can move the cursor.

    Without a terminal it reads plain lines and prints plain ones, without prompts. read: gives a line, as `input` does.
    """

    def __init__(self, console: Console, read: Callable[[str], str] = input) -> None:
        self._console, self._read = console, read

    def ask_user(self) -> str | None:
        """What the user says, None where nothing will come any more; an interrupted line is begun anew."""
        while True:
            try:
                return self._line(YOU)
            except EOFError:
                return None
            except KeyboardInterrupt:
                self.note("(/quit ends)")

    def confirm(self, call: ToolCall) -> bool:
        """Whether the user lets the call be made."""
        self._print(f"  run {call.name}, which may change something? [y/N]", "bold")
        try:
            return self._line("  ").strip().lower() in ("y", "yes")
        except EOFError:
            return False

    def _line(self, prompt: str) -> str:
        return self._read(prompt if self._console.is_terminal else "")

    def note(self, text: str) -> None:
        """What the program has to say."""
        self._print(text, "dim")

    def problem(self, text: str) -> None:
        """What went wrong."""
        self._print(text, "yellow")

    def tools(self, tools: Sequence[tuple[ToolSchema, str]]) -> None:
        """Tools with a remark on each."""
        for tool, remark in tools:
            first = tool.description.partition("\n")[0]
            self._print(f"  {tool.name}{f' ({remark})' if remark else ''}: {first}")

    def turn(self, turn: Turn, parsed: ParsedTurn, seconds: float) -> None:
        """What the model wrote, but for its calls, which are shown as they are made."""
        if parsed.mode:
            self._print(f"[{parsed.mode}]", "dim")
        if parsed.think:
            self._print(parsed.think, "dim italic")
        if turn.selected:
            self._print(f"tools: {', '.join(turn.selected)}", "cyan")
        if turn.problems:
            self._print(turn.text)
            self.problem("\n".join(turn.problems))
        elif turn.answer is not None:
            self._print(turn.answer, "bold")
        self.note(f"({len(turn.ids)} tokens, {seconds:.2f} s)")

    def call(self, call: ToolCall) -> None:
        """A call that is about to be made."""
        self._print(f"→ {call.name} {print_json(call.arguments)}", "cyan")

    def result(self, result: ToolResult) -> None:
        """What a call gave."""
        text = result.content if len(result.content) <= MAX_SHOWN else f"{result.content[:MAX_SHOWN]} …"
        failed = f" [{result.error}]" if result.error else ""
        self._print(f"←{failed} {text} ({result.duration_s:.2f} s)", "yellow" if result.error else "green")

    def ended(self, trajectory: Trajectory, seconds: float) -> None:
        """How the model's answer ended, and what it cost."""
        if trajectory.stop is not StopReason.ANSWERED:
            self.problem(f"no answer: {trajectory.stop}")
        elif len(trajectory.turns) > 1:
            self.note(f"(in all {trajectory.num_sampled} tokens, {seconds:.2f} s)")

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(Text(visible(text), style), soft_wrap=True)
