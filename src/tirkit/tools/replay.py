"""Record what tools answered and give the same answers again: the same run without the tools, offline."""

import threading
from collections import defaultdict
from collections.abc import Hashable, Iterable
from pathlib import Path

from tirkit.store import append_lines
from tirkit.text.schema import canonical
from tirkit.tools.lines import convert_records, parse_as, read_records
from tirkit.tools.runtime import Toolbox, ToolboxError
from tirkit.tools.state import StatefulToolbox
from tirkit.types import Record, ToolCall, ToolErrorKind, ToolResult


class CallRecord(Record):
    """One call and what came back."""

    call: ToolCall
    result: ToolResult


class RecordingToolbox:
    """Passes calls on to another toolbox and keeps them with their results, in `records` and, given a path, there.

    ToolboxError for tools with state: a record doesn't say which attempt a call belongs to.
    """

    def __init__(self, toolbox: Toolbox, path: Path | None = None) -> None:
        if isinstance(toolbox, StatefulToolbox) and (names := sorted(toolbox.stateful)):
            raise ToolboxError(f"calls of tools with state can't be recorded: {', '.join(names)}; leave them out")
        self.toolbox = toolbox
        self.path = path
        self.records: list[CallRecord] = []
        self._lock = threading.Lock()

    def run(self, call: ToolCall) -> ToolResult:
        """Run the call and record it."""
        record = CallRecord(call=call, result=self.toolbox.run(call))
        with self._lock:
            self.records.append(record)
            if self.path is not None:
                append_lines(self.path, [record.model_dump_json()])
        return record.result


class ReplayToolbox:
    """Answers calls with recorded results.

    A call recorded several times gets its results in their order, then the last one again and again. Arguments are
    compared by value (key order is irrelevant). A call that was never recorded is answered with UNAVAILABLE.
    """

    def __init__(self, records: Iterable[CallRecord]) -> None:
        self._results: defaultdict[Hashable, list[ToolResult]] = defaultdict(list)
        for record in records:
            self._results[canonical(record.call, "strict")].append(record.result)
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: Path) -> "ReplayToolbox":
        """Read what a `RecordingToolbox` wrote. Raises `ToolboxError` naming file, line and remedy if it is damaged."""
        try:
            values, issues = read_records(path, "jsonl")
        except OSError as error:
            raise ToolboxError(f"recorded calls {path} cannot be read ({error.strerror}); record them first") from error
        records = [record for _, record in convert_records(path, values, parse_as(CallRecord), issues)]
        if issues:
            raise ToolboxError(f"recorded calls are damaged: {issues[0]}; remove the line or record them again")
        return cls(records)

    def run(self, call: ToolCall) -> ToolResult:
        """The recorded result of the call."""
        with self._lock:
            results = self._results.get(canonical(call, "strict"))
            if results:
                return results.pop(0) if len(results) > 1 else results[0]
        return ToolResult(
            name=call.name,
            content=f"no result was recorded for this call of tool {call.name!r}",
            error=ToolErrorKind.UNAVAILABLE,
        )
