"""Real questions answered with real tools: GSM8K by Python in a sandbox, 2Wiki and HotpotQA by searching Wikipedia.

    python examples/real_tools.py --gsm8k gsm8k_test.jsonl --wiki 2wiki.jsonl --corpus 2wiki_corpus.jsonl

No model is needed: a script writes the ReAct turns, and the tool loop runs every call. The script knows the gold and
must not simply say it. In GSM8K it turns the solution's calculator notes `<<16-3-4=9>>` into code and answers with what
the *last call printed*. In the others it searches for the question and for the names it reads, and answers only where
a right answer stands in what came back: so the accuracy is that of the retrieval, an upper bound for any reader.
("A or B?" is easy, as the passage on B holds B; "yes" and "no" are hardly ever found.) "Covered" are the questions with
a name that some passage is about; 2Wiki's public corpus leaves many out.

Then 1,000 Python calls with 16 in flight, and what a sandbox costs above a plain start of Python. You should see GSM8K
above 90 % (the rest: solutions whose last step has no note), no call lost, and `results/real_tools.json` written. Needs
bubblewrap. `--hotpot` takes questions that bring their passages along (HotpotQA's distractor setting).
"""

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from tirkit.embedded.model import build_tokenizer
from tirkit.evaluation.metrics import Estimate, estimate
from tirkit.rollout.loop import RolloutSettings, rollout
from tirkit.rollout.policy import RolloutRequest, Script, ScriptedPolicy
from tirkit.scoring.match import Verdict, verdict
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer
from tirkit.tools.lines import convert_records, read_records
from tirkit.tools.python import PYTHON_SCHEMA, PythonTool
from tirkit.tools.questions import QuestionError, load_tasks, read_task
from tirkit.tools.replay import RecordingToolbox
from tirkit.tools.runtime import PythonToolbox, Toolbox
from tirkit.tools.sandbox import Sandbox
from tirkit.tools.search import SEARCH_SCHEMA, Bm25Searcher, Passage, SearchTool, terms
from tirkit.types import Record, Task, ToolCall, ToolSchema, Trajectory, Turn, UserError

UNKNOWN = "I do not know."
MAX_SEARCHES = 8
IN_FLIGHT = 16
NOTE = re.compile(r"<<([^<>=]+)=[^<>]*>>")
# Small words inside a name ("Duke of Prussia"), and the words that questions begin with.
LINKS = {"of", "de", "the", "and", "la", "le", "di", "da", "du", "van", "von", "al", "bin", "bint", "ibn", "in"}
ASKING = {"who", "what", "which", "where", "when", "why", "how", "are", "is", "do", "does", "did", "was", "were"}
DIALECT = Dialect()


class Row(Record):
    """What one set of questions came to."""

    name: str
    questions: int
    calls: int
    errors: dict[str, int]
    accuracy: Estimate
    seconds: float | None  # None for a part of another row's questions


class Load(Record):
    """Python calls with several in flight; latencies (ms) as the caller sees them, the wait for a free slot included.

    Medians of single starts: a sandbox that was started ahead, a new one, and `python -c pass`. `overhead_ms` is the
    first less the last: negative where starting Python takes longer than running code in a sandbox that waits.
    """

    calls: int
    in_flight: int
    slots: int
    lost: int
    calls_per_s: float
    median_ms: float
    p95_ms: float
    p99_ms: float
    sandbox_ms: float
    new_sandbox_ms: float
    python_ms: float
    overhead_ms: float


class Report(Record):
    """What is written: the numbers, and how busy the machine was (mean of runnable processes before and after)."""

    rows: tuple[Row, ...]
    load: Load
    cpus: int
    busy_before: float
    busy_after: float


