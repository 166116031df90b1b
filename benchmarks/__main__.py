"""`python -m benchmarks [--catalogue FILE] [--questions FILE]`: every benchmark, results under results/."""

import argparse
from pathlib import Path

from benchmarks.catalogue_size import measure_catalogue_sizes
from tirkit.tools.catalogue import SEAL_TOOLS_SAMPLE

parser = argparse.ArgumentParser(description="Run the benchmarks and write results/*.json and a report.")
parser.add_argument("--catalogue", type=Path, default=SEAL_TOOLS_SAMPLE / "tools.jsonl")
parser.add_argument("--questions", type=Path, default=SEAL_TOOLS_SAMPLE / "questions.jsonl")
parser.add_argument("--out", type=Path, default=Path("results"))
arguments = parser.parse_args()
print(measure_catalogue_sizes(arguments.catalogue, arguments.questions, arguments.out))
