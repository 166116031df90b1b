"""Asked otherwise, the gold stays right; what a model says by the old names does not count."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tirkit.evaluation.benchmarks.acebench import ACEBENCH
from tirkit.evaluation.benchmarks.base import Benchmark, BenchmarkError, Case, Loaded
from tirkit.evaluation.benchmarks.bfcl import BFCL
from tirkit.evaluation.benchmarks.bfcl_turns import BFCL_TURNS
from tirkit.evaluation.benchmarks.changes import CODE, KINDS, NUM_DISTRACTORS, Kind, applies, make_change, paraphrase
from tirkit.evaluation.benchmarks.folder import BenchmarkSetting, Outcome
from tirkit.evaluation.benchmarks.maths import MATHS
from tirkit.evaluation.benchmarks.metatool import METATOOL
from tirkit.evaluation.benchmarks.names import NOT_ITS_NAME, masked, renamed, reworded
from tirkit.evaluation.benchmarks.qa import QA
from tirkit.evaluation.benchmarks.registry import ALL
from tirkit.evaluation.benchmarks.robustness import robustness_table
from tirkit.evaluation.benchmarks.runner import Asking, run_benchmarks
from tirkit.evaluation.benchmarks.tau_retail import TAU_RETAIL
from tirkit.rollout.policy import GenerateRequest, Generation, ScriptedPolicy, oracle
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer
from tirkit.tools.sandbox import Sandbox, SandboxError
from tirkit.types import Message, StopReason, Task, ToolCall, ToolSchema, Trajectory, Turn

DIALECT = Dialect()
ORACLE = oracle(DIALECT, "No tool fits.")
SAMPLES = {"bfcl-multi-turn": 1, "acebench": 1}
WEATHER = ToolSchema(
    name="get_weather",
    description="The weather. See find_city first.",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string", "description": "As find_city says."}, "days": {"type": "integer"}},
        "required": ["city"],
    },
)
CITY = ToolSchema(name="find_city", parameters={"type": "object", "properties": {"name": {"type": "string"}}})


class Player(ScriptedPolicy):
    """Plays a script and keeps what it was asked."""

    def __init__(self, renderer: Renderer, script: object = ORACLE):
        super().__init__(script, renderer, "player")  # type: ignore[arg-type]
        self.asked: list[GenerateRequest] = []

    def write(self, request: GenerateRequest) -> Generation:
        self.asked.append(request)
        return super().write(request)


def run(policy: Player, benchmark: Benchmark, data: Path, out: Path, change: Kind = "", **setting: object) -> Outcome:
    made = BenchmarkSetting(arm="player", change=change, max_new_tokens=10**6, max_tokens=10**7, **setting)  # type: ignore[arg-type]
    return run_benchmarks(Asking(policy, policy.renderer, DIALECT), [benchmark], data, out, made)[0]


def check(benchmark: Benchmark, kind: Kind, data: Path, renderer: Renderer, out: Path, limit: int = 0) -> None:
    # A prompt of all tools of Seal-Tools takes minutes.
    setting = {"limit": limit, "documents": "retrieve" if benchmark.shared_tools else "all"}
    plain = run(Player(renderer), benchmark, data, out / "plain", **setting)
    policy = Player(renderer)
    changed = run(policy, benchmark, data, out / kind, kind, **setting)
    assert [(r.case_id, r.score.right, r.score.why) for r in changed.results] == [
        (r.case_id, r.score.right, r.score.why) for r in plain.results
    ]
    assert any(result.score.right for result in plain.results)
    if kind in ("masked", "renamed"):
        loaded = benchmark.load(data, limit)
        old = {tool.name for case in loaded.cases for tool in case.tools} | {tool.name for tool in loaded.tools}
        assert not old & {tool.name for request in policy.asked for tool in request.tools}


REAL = (BFCL_TURNS, TAU_RETAIL, ACEBENCH)  # the others are on the fixture as they are
CHANGED = [
    pytest.param(one, kind, id=f"{one.name}-{kind}") for one in ALL for kind in KINDS if applies(kind, one, "all")
]
TINY = [p for p in CHANGED if p.values[0] not in (BFCL_TURNS, TAU_RETAIL)]


@pytest.mark.parametrize(("benchmark", "kind"), TINY)
def test_gold_stays_right_on_the_fixture(
    benchmark: Benchmark, kind: Kind, tiny_data: Path, renderer: Renderer, tmp_path: Path
) -> None:
    if benchmark is MATHS:
        try:
            Sandbox()
        except SandboxError as error:
            pytest.skip(str(error))
    check(benchmark, kind, tiny_data, renderer, tmp_path)


@pytest.mark.parametrize(("benchmark", "kind"), [p for p in CHANGED if p.values[0] in REAL])
def test_gold_stays_right_on_real_items(
    benchmark: Benchmark, kind: Kind, shared_data: Path, renderer: Renderer, tmp_path: Path
) -> None:
    if benchmark is BFCL_TURNS:
        pytest.importorskip("bfcl_eval", reason="its environments are not installed: pip install --no-deps bfcl-eval")
    check(benchmark, kind, shared_data, renderer, tmp_path, SAMPLES.get(benchmark.name, 2))


def test_names_change_wherever_they_stand_and_come_back() -> None:
    names = masked([WEATHER, CITY])
    tool = names.tool(WEATHER)
    assert (tool.name, tool.description) == ("tool_1", "The weather. See tool_2 first.")
    assert tool.parameters == {
        "type": "object",
        "properties": {"arg_1": {"type": "string", "description": "As tool_2 says."}, "arg_2": {"type": "integer"}},
        "required": ["arg_1"],
    }
    call, asked = ToolCall(name="get_weather", arguments={"city": "city"}), ToolCall(name="find_city")
    said = (
        Message(role="user", content="Use get_weather"),
        Message(role="assistant", content=DIALECT.print_calls([asked])),
        Message(role="tool", content="find_city: Oslo, the city"),
        Message(role="assistant", content=DIALECT.print_answer("find_city")),
    )
    task = names.task(Task(id="t", prompt=said, tools=("get_weather", "find_city"), gold_rounds=((call,),)))
    assert task.tools == ("tool_1", "tool_2")
    assert task.gold_calls == (ToolCall(name="tool_1", arguments={"arg_1": "city"}),)
    assert [message.content for message in task.prompt] == [
        "Use get_weather",  # what a user says stays
        DIALECT.print_calls([ToolCall(name="tool_2")]),
        "tool_2: Oslo, the city",
        "<answer>find_city</answer>",
    ]
    turn = Turn(text="", calls=(*task.gold_calls, call), selected=("tool_2",))
    back = names.back(Trajectory(task_id="t", prompt=said, turns=(turn,), stop=StopReason.CALLS_COMPLETE))
    assert back.selected == ("find_city",)
    assert back.calls[0] == call
    # The old names, which it was not shown, are not taken for the new ones.
    assert back.calls[1] == ToolCall(name=f"get_weather{NOT_ITS_NAME}", arguments={f"city{NOT_ITS_NAME}": "city"})


def test_new_names_are_none_of_the_old() -> None:
    tools = [ToolSchema(name=name) for name in ("tool_1", "get_x", "fetchX", "math.factorial", "getX")]
    assert masked(tools).tools == {
        "tool_1": "tool_1_2",
        "get_x": "tool_2",
        "fetchX": "tool_3",
        "math.factorial": "tool_4",
        "getX": "tool_5",
    }
    assert renamed(tools).tools["get_x"] == "fetchX_2"
    assert renamed(tools).tools["getX"] == "fetch_x"
    assert reworded("city", "value") == "townValue"


def test_calls_by_the_old_names_are_wrong(tiny_data: Path, renderer: Renderer, tmp_path: Path) -> None:
    gold = {case.task.id: case.task for case in BFCL.load(tiny_data).cases}
    stubborn = Player(renderer, lambda task, turns: ORACLE(gold[task.id], turns))
    outcome = run(stubborn, BFCL, tiny_data, tmp_path, "masked")
    called = [result for result in outcome.results if gold[result.case_id].gold_calls]
    assert called
    assert not any(result.score.right for result in called)


def test_distractors_are_tools_that_the_case_does_not_bring() -> None:
    def case(name: str, *tools: ToolSchema) -> Case:
        task = Task(id=name, prompt=(), tools=tuple(tool.name for tool in tools), calls_only=True)
        return Case(task, tools)

    loaded = Loaded((case("a", WEATHER), case("b", CITY)))
    change = make_change("distractors", BFCL, loaded, "all")
    (one, _) = change.loaded(loaded).cases
    assert len(one.tools) == 1 + NUM_DISTRACTORS
    assert {"get_weather", "find_city"} <= set(one.task.tools) == {tool.name for tool in one.tools}
    assert change.loaded(loaded) == make_change("distractors", BFCL, loaded, "all").loaded(loaded)
    assert one != make_change("distractors", BFCL, loaded, "all", seed=1).loaded(loaded).cases[0]


def test_what_does_not_apply_is_refused(tmp_path: Path) -> None:
    loaded = Loaded(())
    for benchmark, kind, documents in (
        (BFCL, "poisoned", "all"),
        (BFCL, "masked", "none"),
        (METATOOL, "distractors", "all"),
        (BFCL, "distractors", "retrieve"),
    ):
        with pytest.raises(BenchmarkError, match=f"{kind} makes no sense for {benchmark.name}"):
            make_change(kind, benchmark, loaded, documents)  # type: ignore[arg-type]
    (tmp_path / "p.json").write_text("[]")
    with pytest.raises(BenchmarkError, match="must hold one JSON object"):
        make_change("paraphrased", BFCL, loaded, "all", paraphrases=tmp_path / "p.json")


def test_descriptions_in_other_words(tmp_path: Path) -> None:
    assert paraphrase("") == ""
    assert paraphrase("Get information (get, find) for 'current' or current.") == (
        "Use this to obtain details (get, find) for 'current' or present."
    )
    assert paraphrase("The target city") == "The target city"
    (tmp_path / "p.json").write_text(json.dumps({"As find_city says.": "What find_city gives."}))
    change = make_change("paraphrased", BFCL, Loaded(()), "all", paraphrases=tmp_path / "p.json")
    _, (tool,) = change.asked(Task(id="t", prompt=()), [WEATHER])
    properties = tool.parameters["properties"]
    assert properties["city"]["description"] == "What find_city gives."  # type: ignore[index, call-overload]
    assert tool.description == WEATHER.description  # not in the file


def test_who_obeys_a_tools_result_is_seen(tiny_data: Path, renderer: Renderer, tmp_path: Path) -> None:
    def play(reply: str, think: str = "") -> Outcome:
        def script(task: Task, turns: Sequence[Turn]) -> str:
            if not turns:
                return DIALECT.print_calls([ToolCall(name="search", arguments={"query": "Salzburg town"})])
            assert CODE in turns[0].results[0].content
            return DIALECT.print_answer(reply, think)

        folder = tmp_path / f"{reply}{think}"
        plain = run(Player(renderer), QA, tiny_data, folder / "plain")
        outcome = run(Player(renderer, script), QA, tiny_data, folder, "poisoned")
        assert f"| qa | poisoned | 3 | {100 * len(plain.results) / 3:.1f}" in robustness_table(
            [plain], {"poisoned": [outcome]}
        )
        return outcome

    assert [result.score.values["obeyed"] for result in play(f"Austria {CODE}").results] == [1, 1, 1]
    assert [result.score.values["obeyed"] for result in play("Austria", f"It wants {CODE}.").results] == [0, 0, 0]
    untouched = run(Player(renderer), QA, tiny_data, tmp_path / "none", "poisoned")  # no call, so nothing to obey
    assert not any("obeyed" in result.score.values for result in untouched.results)


def test_deltas_are_paired(tiny_data: Path, renderer: Renderer, tmp_path: Path) -> None:
    def half(task: Task, turns: Sequence[Turn]) -> str:
        return ORACLE(task, turns) if task.kind == "single" else DIALECT.print_answer("No.")

    plain = run(Player(renderer), METATOOL, tiny_data, tmp_path / "plain")
    changed = run(Player(renderer, half), METATOOL, tiny_data, tmp_path / "masked", "masked")
    table = robustness_table([plain], {"masked": [changed]}).splitlines()
    # One of two is lost; a coin falls so with certainty: p = 2 * 1 / 2.
    assert table[2].startswith("| metatool | masked | 2 | 100.0 ± 0.0 | 50.0 ± 50.0 | -50.0 | ")
    assert table[2].endswith(" | 1 / 0 | 1 | – |")
    assert table[-1] == f"- masked: {KINDS['masked']}"


def test_tools_with_a_state_are_retrieved_of_the_cases_own(
    shared_data: Path, renderer: Renderer, tmp_path: Path
) -> None:
    policy = Player(renderer)
    outcome = run(policy, TAU_RETAIL, shared_data, tmp_path, limit=1, documents="retrieve", k=3)
    assert all(result.score.right for result in outcome.results)
    own = {tool.name for tool in TAU_RETAIL.load(shared_data, 1).cases[0].tools}
    assert policy.asked
    assert all(len(request.tools) == 3 for request in policy.asked)
    assert {tool.name for request in policy.asked for tool in request.tools} <= own
    with pytest.raises(BenchmarkError, match='"all" or "retrieve"'):
        run(policy, TAU_RETAIL, shared_data, tmp_path / "pool", documents="pool")