@dataclass(frozen=True)
class Calculator:
    """The script for GSM8K: one Python call an expression of the gold solution, then what the last one printed."""

    expressions: Mapping[str, Sequence[str]]

    def __call__(self, task: Task, turns: Sequence[Turn]) -> str:
        """The next turn."""
        expressions = self.expressions[task.id]
        if len(turns) < len(expressions):
            code = f"print({expressions[len(turns)]})"
            return DIALECT.print_calls([ToolCall(name="python", arguments={"code": code})], f"Step {len(turns) + 1}.")
        if not turns or turns[-1].results[0].error:
            return DIALECT.print_answer(UNKNOWN)
        return DIALECT.print_answer(turns[-1].results[0].content)


def look_up(task: Task, turns: Sequence[Turn]) -> str:
    """The script for 2Wiki: search until a right answer stands in what came back."""
    read = "\n".join(turn.results[0].content for turn in turns)
    if found := stands_in(task.answers, read):
        return DIALECT.print_answer(found)
    question, asked = task.prompt[-1].content, {str(call.arguments["query"]) for turn in turns for call in turn.calls}
    queries = [question, *names(question), *names(read)]
    query = next((query for query in queries if query not in asked), None)
    if query is None or len(turns) == MAX_SEARCHES:
        return DIALECT.print_answer(UNKNOWN)
    return DIALECT.print_calls([ToolCall(name="search", arguments={"query": query})], f"I look for {query!r}.")


def stands_in(answers: Sequence[str], text: str) -> str | None:
    """The first of `answers` that is in `text` as whole words; codes like "IN" and "de" would be in any text.

    >>> stands_in(["ES", "Spain"], "She was born in ES, in Spain."), stands_in(["Rome"], "Romeo")
    ('Spain', None)
    """
    long = (answer for answer in answers if len(answer) > 3)
    return next((a for a in long if re.search(rf"(?<!\w){re.escape(a)}(?!\w)", text, re.IGNORECASE)), None)


def names(text: str) -> list[str]:
    """Runs of capitalised words, each once.

    >>> names("Who is the mother of Albert Frederick, Duke Of Prussia's wife Marie?")
    ['Albert Frederick', 'Duke Of Prussia', 'Marie']
    """
    found: list[str] = []
    run: list[str] = []
    for word in [*re.findall(r"\w[\w.'’-]*|[^\w ]", text), "."]:
        bare = re.sub(r"['’]s$", "", word)
        if word[0].isupper() and (run or word.lower() not in ASKING):
            run.append(bare)
        elif not (run and word in LINKS):
            while run and run[-1] in LINKS:
                run.pop()
            found += [" ".join(run).rstrip(".")] if run else []
            run = []
            continue
        else:
            run.append(word)
        if bare != word:
            found.append(" ".join(run))
            run = []
    return list(dict.fromkeys(name for name in found if len(name) > 3))


def load_gsm8k(path: Path) -> tuple[Sequence[Task], Calculator]:
    """The questions, and the script that knows their solutions. Raises QuestionError where the file is no GSM8K."""
    tasks = load_tasks(path).tasks
    records = convert_records(path, read_records(path)[0], lambda value: (read_task(value).id, str(value)), [])
    expressions = {name: NOTE.findall(text) for _, (name, text) in records}
    if not any(expressions.values()):
        raise QuestionError(f"no solution in {path} has calculator notes like <<2*3=6>>; give a file of GSM8K")
    return tasks, Calculator(expressions)


def load_hotpot(path: Path) -> tuple[Sequence[Task], Bm25Searcher]:
    """The questions, and all their passages as one corpus. Raises QuestionError where there are none."""
    tasks = load_tasks(path).tasks
    contexts = [r.value["context"] for r in read_records(path)[0] if isinstance(r.value, dict) and "context" in r.value]
    texts = {title: " ".join(s) for c in contexts for title, s in zip(c["title"], c["sentences"], strict=True)}  # type: ignore
    if not texts:
        raise QuestionError(f"no question in {path} brings a context; give HotpotQA's distractor questions")
    return tasks, Bm25Searcher([Passage(title=title, text=text) for title, text in texts.items()])


