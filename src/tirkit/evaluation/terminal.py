"""What the terminal shows: a trajectory in the colours of its masks, the table of arms, and the progress of a stage."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tirkit.evaluation.run import EvaluationResult, ProgressFn
from tirkit.evaluation.tables import (
    LEGEND,
    ArmRow,
    Column,
    arm_rows,
    columns_with_values,
    differences,
    duration,
    group_columns,
    not_compared,
    seeds_note,
    visible,
)
from tirkit.types import Task, Trajectory

STYLES = {"prompt": "dim", "trained": "bold green", "masked": "yellow"}


def render_trajectory(
    spans: Sequence[tuple[str, str]], trajectory: Trajectory, task: Task | None = None, note: str = ""
) -> RenderableType:
    """A trajectory in the colours of its masks; `spans` as `tirkit.text.masks.coloured` gives them.

    Control characters other than newlines and tabs are shown as escapes, so that no tool can move the cursor.
    """
    text = Text()
    for part, kind in spans:
        text.append(visible(part), STYLES[kind])
    legend = Text("  ").join(Text(LEGEND[kind], style) for kind, style in STYLES.items())
    problems = [problem for turn in trajectory.turns for problem in turn.problems]
    facts = [f"stopped: {trajectory.stop}", *([note] if note else []), *(f"problem: {p}" for p in problems)]
    if task is not None and task.gold_calls is not None:
        gold = "; ".join(call.model_dump_json() for call in task.gold_calls)
        facts.append(f"gold calls: {gold or 'none'}")
    if task is not None and task.answer is not None:
        facts.append(f"gold answer: {task.answer}")
    below = Text(visible("\n".join(facts)), "cyan")
    return Panel(Group(text, Text(), below), title=Text(trajectory.task_id), subtitle=legend, box=box.ROUNDED)


def arms_table(results: Sequence[EvaluationResult], title: str = "") -> RenderableType:
    """Method against baselines: accuracy ± standard error over items, tokens, seconds."""
    rows = arm_rows(results)
    wide = {"reply_tokens", "output_tokens"}  # left to the report: 80 columns are few
    columns = [column for column in columns_with_values(rows) if column.key not in wide]
    return Group(_grid(rows, columns, title), Text(seeds_note(results), "dim"))


def think_table(results: Sequence[EvaluationResult]) -> RenderableType:
    """How often each arm thinks, by kind of question; empty where no arm has modes. Forced modes are left out."""
    free = [result for result in results if "forced" not in result.stage]
    columns = [column for column in group_columns(free, "think_rate") if column.key.startswith("kind: ")]
    rows = [row for row in arm_rows(free, columns) if any(row.estimates.values())]
    return _grid(rows, columns, "Thinks in % of attempts, by kind of question") if rows else ""


def _grid(rows: Sequence[ArmRow], columns: Sequence[Column], title: str) -> Table:
    table = Table(title=title or None, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), title_justify="left")
    table.add_column("arm", overflow="fold", min_width=14)
    for column in columns:  # heads wrap, numbers do not
        texts = (*column.head.split(" "), *(row.cells[column.key] for row in rows))
        table.add_column(column.head, justify="right", width=max(map(len, texts)))
    for row in rows:
        table.add_row(Text(row.arm), *(row.cells[column.key] for column in columns))
    return table


def difference_lines(results: Sequence[EvaluationResult]) -> str:
    """`method − other: +12.7 points [9.2, 16.3]`, a line an arm; those with other questions are named."""
    first = results[0].arm if results else ""
    lines = [
        f"{first} − {arm}: {100 * value.mean:+.1f} points [{100 * value.low:.1f}, {100 * value.high:.1f}]"
        for arm, value in differences(results)
    ]
    said = [*lines, "(same questions; 95 % intervals over questions and seeds)"] if lines else []
    return "\n".join([*said, *(f"{first} − {arm}: not compared, other questions" for arm in not_compared(results))])


class Progress:
    """One line a stage: how far, how fast, how long to go. Redrawn on a terminal, else printed every few seconds.

    Used as a context manager; `progress.stage("memorise")` gives the function that a trainer or an evaluation calls.
    """

    def __init__(self, console: Console | None = None, every_s: float = 5.0):
        self.console = console or Console(file=sys.stderr)
        self.every_s = every_s
        self._live: Live | None = None
        self._printed = 0.0
        self._line = Text()
        self._pending = False

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self._live = Live(console=self.console, transient=True, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._finish()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def stage(self, name: str) -> ProgressFn:
        """Begin a stage; the line of the one before it stays as it was last."""
        self._finish()
        began = time.monotonic()
        first: list[tuple[int, float]] = []
        self._printed = float("-inf")

        def show(step: int, total: int, metrics: Mapping[str, float], left_s: float) -> None:
            now = time.monotonic()
            first[:] = first or [(step, now)]  # speed counts from here: a resumed stage does not begin at step 0
            done, spent = step - first[0][0], now - first[0][1]
            speed = done / spent if done and spent else 0.0
            self._show(progress_line(name, step, total, metrics, speed, left_s, now - began), step >= total)

        return show

    def say(self, text: str) -> None:
        """Print a line above the progress line."""
        self._finish()
        self.console.print(text, markup=False, highlight=False)

    def _show(self, line: str, last: bool) -> None:
        self._line, self._pending = Text(line), True
        if self._live is not None:
            self._live.update(self._line)
        elif last or time.monotonic() - self._printed >= self.every_s:
            self._printed = time.monotonic()
            self._finish()

    def _finish(self) -> None:
        """Leave the current line on the screen for good."""
        if self._pending:
            self.console.print(self._line, soft_wrap=True)
            self._pending = False
        if self._live is not None:
            self._live.update(Text())


def progress_line(
    name: str, step: int, total: int, metrics: Mapping[str, float], speed: float, left_s: float, elapsed_s: float
) -> str:
    """One line of progress; `speed` in steps a second, 0 while it is not known.

    >>> progress_line("memorise", 30, 120, {"loss": 0.5}, 2.0, 45.0, 15.0)
    'memorise      30/120   25%  2.0/s  0:45 left  loss 0.5'
    """
    pace = "" if speed <= 0 else f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each"
    time_ = f"{duration(left_s)} left" if step < total else f"took {duration(elapsed_s)}"
    values = "  ".join(f"{key} {value:.3g}" for key, value in metrics.items())
    counted = f"{name:<12} {step:>{len(str(total))}}/{total} {step / max(total, 1):>5.0%}"
    return "  ".join(part for part in (counted, pace, time_, values) if part)
