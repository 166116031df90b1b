"""Runs of several arms and seeds → a table with intervals over seeds, and one small JSON file.

    for s in 1 2 3 4 5; do tirkit compare CONFIG --arms A,B,C --seeds $s --out runs/study/$s tasks.test_seed=$s; done
    python examples/study.py runs/study/* --groups easy=single,two_step hard=arithmetic_hard --against A --out A.json

Every seed has its own test questions, so nothing is shared between seeds and an interval is Student's t over the means
of the seeds. Differences to an arm are taken within a seed, on the same questions.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tirkit.evaluation.metrics import Item, over_seeds
from tirkit.evaluation.run import EvaluationResult
from tirkit.store import RunFolder, write_atomic

METRICS = {"success": 100.0, "think_rate": 100.0, "output_tokens": 1.0, "prompt_tokens": 1.0}
HEADS = {"success": "right %", "think_rate": "thinks %", "output_tokens": "tokens written", "prompt_tokens": "prompt"}
UNTRAINED = ("prepare", "evaluate", "report")
Values = dict[str, dict[str, float | None]]  # group → metric → mean over questions; None where there is none


def means(items: Sequence[Item], groups: Mapping[str, Sequence[str]]) -> Values:
    """Mean of each metric over the questions of each group, and over all."""
    chosen = {"all": items} | {name: [i for i in items if i.kind in kinds] for name, kinds in groups.items()}
    found: Values = {}
    for group, part in chosen.items():
        judged = {name: [v for i in part if (v := i.metrics.get(name)) is not None] for name in METRICS}
        found[group] = {name: statistics.fmean(v) if v else None for name, v in judged.items()}
    return found


def read(folders: Sequence[Path], groups: Mapping[str, Sequence[str]]) -> dict[str, dict[int, Values]]:
    """Arm → seed → means of the last model's answers, with its training seconds under "run"."""
    arms: dict[str, dict[int, Values]] = defaultdict(dict)
    for root in sorted(path.parent for folder in folders for path in folder.glob("*/manifest.json")):
        run = RunFolder.read(root)
        results = list(run.read_records("test_results", EvaluationResult))
        if not results:
            print(f"{root}: not measured yet, left out")
            continue
        marks = [json.loads(path.read_text()) for path in (root / "stages").glob("*.json")]
        seconds = sum(mark["duration_s"] for mark in marks if mark["stage"] not in UNTRAINED)
        manifest = run.manifest
        if manifest.seed in arms[manifest.config.name]:
            raise SystemExit(f"{root}: arm {manifest.config.name} with seed {manifest.seed} is there twice")
        arms[manifest.config.name][manifest.seed] = means(results[-1].items, groups) | {"run": {"seconds": seconds}}
    return arms


def cell(seeds: Mapping[int, Values], group: str, metric: str, base: Mapping[int, Values] | None = None) -> str:
    """Mean ± half an interval over seeds; with `base`, of the difference to it over the seeds that both have."""
    common = [seed for seed in seeds if base is None or seed in base]
    values = [seeds[seed][group].get(metric) for seed in common]
    if base is not None:
        others = [base[seed][group].get(metric) for seed in common]
        values = [None if a is None or b is None else a - b for a, b in zip(values, others, strict=True)]
    known = [METRICS.get(metric, 1.0) * value for value in values if value is not None]
    if not known:
        return "–"
    mean, half = over_seeds(known)
    return f"{mean:{'' if base is None else '+'}.1f}" + (f" ± {half:.1f}" if len(known) > 1 else "")


def table(arms: Mapping[str, Mapping[int, Values]], groups: Sequence[str], base: str = "") -> str:
    """Markdown: one row an arm; with `base`, of differences to that arm."""
    columns = [(group, metric) for group in groups for metric in ("success", "think_rate", "output_tokens")]
    columns += [("all", "prompt_tokens"), ("run", "seconds")]
    heads = ["arm" if not base else f"minus {base}", "seeds"]
    heads += ["training s" if group == "run" else f"{group}: {HEADS[metric]}" for group, metric in columns]
    rows = [heads, ["---"] * len(heads)]
    for arm, seeds in arms.items():
        if arm != base:
            ours = arms[base] if base else None
            rows.append([arm, str(len(seeds)), *(cell(seeds, *column, ours) for column in columns)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    """Read, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="output folders of `tirkit compare`")
    parser.add_argument("--groups", nargs="*", default=[], help="NAME=KIND,KIND: kinds of questions taken together")
    parser.add_argument("--against", nargs="*", default=[], help="arms that all others are compared with")
    parser.add_argument("--out", type=Path, help="JSON file: arm → seed → group → metric")
    args = parser.parse_args()
    groups = {name: kinds.split(",") for name, _, kinds in (group.partition("=") for group in args.groups)}
    arms = read(args.folders, groups)
    if unknown := [arm for arm in args.against if arm not in arms]:
        parser.error(f"--against {unknown[0]}: there is no such arm; there are {', '.join(arms)}")
    names = ["all", *groups]
    print("\n\n".join([table(arms, names), *(table(arms, names, base) for base in args.against)]))
    print("± half a 95 % interval over seeds (Student's t).")
    if args.out:
        write_atomic(args.out, json.dumps({"groups": groups, "arms": arms}, indent=1) + "\n")


if __name__ == "__main__":
    main()
