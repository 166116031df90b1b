"""Synthesis and repair, on the embedded world: its tools really run."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tirkit.embedded.model import build_tokenizer
from tirkit.embedded.world import World
from tirkit.methods.autotraj.budget import Caps, Spent
from tirkit.methods.autotraj.prompts import Case, Flawed, PromptError, Templates
from tirkit.methods.autotraj.repair import RepairedTask, Repairer, RepairSettings, rejection
from tirkit.methods.autotraj.scripted import Flaw, find_flaw, gold_repairer
from tirkit.methods.autotraj.synthesise import JudgedGroup, from_logs, judge, synthesise
from tirkit.rollout.loop import Prompts, RolloutSettings, rollout
from tirkit.rollout.policy import (
    GenerateRequest,
    Generation,
    Policy,
    RolloutError,
    RolloutRequest,
    ScriptedPolicy,
    oracle,
)
from tirkit.scoring.quality import Decision, QualitySettings
from tirkit.text.dialects import Dialect
from tirkit.text.masks import token_row
from tirkit.text.render import Renderer, encode
from tirkit.tools.logs import read_attempt
from tirkit.tools.runtime import PythonToolbox
from tirkit.types import Group, Message, StopReason, Task, ToolCall, Trajectory, Turn

DIALECT = Dialect()
GOLD = oracle(DIALECT)
LIMITS = RolloutSettings(prompt="documents", workers=0, max_calls=3)
Script = Callable[[Task, Sequence[Turn]], str]


def answer_wrongly(task: Task, turns: Sequence[Turn]) -> str:
    """Plays gold but for the reply."""
    text = GOLD(task, turns)
    return DIALECT.print_answer("-1") if "<answer>" in text else text


def hedge(task: Task, turns: Sequence[Turn]) -> str:
    """Plays gold, with a doubtful thought before the reply."""
    text = GOLD(task, turns)
    return "<think>\nmaybe so\n</think>\n" + text.partition("</think>\n")[2] if "<answer>" in text else text


def call_twice(task: Task, turns: Sequence[Turn]) -> str:
    """Makes every call twice."""
    calls = [turn for turn in turns if turn.calls]
    return calls[-1].text if len(calls) % 2 else GOLD(task, [*calls[::2], *(t for t in turns if not t.calls)])


@pytest.fixture(scope="module")
def world() -> SimpleNamespace:
    """Eight tools, six tasks about one tool each, and the loop over them."""
    made = World(num_tools=8, seed=0)
    tasks = [
        task.model_copy(update={"tools": tuple(call.name for call in task.gold_calls or ())})
        for task in made.tasks("train", 6, kinds=("single",))
    ]
    tools = {tool.name: tool for tool in made.catalogue}
    renderer = Renderer(build_tokenizer([message.content for task in tasks for message in task.prompt], 600))
    toolbox = PythonToolbox(made.functions, made.catalogue, isolation="inline")
    loop = partial(rollout, renderer=renderer, dialect=DIALECT, tools=tools, toolbox=toolbox, settings=LIMITS)
    by_id = {task.id: task for task in tasks}
    return SimpleNamespace(tasks=tasks, by_id=by_id, tools=tools, renderer=renderer, loop=loop)


def groups(world: SimpleNamespace, *scripts: Script, tasks: int = 2) -> list[JudgedGroup]:
    """Judged groups whose k-th attempts are written by the k-th script."""
    requests = [RolloutRequest(task) for task in world.tasks[:tasks]]
    columns = [world.loop(requests, ScriptedPolicy(script, world.renderer)) for script in scripts]
    rows = zip(*columns, strict=True)
    return [
        judge(Group(task_id=task.id, trajectories=row), task)
        for task, row in zip(world.tasks[:tasks], rows, strict=True)
    ]


def timed(records: Sequence[Group] | Sequence[RepairedTask]) -> list[str]:
    """The records as JSON, durations left out."""
    return [re.sub(r'"duration_s":[-.e0-9]+', "", record.model_dump_json()) for record in records]


class Fake(ScriptedPolicy):
    """Stands for an endpoint: keeps what it was asked, plays the script of its temperature, is silent where None."""

    def __init__(self, world: SimpleNamespace, *scripts: Script | None):
        self.scripts, self.requests, self.temperatures = scripts, [], []
        super().__init__(GOLD, world.renderer, "fake")

    def at(self, temperature: float) -> Policy:
        self.temperatures.append(temperature)
        return self

    def write(self, request: GenerateRequest) -> Generation:
        self.requests.append(request)
        script = self.scripts[len(self.temperatures) - 1]
        if script is None:
            return Generation((), (), "", "failed")
        self.script = script
        return super().write(request)


def repairer(world: SimpleNamespace, policy_at: Callable[[float], Policy] | None, **settings: object) -> Repairer:
    made = RepairSettings(**settings)  # type: ignore[arg-type]
    return Repairer(world.loop, world.renderer, DIALECT, world.tools, policy_at, made)


def test_synthesis_is_seeded_by_task_and_copy_and_goes_on_where_it_was(world: SimpleNamespace) -> None:
    loop = partial(world.loop, policy=ScriptedPolicy(GOLD, world.renderer))
    whole = synthesise(world.tasks, loop, samples=2, seed=3)
    assert [group.task_id for group in whole] == [task.id for task in world.tasks]
    assert len({t.seed for group in whole for t in group.trajectories}) == 12
    assert [t.copy_index for t in whole[0].trajectories] == [0, 1]
    stored: list[Group] = []

    def killed(requests: Sequence[RolloutRequest]) -> list[Trajectory]:
        if stored:
            raise KeyboardInterrupt
        return loop(requests)

    with pytest.raises(KeyboardInterrupt):
        synthesise(world.tasks, killed, samples=2, seed=3, keep=stored.extend, chunk=2)
    assert len(stored) == 2
    again = synthesise(world.tasks, loop, samples=2, seed=3, done=stored, keep=stored.extend, chunk=3)
    assert timed(again) == timed(whole)
    assert len(stored) == 6


def test_what_an_endpoint_failed_at_is_named_and_nothing_else_is_lost(world: SimpleNamespace) -> None:
    loop, stored = partial(world.loop, policy=ScriptedPolicy(GOLD, world.renderer)), []

    def faulty(requests: Sequence[RolloutRequest]) -> list[Trajectory]:
        failed = {"stop": StopReason.POLICY_FAILED, "turns": ()}
        bad = world.tasks[1].id
        return [t.model_copy(update=failed) if t.task_id == bad and t.copy_index else t for t in loop(requests)]

    with pytest.raises(RolloutError, match=f"1 of 6 tasks after retries .first: '{world.tasks[1].id}'.; all others"):
        synthesise(world.tasks, faulty, samples=2, keep=stored.extend)
    assert len(stored) == 5
    whole = synthesise(world.tasks, loop, samples=2)
    assert timed(synthesise(world.tasks, loop, samples=2, done=stored)) == timed(whole)


def test_rules_repair_without_a_policy(world: SimpleNamespace) -> None:
    judged = groups(world, call_twice, GOLD)
    assert [g.decisions for g in judged] == [(Decision.REPAIR, Decision.KEEP)] * 2
    repaired = repairer(world, None).repair(judged, world.by_id)
    for record, group in zip(repaired, judged, strict=True):
        (repair,) = record.repairs
        assert (repair.by, repair.case, repair.tries) == ("rules", Case.WRONG, 1)  # calls must equal the gold calls
        assert repair.changes[0].startswith("dropped a repeated call")
        assert repair.original == group.trajectories[0]
        assert repair.repaired.turns[0].reply == group.trajectories[1].turns[0].reply  # really executed
        assert repair.repaired.prompt_ids == repair.original.prompt_ids
        assert record.spent == Spent()


def test_the_repairer_sees_question_attempt_and_errors_but_never_the_gold(world: SimpleNamespace) -> None:
    def stumble(task: Task, turns: Sequence[Turn]) -> str:
        if turns:
            return "I give up."
        return DIALECT.print_calls([ToolCall(name=task.tools[0], arguments={"bad": 1})])

    judged = groups(world, stumble, GOLD, tasks=1)
    fake = Fake(world, GOLD)
    (record,) = repairer(world, fake.at, rules=False).repair(judged, world.by_id)
    task, (asked, *_) = world.tasks[0], fake.requests
    prompt = "\n".join(message.content for message in asked.messages)
    assert task.prompt[0].content in prompt
    assert '{"bad": 1}' in prompt
    assert "turn 1: tool" in prompt
    assert "invalid arguments" in prompt
    assert "text outside of any block: 'I give up.'" in prompt
    assert task.answer not in prompt
    assert asked.task.query == task.prompt[-1].content  # documents are searched for the question, not for this prompt
    assert [tool.name for tool in asked.tools] == list(task.tools)  # documents stand in its prompt as in others
    (repair,) = record.repairs
    assert (repair.by, repair.case, repair.score.right) == ("fake", Case.WRONG, True)
    assert "ended malformed → answered" in repair.changes
    assert record.spent.requests == 2
    # An attempt at the task itself: the prompt is the rollout's, byte for byte
    assert repair.repaired.prompt_ids == judged[0].trajectories[1].prompt_ids
    assert (repair.repaired.task_id, repair.repaired.prompt) == (task.id, task.prompt)


def test_retries_carry_the_reason(world: SimpleNamespace) -> None:
    judged = groups(world, answer_wrongly, GOLD, tasks=1)
    fake = Fake(world, hedge, answer_wrongly, GOLD)
    (record,) = repairer(world, fake.at).repair(judged, world.by_id)
    assert fake.temperatures == [0.0, 0.7, 0.7]
    assert record.repairs[0].tries == 3
    second, third = fake.requests[2].messages[0].content, fake.requests[4].messages[0].content
    assert "rejected: its quality is" in second
    assert "maybe so" in second
    assert "rejected: its outcome is wrong" in third
    assert "rejected" not in fake.requests[0].messages[0].content
    seeds = {request.seed for request in fake.requests}
    assert len(seeds) == len(fake.requests)


def test_a_hard_case_keeps_its_reasons(world: SimpleNamespace) -> None:
    judged = groups(world, answer_wrongly, answer_wrongly, tasks=1)
    fake = Fake(world, answer_wrongly, answer_wrongly, answer_wrongly)
    (record,) = repairer(world, fake.at).repair(judged, world.by_id)
    assert record.repairs == ()
    # the rules take the call out, whose result the reply does not use: no better
    reasons = ("rules: its outcome is wrong", *["fake: its outcome is wrong"] * 3)
    assert [case.reasons for case in record.hard] == [reasons] * 2
    assert [case.place for case in record.hard] == [0, 1]


def test_cases_can_be_left_out(world: SimpleNamespace) -> None:
    judged = groups(world, hedge, answer_wrongly, GOLD, tasks=1)
    fake = Fake(world, GOLD)
    (record,) = repairer(world, fake.at, cases=(Case.POOR,)).repair(judged, world.by_id)
    assert [repair.place for repair in record.repairs] == [0]
    assert record.hard == ()
    assert "it hedges: maybe" in fake.requests[0].messages[0].content
    assert record.repairs[0].changes[0] == "without maybe"


def test_thresholds_are_strict_and_case_a_must_improve(world: SimpleNamespace) -> None:
    (group,) = groups(world, hedge, GOLD, tasks=1)
    task, settings = world.tasks[0], QualitySettings()
    good = group.scores[1]

    def reason(was_right: bool, was: float, now: float, was_well_formed: float = 1.0, **changes: object) -> str:
        before = good.model_copy(update={"total": was, "right": was_right, "well_formed": was_well_formed})
        flawed = Flawed(task, 0, group.trajectories[0], before)
        score = good.model_copy(update={"total": now, **changes})
        return rejection(flawed, group.trajectories[1], score, settings)

    assert reason(True, 0.5, 0.86).startswith("its quality is 0.860, more than 0.86")
    assert reason(True, 0.5, 0.8601) == ""
    assert reason(True, 0.9, 0.9).endswith("no better than the attempt's 0.900")
    assert reason(True, 0.9, 0.9001) == ""
    assert reason(True, 1.0, 0.9, was_well_formed=0.5) == ""  # better by being well-formed
    assert reason(True, 1.0, 0.86, was_well_formed=0.5).startswith("its quality")
    assert reason(False, 0.99, 0.80).startswith("its quality")
    assert reason(False, 0.99, 0.8001) == ""
    assert reason(False, 0.5, 1.0, right=False) == "its outcome is wrong"
    assert reason(False, 0.5, 1.0, well_formed=0.0) == "it is not well-formed"


def test_a_repair_stays_in_its_mode(world: SimpleNamespace) -> None:
    def thinking(task: Task, turns: Sequence[Turn]) -> str:
        return ("" if turns else "[think]") + (answer_wrongly(task, turns) if turns else GOLD(task, turns))

    judged = groups(world, thinking, thinking, tasks=1)
    (record,) = repairer(world, Fake(world, GOLD).at, retries=0, rules=False).repair(judged, world.by_id)
    assert record.hard[0].reasons == ("fake: it must begin in the mode of the attempt, think",)
    policy = gold_repairer(judged, world.by_id, world.renderer, DIALECT)
    (record,) = repairer(world, lambda _: policy).repair(judged, world.by_id)
    assert {repair.repaired.mode for repair in record.repairs} == {"think"}


def test_budget(world: SimpleNamespace) -> None:
    judged = groups(world, answer_wrongly, answer_wrongly)
    fake = Fake(world, GOLD)
    first, second = repairer(world, fake.at, rules=False, caps=Caps(requests=5)).repair(judged, world.by_id)
    # two requests an attempt, and the first turns of all four come before any second turn
    assert len(fake.requests) == 5
    assert len(first.repairs) + len(second.repairs) == 1
    assert {case.reasons for case in (*first.hard, *second.hard)} == {("the budget is used up",)}
    assert first.spent.requests + second.spent.requests == 5
    # what was spent before counts: nothing is left for the second task
    fake = Fake(world, GOLD)
    spent = first.model_copy(update={"spent": Spent(requests=5)})
    again = repairer(world, fake.at, caps=Caps(requests=5)).repair(judged, world.by_id, done=[spent])
    assert fake.requests == []
    assert len(again[1].hard) == 2
    caps = Caps(money=1.0, price_in=2.0, price_out=8.0)
    assert caps.cost(Spent(prompt_tokens=250_000, written_tokens=62_500)) == 1.0
    assert not caps.allow(Spent(prompt_tokens=250_000, written_tokens=62_500))
    assert caps.allow(Spent(prompt_tokens=250_000, written_tokens=62_499))
    assert not Caps(tokens=10).allow(Spent(prompt_tokens=5, written_tokens=5))


def test_a_silent_endpoint_leaves_the_task_for_later(world: SimpleNamespace) -> None:
    judged = groups(world, answer_wrongly, answer_wrongly)
    judged[1] = judge(
        Group(task_id=judged[1].task_id, trajectories=groups(world, GOLD, GOLD)[1].trajectories), world.tasks[1]
    )
    stored: list[RepairedTask] = []
    with pytest.raises(RolloutError, match="1 of 2 tasks"):
        repairer(world, Fake(world, None).at).repair(judged, world.by_id, keep=stored.extend)
    assert [record.task_id for record in stored] == [judged[1].task_id]
    done = repairer(world, Fake(world, GOLD).at).repair(judged, world.by_id, done=stored)
    assert len(done[0].repairs) == 2


def test_repairs_do_not_depend_on_chunks_or_interruptions(world: SimpleNamespace) -> None:
    judged = groups(world, answer_wrongly, hedge, call_twice, GOLD, tasks=6)
    policy = gold_repairer(judged, world.by_id, world.renderer, DIALECT, skill=0.6, seed=1)
    whole = repairer(world, lambda _: policy).repair(judged, world.by_id)
    stored: list[RepairedTask] = []
    repairer(world, lambda _: policy).repair(judged[:3], world.by_id, keep=stored.extend, chunk=1)
    again = repairer(world, lambda _: policy).repair(judged, world.by_id, done=stored, chunk=2)
    assert timed(again) == timed(whole)
    assert [RepairedTask.model_validate_json(record.model_dump_json()) for record in whole] == whole
    by = {repair.by for record in whole for repair in record.repairs}
    assert by == {"rules", "scripted repairer"}
    assert any(record.hard for record in whole)  # its skill is limited


def test_the_scripted_repairer_mends_what_it_knows_and_keeps_what_is_right(world: SimpleNamespace) -> None:
    (group,) = groups(world, answer_wrongly, hedge, GOLD, tasks=1)
    task = world.tasks[0]
    assert [find_flaw(t, task) for t in group.trajectories[:2]] == [Flaw.WRONG_ANSWER, Flaw.POOR]
    policy = gold_repairer([group], world.by_id, world.renderer, DIALECT, knows=(Flaw.WRONG_ANSWER,))
    (record,) = repairer(world, lambda _: policy, retries=0).repair([group], world.by_id)
    (repair,), (hard,) = record.repairs, record.hard
    assert (repair.place, hard.place) == (0, 1)
    assert repair.repaired.turns[0].text == repair.original.turns[0].text
    assert hard.reasons[0].startswith("scripted repairer: its quality is")


@pytest.mark.parametrize(
    ("change", "flaw"),
    [
        ({"stop": StopReason.MAX_CALLS}, Flaw.BROKEN),
        ({"turns": (Turn(text="", calls=(ToolCall(name="zip"),)), Turn(text="", answer="x"))}, Flaw.WRONG_TOOL),
        ({"turns": (Turn(text="", answer="x"),)}, Flaw.WRONG_TOOL),
    ],
)
def test_flaws(world: SimpleNamespace, change: dict[str, object], flaw: Flaw) -> None:
    (group,) = groups(world, GOLD, tasks=1)
    assert find_flaw(group.trajectories[0].model_copy(update=change), world.tasks[0]) is flaw


def test_prompts_are_files_to_replace(world: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "poor.jinja").write_text("{{ question }} / {{ weaknesses | join(';') }}")
    with pytest.raises(PromptError, match=r"wrong\.jinja cannot be used: TemplateNotFound"):
        Templates(tmp_path)
    (tmp_path / "wrong.jinja").write_text("{{ gold }}")
    with pytest.raises(PromptError, match="'gold' is undefined"):
        Templates(tmp_path)
    (tmp_path / "wrong.jinja").write_text("{{ attempt }}")
    (group,) = groups(world, hedge, GOLD, tasks=1)
    system = Message(role="system", content="Be {{ brief }}.")
    task = world.tasks[0].model_copy(update={"prompt": (system, *world.tasks[0].prompt)})
    made = Templates(tmp_path).messages(Flawed(task, 0, group.trajectories[0], group.scores[0]))
    assert made[0] == system
    assert made[1].content.startswith(f"{world.tasks[0].prompt[0].content} / it hedges: maybe")


def test_tool_turns_carry_no_loss(world: SimpleNamespace) -> None:
    judged = groups(world, answer_wrongly, GOLD, tasks=1)
    (record,) = repairer(world, Fake(world, GOLD).at).repair(judged, world.by_id)
    repaired = record.repairs[0].repaired
    documents = Prompts(world.tools, LIMITS).documents(world.tasks[0])
    row = token_row(encode(world.renderer, repaired, documents))
    told = [id_ for id_, mask in zip(row.completion_ids, row.tool_mask, strict=True) if not mask]
    assert told == list(repaired.turns[0].reply_ids)
    # the prompt in SFT is the one of the rollout, also when it is rendered anew
    anew = encode(world.renderer, repaired.model_copy(update={"prompt_ids": ()}), documents)
    assert anew.prompt_ids == judged[0].trajectories[1].prompt_ids


def test_a_fourth_call_ends_the_rollout_and_is_wrong(world: SimpleNamespace) -> None:
    (group,) = groups(world, lambda task, _: DIALECT.print_calls(task.gold_calls or ()), tasks=1)
    (over,) = group.trajectories
    assert (over.stop, len(over.calls), len(over.turns[3].results)) == (StopReason.MAX_CALLS, 4, 0)
    assert (group.scores[0].right, group.scores[0].well_formed) == (False, 0)


def test_logs_are_candidates_like_others(world: SimpleNamespace) -> None:
    def log(reply: str, success: bool) -> object:
        said = [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": reply}]
        return {"messages": said, "success": success}

    attempts = [read_attempt(value) for value in (log("5", True), log("maybe 6", False), log("it is 5", True))]  # type: ignore[arg-type]
    (task,), (group,) = from_logs(attempts)
    assert [score.right for score in group.scores] == [True, False, True]
    assert group.decisions == (Decision.KEEP, Decision.REPAIR, Decision.REPAIR)
    known = task.model_copy(update={"answer": "it is 5"})
    (_,), (judged,) = from_logs(attempts, {task.id: known})
    assert [score.right for score in judged.scores] == [False, False, True]
