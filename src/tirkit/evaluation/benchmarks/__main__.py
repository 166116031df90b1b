"""`python -m tirkit.evaluation.benchmarks DATA [--limit N] [NAME …]`: the tables that say what the scorers
are worth, as Markdown: every prediction of `proof` on every case, and our comparisons against the authors' checkers.
ACEBench's are taken from a checkout of its repository at DATA/acebench/ACEBench.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tirkit.embedded.model import build_tokenizer
from tirkit.evaluation.benchmarks import acebench, acebench_agent, acebench_official, bfcl, bfcl_official
from tirkit.evaluation.benchmarks.agreement import Accepted, Agreement, Problem, agreement_table, compare
from tirkit.evaluation.benchmarks.base import Benchmark, BenchmarkError
from tirkit.evaluation.benchmarks.proof import Proof, exceptions_table, proof_table, prove
from tirkit.evaluation.benchmarks.registry import ALL, benchmark
from tirkit.text.render import Renderer

NUM_MUTANTS = 10  # changed copies of each gold


class Checker(NamedTuple):
    """The authors' checker of a benchmark, made from ACEBench's checkout where it is theirs, and ours beside it."""

    name: str
    theirs: Callable[[Path], Problem]
    ours: Problem
    accepted: Accepted
    categories: Sequence[str] = ()


CHECKERS = {
    "bfcl": Checker(
        "bfcl-eval", lambda _: bfcl_official.official_problem(bfcl.language), bfcl.own_problem, bfcl.accepted_values
    ),
    "acebench": Checker(
        "ACEBench", acebench_official.official_problem, acebench.own_problem, acebench.accepted_values, acebench.NORMAL
    ),
    "acebench-agent": Checker(
        "ACEBench, agent",
        lambda _: acebench_agent.official_problem,
        acebench_agent.calls_problem,
        acebench_agent.accepted_values,
    ),
}


def main() -> None:
    """Write the tables to standard output, what was left out to standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of all data")
    parser.add_argument("names", nargs="*", help="these benchmarks alone")
    parser.add_argument("--limit", type=int, default=0, help="at most so many cases of each category")
    options = parser.parse_args()
    chosen = [benchmark(name) for name in options.names] or list(ALL)
    proofs = _proofs(chosen, options.data, options.limit)
    print(f"{proof_table(proofs)}\n\n{exceptions_table(proofs)}\n")
    print(agreement_table(_agreements(chosen, options.data, options.limit)))


def _proofs(chosen: Iterable[Benchmark], data: Path, limit: int) -> list[Proof]:
    renderer = Renderer(build_tokenizer(["user assistant tool system name arguments"], size=300))
    proofs: list[Proof] = []
    for one in chosen:
        try:
            proofs.append(prove(one, one.load(data, limit), renderer))
        except BenchmarkError as error:
            print(f"{one.name} left out: {error}", file=sys.stderr)
    return proofs


def _agreements(chosen: Iterable[Benchmark], data: Path, limit: int) -> dict[str, Agreement]:
    """By checker, of the benchmarks that have one whose calls can be changed one by one."""
    checkout = data / acebench.ACEBENCH.folder / acebench_agent.CHECKOUT
    found: dict[str, Agreement] = {}
    for one in chosen:
        if one.name not in CHECKERS:
            continue
        checker = CHECKERS[one.name]
        try:
            cases = one.load(data, limit, categories=checker.categories).cases
            found[checker.name] = compare(cases, checker.ours, checker.theirs(checkout), checker.accepted, NUM_MUTANTS)
        except BenchmarkError as error:
            print(f"{checker.name} left out: {error}", file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