def answer_all(
    tasks: Sequence[Task], script: Script, toolbox: Toolbox, tool: ToolSchema
) -> tuple[list[Trajectory], float]:
    """One attempt at each task, and the seconds they took together. Every call of theirs went through `toolbox`."""
    recorder = RecordingToolbox(toolbox)
    renderer = Renderer(build_tokenizer([task.prompt[-1].content for task in tasks]))
    settings = RolloutSettings(
        max_turns=32, max_calls=31, max_new_tokens=1 << 16, max_tokens=1 << 20, prompt="documents", workers=IN_FLIGHT
    )
    requests = [RolloutRequest(task) for task in tasks]
    start = time.perf_counter()
    attempts = rollout(
        requests, ScriptedPolicy(script, renderer), renderer, DIALECT, {tool.name: tool}, recorder, settings
    )
    seconds = time.perf_counter() - start
    ran, made = len(recorder.records), sum(len(attempt.calls) for attempt in attempts)
    assert ran == made, f"{made} calls were made and {ran} ran"
    return attempts, seconds


def summarise(name: str, tasks: Sequence[Task], attempts: Sequence[Trajectory], seconds: float | None) -> Row:
    """The table's row of these attempts."""
    results = [result for attempt in attempts for turn in attempt.turns for result in turn.results]
    right = [float(verdict(a, t) is Verdict.RIGHT) for a, t in zip(attempts, tasks, strict=True)]
    accuracy = estimate(right)
    assert accuracy is not None
    return Row(
        name=name,
        questions=len(tasks),
        calls=len(results),
        errors=dict(Counter(str(result.error) for result in results if result.error)),
        accuracy=accuracy,
        seconds=seconds,
    )


def measure_load(toolbox: Toolbox, sandbox: Sandbox, calls: int, slots: int) -> Load:
    """`calls` Python calls, each with a result of its own, 16 in flight; then single starts, in pairs."""

    def call(number: int) -> tuple[bool, float]:
        start = time.perf_counter()
        result = toolbox.run(ToolCall(name="python", arguments={"code": f"print({number} ** 2)"}))
        return result.content == str(number**2), time.perf_counter() - start

    start = time.perf_counter()
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        done = list(pool.map(call, range(calls)))
    seconds = time.perf_counter() - start
    median, p95, p99 = np.quantile([1000 * s for _, s in done], [0.5, 0.95, 0.99])
    sandboxed, new, plain = np.array([_starts(sandbox) for _ in range(21)]).T * 1000
    return Load(
        calls=calls,
        in_flight=IN_FLIGHT,
        slots=slots,
        lost=calls - sum(right for right, _ in done),
        calls_per_s=calls / seconds,
        median_ms=float(median),
        p95_ms=float(p95),
        p99_ms=float(p99),
        sandbox_ms=float(np.median(sandboxed)),
        new_sandbox_ms=float(np.median(new)),
        python_ms=float(np.median(plain)),
        overhead_ms=float(np.median(sandboxed - plain)),
    )


def _starts(sandbox: Sandbox) -> list[float]:
    """Seconds of an empty run in a sandbox that was started ahead, in a new one, and of a plain start of Python."""
    new = Sandbox()
    seconds: list[float] = []
    for run in (
        lambda: sandbox.run("pass"),
        lambda: new.run("pass"),
        lambda: subprocess.run([sys.executable, "-c", "pass"], check=True),
    ):
        time.sleep(0.2)  # what starts in the background is done
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def print_report(report: Report, console: Console) -> None:
    """The table of the questions, then a few lines on the load."""
    table = Table(title="real questions, real tools, scripted policy (± standard error)", title_justify="left")
    for head in ("", "questions", "calls", "errors", "accuracy %", "seconds", "calls/s"):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for row in report.rows:
        errors = ", ".join(f"{count} {kind}" for kind, count in row.errors.items()) or "0"
        accuracy = f"{100 * row.accuracy.mean:.1f} ± {100 * (row.accuracy.stderr or 0):.1f}"
        speed = ("–", "–") if row.seconds is None else (f"{row.seconds:.1f}", f"{row.calls / row.seconds:.1f}")
        table.add_row(row.name, str(row.questions), str(row.calls), errors, accuracy, *speed)
    console.print(table)
    load = report.load
    console.print(
        f"{load.calls} Python calls, {load.in_flight} in flight on {load.slots} slots: {load.lost} lost, "
        f"{load.calls_per_s:.1f}/s, median {load.median_ms:.0f} ms, p95 {load.p95_ms:.0f}, p99 {load.p99_ms:.0f}\n"
        f"one call alone {load.sandbox_ms:.0f} ms, in a new sandbox {load.new_sandbox_ms:.0f}, plain start of Python "
        f"{load.python_ms:.0f}: overhead {load.overhead_ms:.0f} ms (40 asked)\n"
        f"runnable processes on {report.cpus} CPUs: {report.busy_before:.1f} before, {report.busy_after:.1f} after",
        highlight=False,
    )


