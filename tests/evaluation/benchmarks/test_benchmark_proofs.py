"""Every scorer proves itself: gold is right on every case, what must be wrong is wrong."""

from pathlib import Path

import pytest

from tirkit.evaluation.benchmarks.acebench_agent import ACEBENCH_AGENT
from tirkit.evaluation.benchmarks.base import Benchmark, BenchmarkError
from tirkit.evaluation.benchmarks.bfcl_turns import BFCL_TURNS
from tirkit.evaluation.benchmarks.proof import ATTACKS, Proof, exceptions_table, proof_table, prove
from tirkit.evaluation.benchmarks.registry import ALL, benchmark
from tirkit.evaluation.benchmarks.tau_retail import TAU_RETAIL
from tirkit.text.render import Renderer

# Where the data itself says otherwise. Gold: the accepted value has no literal that its reader gives; every listed API
# is relevant; any call at all is right.
GOLD_IS_WRONG = {"simple_java_36", "live_simple_106-63-0"}
EVERYTHING_IS_RIGHT = {"stabletoolbench"}
ANY_CALL_IS_RIGHT = {"live_relevance"}


def check(proof: Proof) -> None:
    # ACEBench's rules leave some answers out of reach; ours (`strict`) do not.
    wrong = [result for result in proof.exceptions("gold") if not result.score.values.get("strict")]
    assert {result.case_id for result in wrong} <= GOLD_IS_WRONG
    for attack in ATTACKS:
        for result in proof.exceptions(attack):
            if "answered" in result.score.values:  # no call needed: right without one, but `answered` only by a reply
                assert not result.trajectory.calls
                assert result.score.values["answered"] == float(attack == "echo")
            else:
                excused = attack == "everything" and proof.benchmark.name in EVERYTHING_IS_RIGHT
                assert excused or result.category in ANY_CALL_IS_RIGHT, (attack, result.case_id)


@pytest.mark.parametrize(
    "benchmark", [one for one in ALL if one not in (BFCL_TURNS, TAU_RETAIL)], ids=lambda one: one.name
)
def test_the_scorer_proves_itself_on_the_fixture(benchmark: Benchmark, tiny_data: Path, renderer: Renderer) -> None:
    loaded = benchmark.load(tiny_data)
    assert not loaded.issues
    check(prove(benchmark, loaded, renderer))


@pytest.mark.parametrize("benchmark", ALL, ids=lambda one: one.name)
def test_the_scorer_proves_itself_on_real_items(
    benchmark: Benchmark, shared_data: Path, renderer: Renderer, request: pytest.FixtureRequest
) -> None:
    if benchmark is ACEBENCH_AGENT:
        request.getfixturevalue("acebench_checkout")  # skips where it is not
    if benchmark is BFCL_TURNS:
        pytest.importorskip("bfcl_eval", reason="its environments are not installed: pip install --no-deps bfcl-eval")
    limit = {"bfcl-multi-turn": 2, "tau-retail": 3, "seal-tools": 10, "maths": 5, "metatool": 8}.get(benchmark.name, 12)
    check(prove(benchmark, benchmark.load(shared_data, limit), renderer))


def test_the_tables_name_what_is_not_as_it_must_be(tiny_data: Path, renderer: Renderer) -> None:
    one = benchmark("bfcl")
    proof = prove(one, one.load(tiny_data, categories=("irrelevance", "live_relevance")), renderer)
    table = proof_table([proof]).splitlines()
    # one case each: gold, empty, truncated, echo, everything, wrong tool; in brackets no call and a reply
    assert (
        table[2] == "| bfcl | irrelevance | 1 | 100.0 (100) | 100.0 (0) | 100.0 (0) | 100.0 (100) | 0.0 (0) | 0.0 (0) |"
    )
    assert table[3] == "| bfcl | live_relevance | 1 | 100.0 | 0.0 | 0.0 | 0.0 | 100.0 | 100.0 |"
    assert "| bfcl | everything | right | 1 | live_relevance_0 |" in exceptions_table([proof])


def test_what_cannot_be_loaded_is_named(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="no benchmark 'bfc'; there are bfcl"):
        benchmark("bfc")
    with pytest.raises(BenchmarkError, match="no category 'easy'"):
        benchmark("bfcl").load(tiny_data, categories=("easy",))
    with pytest.raises(BenchmarkError, match=r"get https://github\.com/ShishirPatil/gorilla"):
        benchmark("bfcl").load(tmp_path)


def test_a_sample_is_part_of_a_larger_one(shared_data: Path) -> None:
    few = {case.task.id for case in benchmark("api-bank").load(shared_data, limit=3).cases}
    more = {case.task.id for case in benchmark("api-bank").load(shared_data, limit=9).cases}
    assert len(few) == 9  # three of each level
    assert few < more
    assert few != {case.task.id for case in benchmark("api-bank").load(shared_data, limit=3, seed=1).cases}
