"""Does a scorer deserve belief? Play what must be right and what must be wrong, and look at the numbers.

Each prediction is played through the rollout loop like a model's. Gold must score 1, all others 0, on every case.
Where an attempt without a call is officially right (irrelevance), those others that make none score 1 too; `answered`,
which also wants a well-formed reply, is shown beside it. Exceptions are listed by case.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tirkit.evaluation.benchmarks.base import Benchmark, Case, CaseAttempt, Loaded, ScoreFn
from tirkit.evaluation.benchmarks.parts import value_mean
from tirkit.evaluation.benchmarks.runner import Asking, attempt, make_result
from tirkit.evaluation.benchmarks.worlds import worlds
from tirkit.rollout.loop import RolloutSettings
from tirkit.rollout.policy import ScriptedPolicy, oracle
from tirkit.text.control import CONTROL_STRINGS
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer
from tirkit.tools.runtime import Toolbox
from tirkit.types import Task, ToolCall, ToolResult, Turn

DIALECT = Dialect()
Write = Callable[[Case, "Neighbours"], str]


@dataclass(frozen=True)
class Neighbours:
    """What an attempt that knows no better can draw from: answers to any of the cases, and the tools it sees."""

    answers: tuple[str, ...]
    tools: tuple[str, ...]


@dataclass(frozen=True)
class Proof:
    """The results of every prediction, by its name."""

    benchmark: Benchmark
    results: dict[str, tuple[CaseAttempt, ...]]

    def exceptions(self, prediction: str) -> list[CaseAttempt]:
        """The cases where it does not score what it must: gold 1, all others 0."""
        wanted = float(prediction == "gold")
        return [result for result in self.results[prediction] if result.score.right != wanted]

    def row(self, category: str) -> list[str]:
        """Cells of the table: the category, its size, each prediction's mean in percent, `answered` in brackets."""
        cells: list[str] = []
        size = 0
        for results in self.results.values():
            own = [result for result in results if result.category == category]
            size = len(own)
            mean = sum(result.score.right for result in own) / max(size, 1)
            answered = value_mean(own, "answered")
            cells.append(f"{100 * mean:.1f}" + ("" if answered is None else f" ({100 * answered:.0f})"))
        return [category, str(size), *cells]


def gold_text(case: Case) -> str:
    """The one turn that plays the case's gold; a case that any call is right for gets one to its first tool."""
    task = case.task
    if task.gold_rounds:
        return DIALECT.print_calls(task.gold_rounds[0])
    if task.gold_rounds is None and task.answer is None:
        return DIALECT.print_calls([ToolCall(name=case.tools[0].name)])
    return DIALECT.print_answer(task.answer or "No tool fits.")


