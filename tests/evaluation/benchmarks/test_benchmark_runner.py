"""Benchmarks are asked, stored, gone on with; tools of one name stay apart."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tirkit.evaluation.benchmarks.api_bank import API_BANK
from tirkit.evaluation.benchmarks.base import BenchmarkError, Case
from tirkit.evaluation.benchmarks.bfcl import BFCL
from tirkit.evaluation.benchmarks.folder import BenchmarkSetting, read_outcomes, read_results
from tirkit.evaluation.benchmarks.overlap import overlap
from tirkit.evaluation.benchmarks.qa import QA
from tirkit.evaluation.benchmarks.runner import Asking, rescore, run_benchmarks
from tirkit.evaluation.benchmarks.seal_tools import SEAL_TOOLS
from tirkit.evaluation.benchmarks.show import outcomes_table
from tirkit.evaluation.benchmarks.worlds import Pool, worlds
from tirkit.rollout.policy import GenerateRequest, Generation, ScriptedPolicy, oracle
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer
from tirkit.types import Message, Task, ToolCall, ToolSchema, Turn

ORACLE = oracle(Dialect(), "No tool fits.")
CASES = 9  # of BFCL's fixture


class Player(ScriptedPolicy):
    """Plays a script and keeps what it was asked; raises, or stays silent, at request number `at`."""

    def __init__(self, renderer: Renderer, script: Callable[[Task, Sequence[Turn]], str] = ORACLE, **at: int):
        super().__init__(script, renderer, "player")
        self.asked: list[GenerateRequest] = []
        self.at = at

    def write(self, request: GenerateRequest) -> Generation:
        self.asked.append(request)
        if len(self.asked) == self.at.get("dies"):
            raise KeyboardInterrupt
        if len(self.asked) == self.at.get("fails"):
            return Generation((), (), "", "failed")
        return super().write(request)


def asking(policy: Player, **more: object) -> Asking:
    return Asking(policy, policy.renderer, Dialect(), **more)  # type: ignore[arg-type]


def test_the_oracle_is_right_and_is_asked_once(tiny_data: Path, renderer: Renderer, tmp_path: Path) -> None:
    policy, setting = Player(renderer), BenchmarkSetting(arm="oracle")
    (outcome,) = run_benchmarks(asking(policy), [BFCL], tiny_data, tmp_path, setting)
    called = [result for result in outcome.results if result.category != "live_relevance"]
    assert len(outcome.results) == CASES
    assert all(result.score.right == 1 for result in called)
    assert [result.case_id for result in outcome.results] == [case.task.id for case in BFCL.load(tiny_data).cases]
    assert outcome.summary.checker == "tirkit"
    assert outcome.evaluation().estimate("success").mean == pytest.approx(8 / 9)  # type: ignore[union-attr]
    assert outcome.evaluation().estimate("false_call").n == 1  # type: ignore[union-attr]
    again = Player(renderer)
    (second,) = run_benchmarks(asking(again), [BFCL], tiny_data, tmp_path, setting)
    assert not again.asked
    assert second.results == outcome.results
    (read,) = read_outcomes(tmp_path)
    assert (read.results, read.totals, read.setting) == (outcome.results, outcome.totals, setting)


def test_a_killed_run_goes_on_without_loss_or_repeat(tiny_data: Path, renderer: Renderer, tmp_path: Path) -> None:
    setting = BenchmarkSetting(arm="oracle", batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        run_benchmarks(asking(Player(renderer, dies=5)), [BFCL], tiny_data, tmp_path, setting)
    path = tmp_path / "records" / "bfcl.jsonl"
    stored = [result.case_id for result in read_results(path)]
    assert len(stored) == 3  # the first batch; the second was cut short
    with path.open("a") as file:
        file.write('{"case_id": "torn')
    policy = Player(renderer)
    (outcome,) = run_benchmarks(asking(policy), [BFCL], tiny_data, tmp_path, setting)
    assert len(policy.asked) == CASES - 3
    assert sorted(result.case_id for result in read_results(path)) == sorted(r.case_id for r in outcome.results)
    whole = run_benchmarks(asking(Player(renderer)), [BFCL], tiny_data, tmp_path / "whole", setting)[0]
    assert [r.score for r in outcome.results] == [r.score for r in whole.results]


def test_what_an_endpoint_did_not_answer_is_asked_again(tiny_data: Path, renderer: Renderer, tmp_path: Path) -> None:
    setting = BenchmarkSetting(arm="oracle")
    (outcome,) = run_benchmarks(asking(Player(renderer, fails=2)), [BFCL], tiny_data, tmp_path, setting)
    assert (len(outcome.results), outcome.unanswered) == (CASES - 1, 1)
    policy = Player(renderer)
    (outcome,) = run_benchmarks(asking(policy), [BFCL], tiny_data, tmp_path, setting)
    assert (len(outcome.results), outcome.unanswered, len(policy.asked)) == (CASES, 0, 1)


def test_a_folder_keeps_its_setting(tiny_data: Path, renderer: Renderer, tmp_path: Path) -> None:
    run_benchmarks(asking(Player(renderer)), [], tiny_data, tmp_path, BenchmarkSetting(arm="a"))
    with pytest.raises(BenchmarkError, match="seed was 0, is 1"):
        run_benchmarks(asking(Player(renderer)), [], tiny_data, tmp_path, BenchmarkSetting(arm="a", seed=1))


def test_each_case_sees_its_own_tools_alone(tiny_data: Path, renderer: Renderer, tmp_path: Path) -> None:
    policy = Player(renderer)
    run_benchmarks(asking(policy), [BFCL], tiny_data, tmp_path, BenchmarkSetting(arm="a"))
    by_id = {case.task.id: case.tools for case in BFCL.load(tiny_data).cases}
    assert all(request.tools == by_id[request.task.id] for request in policy.asked)
    # Two tools are called `weather`; what they are does not mix.
    assert {r.tools[-1].description for r in policy.asked if r.tools[-1].name == "weather"} == {
        "The weather of a town.",
        "The weather at sea.",
    }


def test_retrieved_from_all_tools_under_unique_names(tiny_data: Path, renderer: Renderer, tmp_path: Path) -> None:
    policy, setting = Player(renderer), BenchmarkSetting(arm="bm25", documents="retrieve", k=2)
    (outcome,) = run_benchmarks(asking(policy), [BFCL], tiny_data, tmp_path, setting)
    assert all(len(request.tools) == 2 for request in policy.asked)
    sea = next(request for request in policy.asked if request.task.id == "live_simple_0")
    assert sea.task.gold_calls == (ToolCall(name="weather_2", arguments={"sea": "North Sea"}),)
    assert "weather_2" in [tool.name for tool in sea.tools]
    stored = read_results(tmp_path / "records" / "bfcl.jsonl")
    result = next(result for result in stored if result.case_id == "live_simple_0")
    assert result.trajectory.calls[0].name == "weather"  # scored under the name it came with
    assert result.score.right == 1
    assert result.result in outcome.results


def test_a_model_that_remembers_is_asked_in_its_catalogues_names(
    tiny_data: Path, renderer: Renderer, tmp_path: Path
) -> None:
    cases = BFCL.load(tiny_data).cases
    setting = BenchmarkSetting(arm="memory", documents="none")
    with pytest.raises(BenchmarkError, match="give its catalogue"):
        run_benchmarks(asking(Player(renderer)), [BFCL], tiny_data, tmp_path / "a", setting)
    known = [tool for tool in Pool.of(cases).tools.values() if tool.name != "order"]
    policy = Player(renderer)
    (outcome,) = run_benchmarks(asking(policy, tools=known), [BFCL], tiny_data, tmp_path / "b", setting)
    assert not any(request.tools for request in policy.asked)
    assert (len(outcome.results), outcome.summary.left_out) == (CASES - 1, 1)  # the one that brings `order`


def test_tools_of_a_shared_pool_are_retrieved(tiny_data: Path, renderer: Renderer, tmp_path: Path) -> None:
    policy, setting = Player(renderer), BenchmarkSetting(arm="bm25", documents="retrieve", k=1)
    (outcome,) = run_benchmarks(asking(policy), [SEAL_TOOLS], tiny_data, tmp_path, setting)
    assert outcome.totals == {
        "nested": 1.0,
        "single": 1.0,
        "all": 1.0,
        "format": 1.0,
        "tool F1": 1.0,
        "parameter F1": 1.0,
    }
    assert [request.tools[0].name for request in policy.asked] == ["getTide", "bookFlight"]


def test_all_documents_of_all_cases_stand_in_the_prompt(tiny_data: Path, renderer: Renderer, tmp_path: Path) -> None:
    policy, setting = Player(renderer), BenchmarkSetting(arm="pool", documents="pool")
    (outcome,) = run_benchmarks(asking(policy), [BFCL], tiny_data, tmp_path, setting)
    every = Pool.of(BFCL.load(tiny_data).cases).tools
    assert {tuple(tool.name for tool in request.tools) for request in policy.asked} == {tuple(every)}
    assert outcome.evaluation().estimate("success").mean == pytest.approx(8 / 9)  # type: ignore[union-attr]


def test_search_runs_over_the_passages_there_are(tiny_data: Path, renderer: Renderer, tmp_path: Path) -> None:
    def search_first(task: Task, turns: Sequence[Turn]) -> str:
        if not turns:
            return Dialect().print_calls([ToolCall(name="search", arguments={"query": "Salzburg town"})])
        return Dialect().print_answer("austria!" if "Austria" in turns[0].results[0].content else "?")

    (outcome,) = run_benchmarks(
        asking(Player(renderer, search_first)), [QA], tiny_data, tmp_path, BenchmarkSetting(arm="a")
    )
    assert [result.score.right for result in outcome.results] == [1, 0, 0]
    assert outcome.totals["F1"] == pytest.approx(1 / 3)
    assert "| qa | 3 | 33.3 ± 33.3 |" in outcomes_table([outcome])


def test_another_scorer_judges_the_same_attempts(tiny_data: Path, renderer: Renderer, tmp_path: Path) -> None:
    (outcome,) = run_benchmarks(asking(Player(renderer)), [BFCL], tiny_data, tmp_path, BenchmarkSetting(arm="a"))
    cases = BFCL.load(tiny_data).cases
    attempts = list(read_results(tmp_path / "records" / "bfcl.jsonl"))
    harsh = rescore(outcome, attempts, cases, lambda trajectory, case: replace_right(BFCL.score(trajectory, case)))
    assert [r.item.metrics["output_tokens"] for r in harsh.results] == [
        r.item.metrics["output_tokens"] for r in outcome.results
    ]
    assert not any(result.score.right for result in harsh.results)
    assert harsh.totals["live"] == 0


def replace_right(score):  # type: ignore[no-untyped-def]
    return score.model_copy(update={"right": 0.0})


def case(name: str, text: str, *tools: ToolSchema) -> Case:
    message = Message(role="user", content=text)
    return Case(Task(id=name, prompt=(message,), tools=tuple(t.name for t in tools), calls_only=True), tools)


def test_cases_that_contradict_each_other_are_asked_apart() -> None:
    one, other = ToolSchema(name="f", description="one"), ToolSchema(name="f", description="other")
    more = ToolSchema(name="g")
    made = worlds([case("a", "", one), case("b", "", other), case("c", "", one, more), case("d", "", more)], ())
    assert [[c.task.id for c in world.cases] for world in made] == [["a", "c", "d"], ["b"]]
    assert worlds([case("a", "", one)] * 5, (), size=2)[2].tools == {"f": one}
    with pytest.raises(BenchmarkError, match="brings a tool by the name of a shared one"):
        worlds([case("a", "", one)], (other,))


def test_a_pool_gives_names_and_takes_them_back() -> None:
    one, other = ToolSchema(name="f", description="one"), ToolSchema(name="f", description="other")
    asked = replace(case("b", "", other), task=case("b", "", other).task)
    pool = Pool.of([case("a", "", one), asked])
    assert list(pool.tools) == ["f", "f_2"]
    gold = asked.task.model_copy(update={"gold_rounds": ((ToolCall(name="f"),),)})
    assert pool.task(replace(asked, task=gold)).gold_calls == (ToolCall(name="f_2"),)
    with pytest.raises(BenchmarkError, match="lacks tools of case 'c'"):
        pool.task(case("c", "", ToolSchema(name="h")))


def test_what_training_shares_is_counted() -> None:
    long = " ".join(f"w{i}" for i in range(20))
    tool = ToolSchema(name="f")
    cases = [case("a", "Same  question?", tool), case("b", f"x {long}", tool), case("c", "new", ToolSchema(name="g"))]
    training = [case("t1", "same question", tool).task, case("t2", f"y {long} z", tool).task]
    found = overlap(cases, training, [tool])
    assert (list(found.equal), list(found.similar)) == (["a"], ["b"])
    assert found.shared_tools == ("f",)
    assert str(found) == (
        "checked against 2 training questions: 1 of 3 equal one, 1 more share 13 words in a row with one; "
        "1 of 2 tool names occur in training"
    )
    assert str(overlap(cases, [])).startswith("overlap with training not checked")


def test_cases_that_were_trained_on_are_left_out(tiny_data: Path, renderer: Renderer, tmp_path: Path) -> None:
    cases = BFCL.load(tiny_data).cases
    training = [cases[0].task.model_copy(update={"id": "t"})]
    setting = BenchmarkSetting(arm="a", held_out=True, limit=1)
    (outcome,) = run_benchmarks(asking(Player(renderer), training=training), [BFCL], tiny_data, tmp_path, setting)
    assert cases[0].task.id not in {result.case_id for result in outcome.results}
    assert outcome.summary.trained_on == 1
    assert "1 cases left out: training questions equal or resemble them" in outcomes_table([outcome])
    # Drawn from those that are left: no category that has others goes without.
    kept = {case.task.kind for case in cases[1:]}
    assert {result.category for result in outcome.results} == kept
    everything = asking(Player(renderer), training=[case.task for case in cases])
    with pytest.raises(BenchmarkError, match="all 9 cases of bfcl resemble training questions"):
        run_benchmarks(everything, [BFCL], tiny_data, tmp_path / "b", setting)


def test_a_model_that_searches_its_catalogue_searches_all_of_it(
    tiny_data: Path, renderer: Renderer, tmp_path: Path
) -> None:
    setting = BenchmarkSetting(arm="a", documents="retrieve", k=50)
    own = [*Pool.of(BFCL.load(tiny_data).cases).tools.values(), ToolSchema(name="another")]
    for name, tools, wanted in (("a", own, True), ("b", own[1:], False)):
        policy = Player(renderer)
        run_benchmarks(asking(policy, tools=tools), [BFCL], tiny_data, tmp_path / name, setting)
        assert ("another" in [tool.name for tool in policy.asked[0].tools]) is wanted


def test_api_bank_is_searched_by_what_the_user_said(tiny_data: Path, renderer: Renderer, tmp_path: Path) -> None:
    policy, setting = Player(renderer), BenchmarkSetting(arm="bm25", documents="retrieve", k=1)
    run_benchmarks(asking(policy), [API_BANK], tiny_data, tmp_path, setting)
    request = next(request for request in policy.asked if request.task.id == "level-2-0")
    assert request.messages[-1].content == "Please only make one tool call."  # the same in all items
    assert request.task.query == "The forecast at 52.5, please."
    assert [tool.name for tool in request.tools] == ["Forecast"]
