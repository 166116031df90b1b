"""GSM8K, MATH-500, AIME and AMC with the Python tool: the reply is the number or expression asked for.

Asked with the problem and the document of `python`; code runs in the sandbox. Right: the reply equals the answer as an
expression (math-verify). A benchmark whose file is not there has no cases.
"""

from pathlib import Path

from tirkit.evaluation.benchmarks.base import Benchmark, Case, Loaded, Score, Source
from tirkit.evaluation.benchmarks.parts import category_means
from tirkit.scoring.match import Verdict, verdict
from tirkit.tools.lines import FileIssue
from tirkit.tools.python import PYTHON_SCHEMA, PythonTool
from tirkit.tools.questions import load_tasks
from tirkit.tools.runtime import PythonToolbox, Toolbox
from tirkit.types import Message, StopReason, Trajectory

FILES = {
    "gsm8k": "gsm8k_test.jsonl",
    "math500": "math500.jsonl",
    "aime24": "aime24.jsonl",
    "aime25": "aime25.jsonl",
    "amc23": "amc23.jsonl",
}
RULE = "Solve the problem; you may run Python code. Reply with the final answer alone."


def read(folder: Path) -> Loaded:
    """Cases of the files there are."""
    cases: list[Case] = []
    issues: list[FileIssue] = []
    for kind, name in FILES.items():
        if not (folder / name).exists():
            continue
        file = load_tasks(folder / name)
        issues += file.issues
        for task in file.tasks:
            prompt = (Message(role="system", content=RULE), *task.prompt)
            change = {"id": f"{kind}-{task.id}", "prompt": prompt, "tools": ("python",), "comparison": "maths"}
            cases.append(Case(task.model_copy(update={**change, "kind": kind}), (PYTHON_SCHEMA,)))
    return Loaded(tuple(cases), issues=tuple(issues))


def score(trajectory: Trajectory, case: Case) -> Score:
    """Whether the reply equals the answer."""
    if verdict(trajectory, case.task) is Verdict.RIGHT:
        return Score(right=1.0)
    return Score(right=0.0, why="wrong answer" if trajectory.stop is StopReason.ANSWERED else "no answer")


def toolbox(folder: Path) -> Toolbox:
    """`python`, in the sandbox."""
    return PythonToolbox({"python": PythonTool()}, [PYTHON_SCHEMA], isolation="inline")


MATHS = Benchmark(
    name="maths",
    folder="math",
    source=Source(
        "https://github.com/openai/grade-school-math; MATH-500 of openai/prm800k",
        "3101c7d5072418e28b9008a6636bde82a006892c",
        "MIT",
    ),
    categories=tuple(FILES),
    prompting="the problem, the Python tool's document, the request for the answer alone; up to 20 turns",
    read=read,
    score=score,
    totals=category_means,
    toolbox=toolbox,
)
