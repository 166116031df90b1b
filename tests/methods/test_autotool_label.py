"""Mode labels from two scripted annotators, and the warm-up set."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from tirkit.methods.autotool.label import Attempted, attempt_both, in_mode, short_gold, warmup_set
from tirkit.rollout.loop import rollout
from tirkit.rollout.policy import RolloutError, RolloutRequest, ScriptedPolicy, oracle
from tirkit.text.dialects import Dialect
from tirkit.text.render import encode
from tirkit.tools.runtime import PythonToolbox
from tirkit.types import Message, Mode, StopReason, Task, ToolCall, Trajectory, Turn

DIALECT = Dialect(modes=True)
FREE = Dialect()  # what annotators write has no tags
Play = Callable[[Dialect, Callable[..., str]], Callable[[Sequence[RolloutRequest]], list[Trajectory]]]


def task(name: str, **fields: object) -> Task:
    gold = ((ToolCall(name="add_two", arguments={"a": 2, "b": 3}),),)
    fields = {"gold_rounds": gold, "answer": "5", "thoughts": ("Sum.", "Done.")} | fields
    return Task(id=name, prompt=(Message(role="user", content="2 + 3?"),), **fields)  # type: ignore[arg-type]


TASKS = [task("both"), task("hard"), task("never"), task("answer", gold_rounds=None, thoughts=())]


@pytest.fixture
def play(four: SimpleNamespace) -> Play:
    toolbox = PythonToolbox({"add_two": lambda a, b: a + b}, four.tools, isolation="inline")

    def make(dialect: Dialect, script: Callable[..., str]) -> Callable[[Sequence[RolloutRequest]], list[Trajectory]]:
        policy = ScriptedPolicy(script, four.renderer)
        return lambda requests: rollout(requests, policy, four.renderer, dialect, four.by_name, toolbox)

    return make


def thinker(long: bool = False) -> Callable[..., str]:
    """Plays the gold with thoughts; at "never" it is wrong."""

    def script(asked: Task, turns: Sequence[Turn]) -> str:
        if asked.id == "never":
            return FREE.print_answer("6", "No.")
        if asked.id == "answer":
            return FREE.print_answer("5", "Five, of course." if long else "Five.")
        return oracle(FREE)(asked, turns)

    return script


def doer(asked: Task, turns: Sequence[Turn]) -> str:
    """Plays the gold of "both" and "answer", calls nothing at the others."""
    return (
        oracle(FREE)(asked.model_copy(update={"thoughts": ()}), turns)
        if asked.id in ("both", "answer")
        else FREE.print_answer("5")
    )


def test_labels_are_counts_of_right_attempts_in_their_annotators_mode(play: Play) -> None:
    found = attempt_both(TASKS, play(FREE, doer), play(FREE, thinker()), samples=3)
    assert [(a.no_think_right, a.think_right, a.mode()) for a in found] == [
        (3, 3, "no_think"),
        (0, 3, "think"),
        (0, 0, None),
        (3, 3, "no_think"),
    ]
    assert found[0].mode(min_correct=4) == "think"  # never more than 3 of 3
    assert found[2].think is None
    # an annotator that does not keep to its mode labels nothing
    swapped = attempt_both(TASKS, play(FREE, thinker()), play(FREE, doer), samples=3)
    assert [(a.no_think_right, a.think_right) for a in swapped] == [(0, 0)] * 4


def test_the_shortest_right_attempt_is_kept(play: Play) -> None:
    copies = iter(range(100))

    def script(asked: Task, turns: Sequence[Turn]) -> str:
        return FREE.print_answer("5", "so " * (5, 2, 1)[next(copies)]) if asked else ""

    def wrong(asked: Task, turns: Sequence[Turn]) -> str:
        return FREE.print_answer("6")

    [found] = attempt_both([TASKS[3]], play(FREE, wrong), play(FREE, script), samples=3)
    assert found.think is not None
    assert found.think.turns[0].text == FREE.print_answer("5", "so ")


def test_what_was_done_is_not_done_again_and_failures_are_told(play: Play) -> None:
    asked: list[str] = []
    stored: list[Attempted] = []

    def watched(requests: Sequence[RolloutRequest]) -> list[Trajectory]:
        asked.extend(request.task.id for request in requests)
        return play(FREE, doer)(requests)

    def failing(requests: Sequence[RolloutRequest]) -> list[Trajectory]:
        attempts = play(FREE, thinker())(requests)
        failed = {"stop": StopReason.POLICY_FAILED}
        return [t.model_copy(update=failed) if t.task_id == "never" and t.copy_index == 1 else t for t in attempts]

    with pytest.raises(RolloutError, match="1 of 4 tasks"):
        attempt_both(TASKS, watched, failing, 2, keep=stored.extend, chunk=2)
    assert [a.task_id for a in stored] == ["both", "hard", "answer"]
    asked.clear()
    found = attempt_both(TASKS, watched, play(FREE, thinker()), 2, done=stored, keep=stored.extend)
    assert asked == ["never", "never"]
    whole = attempt_both(TASKS, play(FREE, doer), play(FREE, thinker()), 2)
    assert [(a.task_id, a.no_think_right, a.think_right) for a in found] == [
        (a.task_id, a.no_think_right, a.think_right) for a in whole
    ]


def test_targets_have_the_templates_of_their_modes(play: Play, four: SimpleNamespace) -> None:
    found = attempt_both(TASKS, play(FREE, doer), play(FREE, thinker()), samples=2)
    golds = play(DIALECT, short_gold(DIALECT))([RolloutRequest(t) for t in TASKS if t.gold_rounds])
    assert all(gold.stop is StopReason.ANSWERED and gold.mode == "no_think" for gold in golds)
    chosen = warmup_set(found, {gold.task_id: gold for gold in golds}, think_share=(0.0, 1.0))
    assert chosen.hard == ("never",)
    assert (chosen.num_short, chosen.num_long, chosen.think_share) == (2, 1, pytest.approx(1 / 3))
    texts = {t.task_id: [turn.text for turn in t.turns] for t in chosen.targets}
    call = '<tool_call>\n{"name": "add_two", "arguments": {"a": 2, "b": 3}}\n</tool_call>'
    assert texts == {
        "both": [f"[no_think]\n{call}", "<answer>5</answer>"],
        "hard": [f"[think]\n<think>\nSum.\n</think>\n{call}", "<think>\nDone.\n</think>\n<answer>5</answer>"],
        "answer": ["[no_think]\n<answer>5</answer>"],  # no gold call: the annotator's own
    }
    for target in chosen.targets:  # any tokenizer's ids, and well-formed where modes are asked for
        encoded = encode(four.renderer, target)
        assert all(turn.ids for turn in encoded.turns)
        [again] = play(DIALECT, lambda _, turns, t=target: t.turns[len(turns)].text)(
            [RolloutRequest(next(t for t in TASKS if t.id == target.task_id))]
        )
        assert again.mode == target.mode
        assert not any(turn.problems for turn in again.turns)


def test_the_mix_is_cut_to_its_share() -> None:
    def attempted(name: str, mode: Mode | None) -> Attempted:
        trajectory = Trajectory(task_id=name, prompt=(), turns=(Turn(text="x"),), stop=StopReason.ANSWERED)
        right = (int(mode == "no_think"), int(mode == "think"))
        return Attempted(
            task_id=name,
            samples=1,
            no_think_right=right[0],
            think_right=right[1],
            no_think=trajectory,
            think=trajectory,
        )

    def sizes(short: int, long: int, seed: int = 0) -> tuple[int, int]:
        attempts = [attempted(f"s{i}", "no_think") for i in range(short)] + [
            attempted(f"l{i}", "think") for i in range(long)
        ]
        modes = [t.mode for t in warmup_set(attempts, {}, think_share=(0.3, 0.5), seed=seed).targets]
        return modes.count("no_think"), modes.count("think")

    assert sizes(60, 40) == (60, 40)
    assert sizes(100, 30) == (70, 30)  # 30 of 100 think
    assert sizes(20, 100) == (20, 20)
    assert sizes(10, 0) == (10, 0)  # nothing to mix
    attempts = [attempted(f"s{i}", "no_think") for i in range(9)] + [attempted("l", "think")]
    drawn = [tuple(t.task_id for t in warmup_set(attempts, {}, seed=seed).targets) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_a_target_in_a_mode_has_no_ids_of_its_annotator() -> None:
    turn = Turn(text="[think]\n<answer>5</answer>", ids=(1, 2), logps=(-1.0, -2.0), reply_ids=(3,), given=1)
    attempt = Trajectory(task_id="t", prompt=(), prompt_ids=(9,), turns=(turn,), stop=StopReason.ANSWERED, mode="think")
    target = in_mode(attempt, "no_think")
    assert target.mode == "no_think"
    assert (target.prompt_ids, target.turns[0].ids, target.turns[0].logps) == ((), (), ())
    assert (target.turns[0].reply_ids, target.turns[0].given) == ((), 0)
    assert target.turns[0].text == "[no_think]\n<answer>5</answer>"


def test_a_baseline_that_always_or_never_thinks_knows_the_other_mode_s_attempts_not() -> None:
    attempt = Trajectory(task_id="a", prompt=(), turns=(), stop=StopReason.ANSWERED)
    both = Attempted(task_id="a", samples=4, no_think_right=3, think_right=2, no_think=attempt, think=attempt)
    assert both.mode() == "no_think"
    assert both.only("think").mode() == "think"
    assert both.only("think").no_think is None
    assert both.only("no_think").mode() == "no_think"
    assert Attempted(task_id="a", samples=4, no_think_right=0, think_right=4).only("no_think").mode() is None
