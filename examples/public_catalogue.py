"""One small model for the tools of Seal-Tools, API-Bank and BFCL together, put to the function-calling benchmarks.

    python examples/public_catalogue.py DATA --out runs/public

DATA: the folder of all benchmarks' data. Writes OUT/tools.jsonl, OUT/questions.jsonl and OUT/files.json (what they come
from), trains the two arms of configs/tinr_u/public.toml, and asks both: the model that remembers its tools, and the one
that BM25 shows five documents. Ends with a table and OUT/public.json. Killed, the same command goes on.

Of tools with one name the first keeps it, in the order of the sets; a different one that comes later gets a suffix
(`f_2`), which the benchmark's scorer never sees. Trained on: the training part of Seal-Tools where DATA has it, else
500 of the 700 questions of its dev part; and questions written from the documents by template. None of them equals a
question that is evaluated, or shares 13 words in a row with one.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from tirkit.config import load_config
from tirkit.evaluation.benchmarks.base import Case
from tirkit.evaluation.benchmarks.folder import Outcome, read_outcomes
from tirkit.evaluation.benchmarks.registry import benchmark
from tirkit.evaluation.benchmarks.worlds import Pool
from tirkit.evaluation.metrics import Estimate, estimate
from tirkit.evaluation.tables import EMPTY, percent
from tirkit.methods.autotraj.pairs import contaminated
from tirkit.pipeline.benchmarks import BenchmarkOptions, benchmark_run
from tirkit.pipeline.questions import QuestionOptions, write_questions
from tirkit.pipeline.run import run_stages
from tirkit.rollout.loop import searched_by
from tirkit.store import RunFolder, write_atomic
from tirkit.tools.catalogue import load_catalogue, unique_names
from tirkit.tools.questions import load_tasks
from tirkit.tools.retrieve import ToolRetriever
from tirkit.types import Record, Task, ToolSchema

CONFIG = Path(__file__).parents[1] / "configs" / "tinr_u" / "public.toml"
REMEMBERED = ("seal-tools", "api-bank", "bfcl")
SINGLE_TURN = (*REMEMBERED, "acebench", "nestful", "toolalpaca", "metatool", "stabletoolbench")
# name in the table: arm of the config, documents in the prompt, what it can be asked
ARMS = {
    "remembered": ("method", "none", REMEMBERED),
    "BM25, 5 documents": ("retrieve", "retrieve", SINGLE_TURN),
}
METRICS = ("success", "id_em", "call_em", "false_call", "prompt_tokens", "output_tokens", "seconds")
FACTS = ("tools", "parameters", "train_tasks", "steps", "rows", "tokens", "train_s", "memorise", "recall_f1")
DEV_TRAINED = 5 / 7  # share of the dev part of Seal-Tools, where there is no training part


class Files(Record):
    """What the tools and questions come from, and how many of each."""

    tools: dict[str, int]
    licences: dict[str, str]
    renamed: int
    seal_tools_part: str
    questions: dict[str, int]
    resemble_evaluation: int


def collect_tools(data: Path, more: Path | None) -> list[ToolSchema]:
    """The tools that the three sets' questions are about, then those of `more` of the same sets that have other names.

    Each as its set names it.
    """
    found: list[ToolSchema] = []
    for name in REMEMBERED:
        loaded = benchmark(name).load(data)
        own = (*loaded.tools, *(tool for case in loaded.cases for tool in case.tools))
        found += (tool.model_copy(update={"source": name}) for tool in own)
    names = {tool.name for tool in found}
    for tool in load_catalogue(more).tools if more else ():
        source = tool.source.partition(":")[0].replace("_", "-")
        if source.startswith(("api-bank", "bfcl")) and (tool.original_name or tool.name) not in names:
            found.append(tool)
    return [
        tool.model_copy(update={"name": tool.original_name or tool.name, "original_name": ""})
        for tool in unique_names(found)
    ]


def seal_questions(data: Path, known: Iterable[str]) -> tuple[str, tuple[Task, ...]]:
    """(which part, its questions to train on)."""
    folder, names = data / benchmark("seal-tools").folder, set(known)
    if (folder / "train.jsonl").exists():
        return "train.jsonl", load_tasks(folder / "train.jsonl", names).tasks
    tasks = load_tasks(folder / "dev.jsonl", names).tasks
    return "dev.jsonl", tuple(random.Random(0).sample(tasks, round(len(tasks) * DEV_TRAINED)))


def clean(data: Path, asked: Sequence[Task]) -> tuple[list[Task], int]:
    """(the questions that resemble none that is evaluated, how many do). A dev question trained on is not evaluated."""
    given = {task.id for task in asked}
    cases = [case.task for name in SINGLE_TURN for case in benchmark(name).load(data).cases]
    bad = contaminated(asked, [task for task in cases if task.id not in given])
    return [task for task in asked if task.id not in bad], len(bad)


def write_files(data: Path, out: Path, more: Path | None, generated: int) -> Files:
    """Tools, questions and where they come from; what is written already stays."""
    done = out / "files.json"
    if done.exists():
        return Files.model_validate_json(done.read_text(encoding="utf-8"))
    _dump(out / "tools.jsonl", collect_tools(data, more))
    catalogue = load_catalogue(out / "tools.jsonl")
    part, seal = seal_questions(data, catalogue.by_name)
    made = write_questions(str(out / "tools.jsonl"), out / "generated.jsonl", QuestionOptions(num=generated)).tasks
    kept, left_out = clean(data, (*seal, *made))
    _dump(out / "questions.jsonl", kept)
    ours = {task.id for task in made}
    files = Files(
        tools=dict(Counter(tool.source for tool in catalogue.tools)),
        licences={name: benchmark(name).source.licence for name in REMEMBERED},
        renamed=catalogue.renamed,
        seal_tools_part=part,
        questions=dict(Counter("from documents" if task.id in ours else "Seal-Tools" for task in kept)),
        resemble_evaluation=left_out,
    )
    write_atomic(done, files.model_dump_json(indent=1) + "\n")
    return files


def _dump(path: Path, records: Iterable[Record]) -> None:
    write_atomic(path, "".join(f"{record.model_dump_json(exclude_defaults=True)}\n" for record in records))


def ask(run: Path, options: BenchmarkOptions) -> list[Outcome]:
    """The benchmarks put to a run's model; what is stored is not asked again."""
    assert options.out is not None
    benchmark_run(run, "", options)
    return read_outcomes(options.out)


