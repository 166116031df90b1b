"""All benchmarks, by name."""

from tirkit.evaluation.benchmarks.acebench import ACEBENCH
from tirkit.evaluation.benchmarks.acebench_agent import ACEBENCH_AGENT
from tirkit.evaluation.benchmarks.api_bank import API_BANK
from tirkit.evaluation.benchmarks.base import Benchmark, BenchmarkError
from tirkit.evaluation.benchmarks.bfcl import BFCL
from tirkit.evaluation.benchmarks.bfcl_turns import BFCL_TURNS
from tirkit.evaluation.benchmarks.maths import MATHS
from tirkit.evaluation.benchmarks.metatool import METATOOL
from tirkit.evaluation.benchmarks.nestful import NESTFUL
from tirkit.evaluation.benchmarks.qa import QA
from tirkit.evaluation.benchmarks.seal_tools import SEAL_TOOLS
from tirkit.evaluation.benchmarks.stabletoolbench import STABLETOOLBENCH
from tirkit.evaluation.benchmarks.tau_retail import TAU_RETAIL
from tirkit.evaluation.benchmarks.toolalpaca import TOOLALPACA

ALL = (
    BFCL,
    BFCL_TURNS,
    ACEBENCH,
    ACEBENCH_AGENT,
    API_BANK,
    SEAL_TOOLS,
    NESTFUL,
    METATOOL,
    STABLETOOLBENCH,
    TOOLALPACA,
    TAU_RETAIL,
    MATHS,
    QA,
)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in ALL}


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name. BenchmarkError where there is none."""
    if name not in BENCHMARKS:
        raise BenchmarkError(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
