"""The Python tool: code in, what it printed out."""

from tirkit.tools.sandbox import Output, Sandbox
from tirkit.tools.worker import Answer
from tirkit.types import ToolErrorKind, ToolSchema

PYTHON_SCHEMA = ToolSchema(
    name="python",
    description="Run Python code and return what it prints, or the error it raises. Nothing is kept between calls.",
    parameters={
        "type": "object",
        "properties": {"code": {"type": "string", "description": "Python 3 code; print what you want to see"}},
        "required": ["code"],
    },
)
KINDS = {
    "done": None,
    "raised": ToolErrorKind.RAISED,
    "wall": ToolErrorKind.TIMEOUT,
    "cpu": ToolErrorKind.TIMEOUT,
    "output": ToolErrorKind.CRASHED,
    "memory": ToolErrorKind.CRASHED,
    "killed": ToolErrorKind.CRASHED,
}


class PythonTool:
    """`python(code)` in a sandbox, for a PythonToolbox with isolation="inline": the sandbox keeps the limits.

    Longer output is cut to its first `head_chars` and its last `tail_chars` (AutoTraj, arXiv 2601.23032: 200 each);
    the error's text is the end of the output, and why the code was stopped follows it. See `Sandbox` for who is safe
    from what.

    >>> PythonTool(Sandbox(isolation="unsafe_subprocess"))("x = 2\\nx ** 10").content
    '1024'
    """

    def __init__(self, sandbox: Sandbox | None = None, head_chars: int = 200, tail_chars: int = 200) -> None:
        self.sandbox = sandbox or Sandbox()
        self.head_chars, self.tail_chars = head_chars, tail_chars

    def __call__(self, code: str) -> Answer:
        """Run `code`."""
        output = self.sandbox.run(code)
        text, cut = self._text(output)
        parts = [part for part in (text, self._why(output)) if part]
        return Answer("\n".join(parts) or "(no output)", KINDS[output.end], cut)

    def _text(self, output: Output) -> tuple[str, bool]:
        """(what was written, cut where it is too long, whether it was)."""
        head, tail = (part.decode("utf-8", "replace") for part in (output.head, output.tail))
        gap = output.num_bytes > len(output.head) + len(output.tail)
        text = head + tail
        if not gap and len(text.strip()) <= self.head_chars + self.tail_chars:
            return text.strip(), False
        return f"{text[: self.head_chars]} … {text.rstrip()[-self.tail_chars :]}", True

    def _why(self, output: Output) -> str:
        limits = self.sandbox.limits
        return {
            "wall": f"the code did not finish within {limits.wall_s:g} s",
            "cpu": f"the code used more than {limits.cpu_s} s of computing time",
            "memory": f"the code and what it started held more than {limits.memory_mb} MB of memory",
            "output": f"the code wrote more than {limits.output_mb} MB",
            "killed": "the code ended its process or was killed",
        }.get(output.end, "")
