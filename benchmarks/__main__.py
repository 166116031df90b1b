"""`python -m benchmarks [--only update,sft] [--repeats 5]`: JSON under results/bench/, docs/benchmarks.md, plots.

The plots are results/bench/report/index.html. `catalogue_size` writes a report of its own; it alone reads --catalogue
and --questions.
"""

import argparse
from importlib import import_module
from pathlib import Path

from benchmarks.catalogue_size import measure_catalogue_sizes
from benchmarks.harness import PAGE, write_results
from tirkit.tools.catalogue import SEAL_TOOLS_SAMPLE

MINUTES = {  # estimates, not measurements: five repeats on one idle core
    "update": 20,
    "step": 30,
    "rollout": 10,
    "growth": 15,
    "sft": 12,
    "constrained": 2,
    "internalised": 10,
    "scoring": 2,
    "catalogue_size": 2,
    "server_load": 5,
}

parser = argparse.ArgumentParser(description="Run the benchmarks; write their numbers, a page and a report.")
parser.add_argument(
    "--only", default=",".join(MINUTES), help=f"names, separated by commas; default: {','.join(MINUTES)}"
)
parser.add_argument("--repeats", type=int, default=5)
parser.add_argument("--catalogue", type=Path, default=SEAL_TOOLS_SAMPLE / "tools.jsonl")
parser.add_argument("--questions", type=Path, default=SEAL_TOOLS_SAMPLE / "questions.jsonl")
parser.add_argument("--out", type=Path, default=Path("results"))
parser.add_argument("--page", type=Path, default=PAGE)
arguments = parser.parse_args()
names = arguments.only.split(",")
if unknown := set(names) - set(MINUTES):
    parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(MINUTES)}")
for name in names:
    print(f"{name}: about {MINUTES[name]} minutes with five repeats", flush=True)
    if name == "catalogue_size":
        print(measure_catalogue_sizes(arguments.catalogue, arguments.questions, arguments.out))
    else:
        # Written after each, so that a run that is stopped keeps what it has measured.
        print(write_results(import_module(f"benchmarks.{name}").run(arguments.repeats), arguments.out, arguments.page))