def found_by_bm25(tools: Sequence[ToolSchema], outcome: Outcome, cases: Iterable[Case]) -> Estimate | None:
    """The share of each question's gold tools that are among the documents BM25 shows: the second arm's ceiling."""
    pool, retriever = Pool(tools), ToolRetriever(tools)
    asked = {result.case_id for result in outcome.results}
    shares: list[float] = []
    for case in cases:
        if case.task.id in asked and case.task.gold_calls:
            task = pool.task(case)
            wanted = {call.name for call in task.gold_calls or ()}
            shown = retriever.top(searched_by(task), outcome.setting.k)
            shares.append(len(wanted.intersection(shown)) / len(wanted))
    return estimate(shares)


def row(outcome: Outcome) -> dict[str, JsonValue]:
    """One benchmark's numbers: means with standard error and n, how often each reason, what was checked."""
    evaluation, about = outcome.evaluation(), outcome.summary
    found = {name: evaluation.estimate(name) for name in METRICS}
    why = Counter(result.score.why for result in outcome.results if result.score.why)
    return {
        "n": len(outcome.results),
        **{name: shown(value) for name, value in found.items() if value},
        "totals": {name: round(value, 4) for name, value in outcome.totals.items() if value is not None},
        "wrong_since": dict(why.most_common()),
        "scored_by": about.checker,
        "trained_on_left_out": about.trained_on,
        "contamination": str(about.overlap),
    }