def truncated(case: Case, _: Neighbours) -> str:
    """The first half of the gold turn."""
    text = gold_text(case)
    return text[: len(text) // 2]


def echo(case: Case, _: Neighbours) -> str:
    """The prompt as a reply."""
    text = "\n".join(message.content for message in case.task.prompt)
    for control in CONTROL_STRINGS:
        text = text.replace(control, " ")
    return DIALECT.print_answer(text)


def everything(case: Case, near: Neighbours) -> str:
    """All answers in one reply, or the gold calls and one to every tool."""
    if case.task.answer is not None:
        answers = dict.fromkeys((case.task.answer, *near.answers))
        return DIALECT.print_answer(" ".join(answers))
    more = [ToolCall(name=name) for name in near.tools[:50]] or [ToolCall(name="another_tool")]
    return DIALECT.print_calls([*(case.task.gold_calls or ()), *more])


def wrong_tool(case: Case, near: Neighbours) -> str:
    """The gold calls made to another tool; another case's answer; a call where none is needed."""
    if case.task.answer is not None and not case.task.gold_calls:
        right = {answer.lower() for answer in case.task.answers}
        return DIALECT.print_answer(next((a for a in near.answers if a.lower() not in right), "something else"))
    if not case.task.gold_calls:
        return DIALECT.print_calls([ToolCall(name=near.tools[0] if near.tools else "another_tool")])
    used = {call.name for call in case.task.gold_calls}
    other = next((name for name in near.tools if name not in used), "another_tool")
    return DIALECT.print_calls([call.model_copy(update={"name": other}) for call in case.task.gold_calls])


ATTACKS: dict[str, Write] = {
    "empty": lambda case, near: "",
    "truncated": truncated,
    "echo": echo,
    "everything": everything,
    "wrong tool": wrong_tool,
}


def prove(benchmark: Benchmark, loaded: Loaded, renderer: Renderer, score: ScoreFn | None = None) -> Proof:
    """Play gold and every attack on all cases. score: another scorer than the benchmark's own (the official one)."""
    known = tuple(dict.fromkeys(case.task.answer for case in loaded.cases if case.task.answer is not None))
    answers = known[:: len(known) // 20 + 1]
    shared = tuple(tool.name for tool in loaded.tools)
    near = {case.task.id: Neighbours(answers, case.task.tools or shared) for case in loaded.cases}
    played: dict[str, tuple[CaseAttempt, ...]] = {"gold": _play(benchmark, loaded, renderer, score, _gold)}
    for name, write in ATTACKS.items():
        texts = {case.task.id: write(case, near[case.task.id]) for case in loaded.cases}
        played[name] = _play(benchmark, loaded, renderer, score, lambda task, turns, texts=texts: texts[task.id])
    return Proof(benchmark, played)


def _gold(task: Task, turns: Sequence[Turn]) -> str:
    if task.gold_rounds is None and task.answer is None:
        return DIALECT.print_calls([ToolCall(name=task.tools[0])])
    return oracle(DIALECT, "No tool fits.")(task, turns)


class _NoTools:
    def run(self, call: ToolCall) -> ToolResult:
        return ToolResult(name=call.name, content="nothing")


def _play(
    benchmark: Benchmark,
    loaded: Loaded,
    renderer: Renderer,
    score: ScoreFn | None,
    script: Callable[[Task, Sequence[Turn]], str],
) -> tuple[CaseAttempt, ...]:
    policy = ScriptedPolicy(script, renderer)
    settings = RolloutSettings(max_new_tokens=10**9, max_tokens=10**9, max_calls=10**9, workers=0)
    toolbox: Toolbox = _NoTools()
    results: dict[str, CaseAttempt] = {}
    for world in worlds(loaded.cases, loaded.tools, size=10**6):
        tasks = [case.task for case in world.cases]
        asking = Asking(policy, renderer, DIALECT)
        found = attempt(asking, benchmark, world.cases, tasks, world.tools, toolbox, settings)
        for case, trajectory in zip(world.cases, found, strict=True):
            results[case.task.id] = make_result(trajectory, case, score or benchmark.score)
    return tuple(results[case.task.id] for case in loaded.cases)


def proof_table(proofs: Iterable[Proof]) -> str:
    """Markdown: a row a category, percent right of every prediction."""
    lines = [
        "| benchmark | category | n | gold | " + " | ".join(ATTACKS) + " |",
        "|---|---|---" + "|---" * (1 + len(ATTACKS)) + "|",
    ]
    for proof in proofs:
        categories = dict.fromkeys(result.category for result in proof.results["gold"])
        lines += [f"| {proof.benchmark.name} | {' | '.join(proof.row(category))} |" for category in categories]
    return "\n".join(lines)


def exceptions_table(proofs: Iterable[Proof]) -> str:
    """Markdown: the cases where a prediction does not score what it must, no-call categories left out."""
    lines = ["| benchmark | prediction | why | n | cases |", "|---|---|---|---|---|"]
    for proof in proofs:
        for prediction in proof.results:
            by_why: dict[str, list[str]] = {}
            for result in proof.exceptions(prediction):
                if "answered" not in result.score.values:
                    by_why.setdefault(result.score.why or "right", []).append(result.case_id)
            for why, ids in by_why.items():
                shown = ", ".join(ids[:4]) + (", …" if len(ids) > 4 else "")
                lines.append(f"| {proof.benchmark.name} | {prediction} | {why} | {len(ids)} | {shown} |")
    return "\n".join(lines) if len(lines) > 2 else "None."
