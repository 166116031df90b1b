"""Tools added later, five times: Seal-Tools, 3,500 tools and then 5 × 100, against all 4,000 trained at once.

    python examples/grow_seal_tools.py DATA/seal_tools --out runs/growth

Training questions use the first 3,500 tools only, in both arms, so the added tools are unseen in both. Killed, the same
command goes on. Ends with a table and OUT/growth.json: what is known of the first tools and of the added ones after
every step, with intervals, paired differences, and the time of each step as a share of training all at once.
"""

import argparse
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tirkit.config import RunConfig, load_config
from tirkit.evaluation.metrics import Estimate, estimate, paired_difference
from tirkit.evaluation.run import evaluate
from tirkit.evaluation.tables import duration
from tirkit.pipeline.grow import grown_config
from tirkit.pipeline.run import model_stage, open_run, run_stages
from tirkit.pipeline.train import remembered
from tirkit.store import RunFolder, write_atomic
from tirkit.tools.catalogue import load_catalogue
from tirkit.tools.questions import load_tasks
from tirkit.types import Record, Task, ToolSchema

CONFIG = Path(__file__).parents[1] / "configs" / "tinr_u" / "seal_tools.toml"
BASE = ["tasks.num_test=100", "tasks.min_seen_test=30", "rl.enabled=false"]
GROW = ["grow.steps=200", "grow.lr=3e-3", "evaluate.knowledge_items=100"]
SAMPLE = 500  # of the first tools, that are asked after every step


def dump(path: Path, records: Iterable[Record]) -> str:
    """Write a catalogue or questions."""
    write_atomic(path, "".join(f"{record.model_dump_json(exclude_defaults=True)}\n" for record in records))
    return str(path)


def names(task: Task) -> set[str]:
    """The tools that a question needs."""
    return {call.name for call in task.gold_calls or ()}


def divide(data: Path, sizes: Sequence[int]) -> tuple[list[list[ToolSchema]], list[list[Task]]]:
    """Tools in groups of these sizes, drawn at random; for each group the questions that need it and none after it."""
    tools = list(load_catalogue(data / "tool.jsonl").tools)
    random.Random(0).shuffle(tools)
    groups, start = list[list[ToolSchema]](), 0
    for size in sizes:
        groups.append(tools[start : start + size])
        start += size
    place = {tool.name: i for i, group in enumerate(groups) for tool in group}
    questions: list[list[Task]] = [[] for _ in groups]
    for task in load_tasks(data / "dev.jsonl").tasks:
        if names(task) <= place.keys():
            questions[max(place[name] for name in names(task))].append(task)
    return groups, questions


def measured(root: Path, parts: Mapping[str, Sequence[ToolSchema]], asked: Sequence[Task]) -> dict[str, Any]:
    """What a run's model knows of each part of the tools, by tool, and its success on questions; made only once."""
    path = root / "growth_measures.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    ctx = open_run(root)
    all_items = ctx.config.evaluate.model_copy(update={"knowledge_items": 0})  # the same tools for every run
    ctx.config = ctx.config.model_copy(update={"evaluate": all_items})
    loaded = ctx.load(model_stage(ctx, ""))
    found: dict[str, Any] = {}
    for part, tools in parts.items():
        known = remembered(ctx, loaded, part, tools).tools
        found[part] = {
            metric: {tool.name: getattr(tool, metric) for tool in known} for metric in ("memorise", "recall_f1")
        }
    result = evaluate(asked, ctx.rollout(loaded.renderer, ctx.policy(loaded, 0.0)), arm="", seen=ctx.sources.seen)
    for metric in ("success", "seen_tool_recall", "unseen_tool_recall"):
        found[metric] = result.values(metric)
    write_atomic(path, json.dumps(found))
    return found


def seconds(root: Path, stages: Sequence[str]) -> float:
    """That training took in these stages."""
    marks = [RunFolder.read(root).mark(stage) for stage in stages]
    return sum(float(mark.facts["train_s"]) for mark in marks if mark and "train_s" in mark.facts)  # type: ignore[arg-type]


def shown(value: Estimate | None) -> str:
    """In per cent, with its interval."""
    return "–" if value is None else f"{100 * value.mean:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def main() -> None:
    """Train, grow, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with tool.jsonl and dev.jsonl of Seal-Tools")
    parser.add_argument("--out", type=Path, default=Path("runs/growth"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[3500, 100, 100, 100, 100, 100])
    parser.add_argument("--base", nargs="*", default=[], help="section.key=value for the two runs from the beginning")
    parser.add_argument("--grow", nargs="*", default=[], help="section.key=value for the growing ones")
    args = parser.parse_args()
    groups, questions = divide(args.data, args.sizes)
    files = [dump(args.out / f"tools_{i}.jsonl", group) for i, group in enumerate(groups)]
    asked = dump(args.out / "questions.jsonl", questions[0])
    everything = dump(args.out / "tools.jsonl", [tool for group in groups for tool in group])

    def config(catalogue: str) -> RunConfig:
        return load_config(CONFIG, [*BASE, f"catalogue.path={catalogue}", f"tasks.path={asked}", *args.base])

    runs = {"base": args.out / "base", "all at once": args.out / "all"}
    run_stages(config(files[0]), runs["base"])
    run_stages(config(everything), runs["all at once"])
    last = runs["base"]
    for i, file in enumerate(files[1:], 1):
        runs[f"grown {i}"] = args.out / f"grown_{i}"
        run_stages(grown_config(last, file, [*GROW, *args.grow]), runs[f"grown {i}"])
        last = runs[f"grown {i}"]
    report(runs, groups, questions, args.out)


def report(runs: dict[str, Path], groups: list[list[ToolSchema]], questions: list[list[Task]], out: Path) -> None:
    """Measure every run on the tools that it has, print a table, write growth.json."""
    parts = {"first": groups[0][:SAMPLE], **{f"added {i}": group for i, group in enumerate(groups[1:], 1)}}
    new = [task for group in questions[1:] for task in group]
    found: dict[str, dict[str, Any]] = {}
    for number, (name, root) in enumerate(runs.items()):
        known = len(parts) if name == "all at once" else max(1, number)
        mine = dict(list(parts.items())[:known])
        found[name] = measured(root, mine, new if known == len(parts) else [])
    whole = seconds(runs["all at once"], ("internalise", "warmup"))
    lines, summary = list[str](), dict[str, Any]()
    for name, root in runs.items():
        took = seconds(root, ("internalise", "warmup", "grow"))
        known = {part: estimate(found[name][part]["memorise"].values()) for part in parts if part in found[name]}
        fall = paired_difference(found[name]["first"]["memorise"], found["base"]["first"]["memorise"])
        asked = {metric: estimate(found[name][metric].values()) for metric in ("success", "unseen_tool_recall")}
        lines.append(
            f"{name:<12} {duration(took)} = {took / whole:.1%} of all at once; first tools − base: {shown(fall)}"
        )
        lines += [f"             {part}: tool from document % {shown(value)}" for part, value in known.items()]
        lines += [f"             questions on added tools, {m} %: {shown(v)}" for m, v in asked.items() if v]
        stored = {**known, **asked, "first_minus_base": fall}
        summary[name] = {"train_s": took, **{k: v.model_dump() if v else None for k, v in stored.items()}}
    print("\n".join(lines))
    write_atomic(out / "growth.json", json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
