import io

from rich.console import Console
from rich.segment import Segment

from tirkit.evaluation.metrics import Item
from tirkit.evaluation.run import EvaluationResult
from tirkit.evaluation.terminal import Progress, arms_table, render_trajectory, think_table
from tirkit.types import Message, StopReason, Task, ToolCall, Trajectory, Turn

SPANS = [("[bold]Oslo?[/bold]", "prompt"), ("<<get_weather>>", "trained"), ('{"t": "\x1b[2J21"}', "masked")]
TRAJECTORY = Trajectory(
    task_id="q[1]",
    prompt=(Message(role="user", content="Oslo?"),),
    turns=(Turn(text="", problems=("unknown tool 'x'",)),),
    stop=StopReason.MALFORMED,
)


def styles(console: Console, thing: object) -> dict[str, str]:
    segments = list(Segment.simplify(console.render(thing)))  # type: ignore[arg-type]
    return {segment.text.strip(): str(segment.style) for segment in segments}


def test_a_trajectory_in_the_colours_of_its_masks() -> None:
    found = styles(Console(width=100), render_trajectory(SPANS, TRAJECTORY))
    assert found["[bold]Oslo?[/bold]"] == "dim"  # shown as it is: no markup is read in it
    assert found["<<get_weather>>"] == "bold green"
    assert found['{"t": "\\x1b[2J21"}'] == "yellow"


def test_what_is_known_of_the_task_stands_below() -> None:
    task = Task(
        id="q[1]", prompt=TRAJECTORY.prompt, gold_rounds=((ToolCall(name="w", arguments={"a": 1}),),), answer="21"
    )
    out = Console(width=120, file=io.StringIO())
    out.print(render_trajectory(SPANS, TRAJECTORY, task, "reward 0.0"))
    text = out.file.getvalue()  # type: ignore[attr-defined]
    for part in ("q[1]", "stopped: malformed", "reward 0.0", "problem: unknown tool 'x'", '"a":1', "gold answer: 21"):
        assert part in text
    assert "\x1b" not in text


def test_table_of_arms() -> None:
    items = [
        Item(task_id=str(n), metrics={"success": float(n < 3), "prompt_tokens": 6800.0}, stop=StopReason.ANSWERED)
        for n in range(4)
    ]
    out = Console(width=100, file=io.StringIO())
    out.print(arms_table([EvaluationResult(arm="m[0]", seed=4, items=tuple(items), seconds=1.0)]))
    text = out.file.getvalue()  # type: ignore[attr-defined]
    for part in ("m[0]", "75.0 ± 25.0", "6,800", "One seed (4)"):
        assert part in text
    assert "unseen" not in text  # a column without values is left out


def test_table_of_thinking_by_kind_of_question() -> None:
    def items(rates: dict[str, float | None]) -> tuple[Item, ...]:
        return tuple(
            Item(task_id=kind, kind=kind, metrics={"success": 1.0, "think_rate": rate}, stop=StopReason.ANSWERED)
            for kind, rate in rates.items()
        )

    plain = EvaluationResult(arm="plain", seed=0, items=items({"sum": None}), seconds=1.0)
    modes = EvaluationResult(arm="modes", seed=0, items=items({"sum": 1.0, "remark": 0.0}), seconds=1.0)
    forced = EvaluationResult(arm="made", stage="rl, forced think", seed=0, items=items({"sum": 1.0}), seconds=1.0)
    out = Console(width=100, file=io.StringIO())
    out.print(think_table([plain, modes, forced]))
    lines = [line.split() for line in out.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert ["arm", "remark", "sum"] in lines
    assert ["modes", "0.0", "100.0"] in lines
    assert not [line for line in lines if line and line[0] in ("plain", "made")]
    assert think_table([plain]) == ""


def test_progress_without_a_terminal_prints_now_and_then() -> None:
    out = Console(width=80, file=io.StringIO())
    with Progress(out, every_s=3600) as progress:
        show = progress.stage("memorise")
        for step in range(1, 6):
            show(step, 10, {"loss": 0.5}, 60.0)
        progress.say("half way [1/2]")
        show = progress.stage("recall")
        show(2, 2, {}, 0.0)
    lines = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split()[:2] for line in lines] == [
        ["memorise", "1/10"], ["memorise", "5/10"], ["half", "way"], ["recall", "2/2"]
    ]  # fmt: skip
    assert "1:00 left" in lines[0]
    assert "loss 0.5" in lines[0]
    assert "took 0:00" in lines[3]


def test_progress_on_a_terminal_leaves_one_line_a_stage() -> None:
    out = Console(width=80, file=io.StringIO(), force_terminal=True, color_system=None)
    with Progress(out) as progress:
        show = progress.stage("memorise")
        show(1, 2, {}, 1.0)
        show(2, 2, {}, 0.0)
    assert "2/2" in out.file.getvalue()  # type: ignore[attr-defined]