def search_rows(name: str, tasks: Sequence[Task], searcher: Bm25Searcher) -> list[Row]:
    """Answer by searching: the row of all questions, and of those with a passage on a name in them."""
    box = PythonToolbox({"search": SearchTool(searcher)}, [SEARCH_SCHEMA], isolation="inline", max_chars=8000)
    attempts, seconds = answer_all(tasks, look_up, box, SEARCH_SCHEMA)
    titles = {" ".join(terms(passage.title)) for passage in searcher.passages}
    known = [any(" ".join(terms(n)) in titles for n in names(task.prompt[-1].content)) for task in tasks]
    rows = [summarise(name, tasks, attempts, seconds)]
    if 0 < sum(known) < len(tasks):
        covered = list(compress(tasks, known)), list(compress(attempts, known))
        rows.append(summarise("  covered", *covered, None))
    return rows


def main(
    gsm8k: Annotated[Path, typer.Option(help="GSM8K questions with solutions, JSONL", show_default=False)],
    wiki: Annotated[Path, typer.Option(help="2Wiki questions, JSONL", show_default=False)],
    corpus: Annotated[Path, typer.Option(help="passages: JSONL of title and text", show_default=False)],
    hotpot: Annotated[Path | None, typer.Option(help="HotpotQA questions with their contexts, JSONL")] = None,
    out: Annotated[Path, typer.Option(help="where the numbers go")] = Path("results/real_tools.json"),
    calls: Annotated[int, typer.Option(help="Python calls of the load test")] = 1000,
    limit: Annotated[int, typer.Option(help="first so many questions of each file; 0 = all")] = 0,
) -> None:
    """Answer GSM8K, 2Wiki and HotpotQA questions with real tools; measure the Python tool under load."""
    busy_before, first = os.getloadavg()[0], limit or None
    sums, calculator = load_gsm8k(gsm8k)
    sets: list[tuple[str, Sequence[Task], Bm25Searcher]]
    sets = [("2Wiki", load_tasks(wiki).tasks, Bm25Searcher.load(corpus))]
    if hotpot:
        sets.append(("HotpotQA", *load_hotpot(hotpot)))
    slots = len(os.sched_getaffinity(0))
    sandbox = Sandbox(slots=slots)
    python = PythonToolbox({"python": PythonTool(sandbox)}, [PYTHON_SCHEMA], isolation="inline")
    attempts, seconds = answer_all(sums[:first], calculator, python, PYTHON_SCHEMA)
    rows = [summarise("GSM8K", sums[:first], attempts, seconds)]
    for name, tasks, searcher in sets:
        rows += search_rows(name, tasks[:first], searcher)
    load = measure_load(python, sandbox, calls, slots)
    busy_after = os.getloadavg()[0]
    report = Report(
        rows=tuple(rows), load=load, cpus=os.cpu_count() or 1, busy_before=busy_before, busy_after=busy_after
    )
    print_report(report, Console())
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(report.model_dump_json(indent=1) + "\n")


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")
