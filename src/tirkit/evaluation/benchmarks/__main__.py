"""`python -m tirkit.evaluation.benchmarks DATA [--acebench CHECKOUT] [--limit N]`: the tables that say what the scorers
are worth, as Markdown: every prediction of `proof` on every case, and our comparisons against the authors' checkers.
"""

import argparse
import sys
from pathlib import Path

from tirkit.embedded.model import build_tokenizer
from tirkit.evaluation.benchmarks import acebench, acebench_official, bfcl, bfcl_official
from tirkit.evaluation.benchmarks.agreement import Agreement, agreement_table, compare
from tirkit.evaluation.benchmarks.base import BenchmarkError
from tirkit.evaluation.benchmarks.proof import Proof, exceptions_table, proof_table, prove
from tirkit.evaluation.benchmarks.registry import ALL
from tirkit.text.render import Renderer

NUM_MUTANTS = 10  # changed copies of each gold


def main() -> None:
    """Write the tables to standard output, what was left out to standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of all data")
    parser.add_argument("--acebench", type=Path, help="a checkout of ACEBench, for its checker")
    parser.add_argument("--limit", type=int, default=0, help="at most so many cases of each category")
    options = parser.parse_args()
    proofs = _proofs(options.data, options.limit)
    print(f"{proof_table(proofs)}\n\n{exceptions_table(proofs)}\n")
    print(agreement_table(_agreements(options.data, options.acebench, options.limit)))


def _proofs(data: Path, limit: int) -> list[Proof]:
    renderer = Renderer(build_tokenizer(["user assistant tool system name arguments"], size=300))
    proofs: list[Proof] = []
    for benchmark in ALL:
        try:
            proofs.append(prove(benchmark, benchmark.load(data, limit), renderer))
        except BenchmarkError as error:
            print(f"{benchmark.name} left out: {error}", file=sys.stderr)
    return proofs


def _agreements(data: Path, checkout: Path | None, limit: int) -> dict[str, Agreement]:
    found: dict[str, Agreement] = {}
    try:
        theirs = bfcl_official.official_problem(bfcl.language)
        cases = bfcl.BFCL.load(data, limit).cases
        found["bfcl-eval"] = compare(cases, bfcl.own_problem, theirs, bfcl.accepted_values, NUM_MUTANTS)
        if checkout is not None:
            theirs = acebench_official.official_problem(checkout)
            cases = acebench.ACEBENCH.load(data, limit, categories=acebench.NORMAL).cases
            found["ACEBench"] = compare(cases, acebench.own_problem, theirs, acebench.accepted_values, NUM_MUTANTS)
    except BenchmarkError as error:
        print(f"left out: {error}", file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