def shown(value: Estimate) -> dict[str, JsonValue]:
    """A mean as it is stored."""
    stderr = None if value.stderr is None else round(value.stderr, 4)
    return {"mean": round(value.mean, 4), "stderr": stderr, "n": value.n}


def table(arms: Mapping[str, Sequence[Outcome]]) -> str:
    """Markdown: a row a benchmark, both arms side by side."""
    heads = [f"{arm}: {head}" for arm in arms for head in ("right %", "right tools %", "prompt tokens")]
    lines = [f"| benchmark | n | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    by_name = {arm: {outcome.benchmark.name: outcome for outcome in found} for arm, found in arms.items()}
    for name in SINGLE_TURN:
        outcomes = [found.get(name) for found in by_name.values()]
        counts = " / ".join(str(len(outcome.results)) for outcome in outcomes if outcome)
        cells = [cell for outcome in outcomes for cell in (_cells(outcome) if outcome else [EMPTY] * 3)]
        if counts:
            lines.append(f"| {name} | {counts} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(outcome: Outcome) -> list[str]:
    right, tools, tokens = (outcome.evaluation().estimate(name) for name in ("success", "id_em", "prompt_tokens"))
    return [percent(right), percent(tools), f"{tokens.mean:,.0f}" if tokens else EMPTY]


def trained(root: Path) -> dict[str, JsonValue]:
    """What a run's stages say of themselves."""
    folder = RunFolder.read(root)
    marks = {stage: folder.mark(stage) for stage in ("prepare", "internalise", "warmup")}
    return {
        stage: {key: mark.facts[key] for key in FACTS if key in mark.facts} for stage, mark in marks.items() if mark
    }


def main() -> None:
    """Write the files, train both arms, ask them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of all benchmarks' data")
    parser.add_argument("--out", type=Path, default=Path("runs/public"))
    parser.add_argument("--more", type=Path, help="a catalogue with further tools of the three sets")
    parser.add_argument("--generated", type=int, default=6000, help="questions written from the documents")
    parser.add_argument("--limit", type=int, default=40, help="at most so many cases of each category; 0 = all")
    parser.add_argument("--max-new-tokens", type=int, default=200, help="of one turn")
    parser.add_argument("--set", nargs="*", default=[], help="section.key=value, for both arms")
    args = parser.parse_args()
    files = write_files(args.data, args.out, args.more, args.generated)
    print(files.model_dump_json(indent=1))
    paths = [f"catalogue.path={args.out / 'tools.jsonl'}", f"tasks.path={args.out / 'questions.jsonl'}"]
    arms: dict[str, list[Outcome]] = {}
    facts: dict[str, JsonValue] = {"files": files.model_dump()}
    for name, (arm, documents, names) in ARMS.items():
        run = args.out / arm
        run_stages(load_config(CONFIG, [*paths, *args.set], "" if arm == "method" else arm), run)
        asked = args.out / f"{arm}_benchmarks"
        options = BenchmarkOptions(
            names, args.data, documents, args.limit, max_new_tokens=args.max_new_tokens, out=asked, held_out=True
        )
        arms[name] = ask(run, options)
        facts[name] = {"trained": trained(run), "benchmarks": {o.benchmark.name: row(o) for o in arms[name]}}
    tools = load_catalogue(args.out / "tools.jsonl").tools
    known = {o.benchmark.name: found_by_bm25(tools, o, o.benchmark.load(args.data).cases) for o in arms["remembered"]}
    facts["found by BM25"] = {name: shown(value) for name, value in known.items() if value}
    print(table(arms))
    print("\n".join(f"{name}: BM25 shows {percent(value)} % of the gold tools" for name, value in known.items()))
    write_atomic(args.out / "public.json", json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
