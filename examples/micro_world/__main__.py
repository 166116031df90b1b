"""The grid of the micro world: arms × seeds → small JSON files, a table and a report.

    python -m examples.micro_world --out results/micro_world            both studies, five seeds
    python -m examples.micro_world --tune --out results/micro_world     the search: all candidates, on validation
    python -m examples.micro_world --quick                              one seed and few steps: a look, no result

Each run is a file; what is complete is skipped, so the command goes on where it was stopped, and `--report` only reads.
"""

import argparse
from pathlib import Path

from examples.micro_world.arms import ARMS, CHOSEN, SEEDS, TUNING_SEEDS
from examples.micro_world.grid import Run, run_all
from examples.micro_world.report import write
from examples.micro_world.studies import STUDIES
from examples.micro_world.training import Sizes

QUICK = Sizes(sft_steps=60, steps=10, window=5, measured=100)


def main() -> None:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(prog="python -m examples.micro_world", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/micro_world"))
    parser.add_argument("--studies", default=",".join(STUDIES), help="of: %(default)s")
    parser.add_argument("--arms", default=",".join(ARMS), help="of: %(default)s")
    parser.add_argument("--seeds", help="default: 0,1,2,3,4; with --tune others")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--tune", action="store_true", help="all candidates, measured on validation problems")
    parser.add_argument("--quick", action="store_true", help="one seed, few steps")
    parser.add_argument("--report", action="store_true", help="only report what is there")
    options = parser.parse_args()
    out = options.out / ("tuning" if options.tune else "quick" if options.quick else "")  # never mixed with results
    if not options.report:
        run_all(_runs(options), out, options.jobs)
    print(write(out, options.studies.split(",")))


def _runs(options: argparse.Namespace) -> list[Run]:
    """Seed by seed, so that a partial grid has all arms of its seeds."""
    sizes = QUICK if options.quick else Sizes(measured=1000) if options.tune else Sizes()
    seeds = TUNING_SEEDS if options.tune else SEEDS[:1] if options.quick else SEEDS
    if options.seeds:
        seeds = tuple(int(seed) for seed in options.seeds.split(","))
    names = options.arms.split(",")
    pairs = [(name, candidate) for name in names for candidate in ARMS[name].candidates]
    if not options.tune:
        pairs = [(name, CHOSEN[name]) for name in names]
    split = "validation" if options.tune else "test"
    studies = options.studies.split(",")
    return [Run(study, *pair, seed, split, sizes) for study in studies for seed in seeds for pair in pairs]


if __name__ == "__main__":
    main()
