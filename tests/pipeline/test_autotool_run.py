"""AutoTool as stages of a run, small: labels, targets in both modes, refinement that goes on, RL with entropy terms."""

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from tirkit.config import ConfigError, RunConfig, parse_config
from tirkit.embedded.model import load_base
from tirkit.evaluation.run import EvaluationResult
from tirkit.evaluation.terminal import Progress
from tirkit.methods.autotool.label import Attempted
from tirkit.methods.autotool.refine import Refined, Round
from tirkit.methods.autotraj.pairs import Example
from tirkit.pipeline import autotool, autotraj, reinforce
from tirkit.pipeline.autotool import RewardRound, entropy_control, mode_labels, refined
from tirkit.pipeline.context import Context, Loaded
from tirkit.pipeline.run import run_stages, to_ask
from tirkit.pipeline.train import Facts, _in_both_modes, general_rows
from tirkit.rollout.policy import RolloutFn, ScriptedPolicy, oracle
from tirkit.store import RunFolder
from tirkit.text.control import MODE_TAGS
from tirkit.training.sft import WeightedRow
from tirkit.types import Mode, Task, Trajectory, Turn

SECTIONS = {
    "name": "tiny",
    "catalogue": {"num_tools": 16},
    "tasks": {
        "kinds": ["arithmetic_easy", "single"],
        "num_train": 16,
        "num_rl": 8,
        "num_validation": 4,
        "num_test": 4,
    },
    "internalise": {"enabled": False},
    "warmup": {"steps": 2, "batch_size": 4, "replay": 0.0},
    "label": {"enabled": True, "samples": 1, "chunk": 4, "num_tasks": 4},
    "finetune": {"enabled": True, "steps": 2, "batch_size": 4, "replay": 0.0},
    "refine": {"enabled": True, "rounds": 3, "fraction": 1.0, "drop": 0.0},
    "rl": {
        "steps": 2,
        "batch_size": 2,
        "num_generations": 2,
        "min_success": 0.0,
        "reward": "mode",
        "entropy": [{"over": "all", "tokens": "mode", "coefficient": 0.1, "target": 0.3, "rate": 0.05}],
        "probe": {"every": 1, "num_tasks": 2},
    },
    "rollout": {"modes": True, "max_new_tokens": 64, "max_calls": 3},
    "evaluate": {"knowledge_items": 1, "general_items": 0},
}


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunConfig]:
    """A function from changed sections to a config whose model is the embedded one as a folder."""
    folder = tmp_path_factory.mktemp("base")
    for part in load_base():
        part.save_pretrained(folder)

    def make(**changed: dict[str, object]) -> RunConfig:
        sections = {"model": {"path": str(folder)}} | SECTIONS
        return parse_config(sections | {n: sections.get(n, {}) | values for n, values in changed.items()}, "test")

    return make


def scripted(ctx: Context, loaded: Loaded, who: str, mode: Mode) -> RolloutFn:
    """An annotator that plays the gold; without thinking it fails where a tool is needed."""

    def play(task: Task, turns: Sequence[Turn]) -> str:
        if mode == "no_think" and task.kind == "single":
            return ctx.plain_dialect.print_answer("no idea")
        return oracle(ctx.plain_dialect)(task if mode == "think" else task.model_copy(update={"thoughts": ()}), turns)

    return ctx.rollout(ctx.renderer, ScriptedPolicy(play, ctx.renderer, "annotator"), ctx.plain_dialect)


@pytest.fixture(scope="module")
def whole(configured: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotool, "_annotator", scripted)
        run_stages(configured(), root)
    return RunFolder.read(root)


def context(folder: RunFolder) -> Context:
    return Context(folder.manifest.config, folder, Progress())


def test_every_stage_leaves_what_the_next_one_needs(whole: RunFolder) -> None:
    marks = {stage: whole.mark(stage) for stage in ("label", "finetune", "refine", "rl", "evaluate")}
    assert all(marks.values())
    attempted = list(whole.read_records("attempted", Attempted))
    assert [one.task_id for one in attempted] == [task.id for task in context(whole).rl_pool[:4]]
    # Sums and questions about a tool in turn; what the annotator can't do without thinking is to be thought about.
    labels = marks["label"].facts  # pyright: ignore
    assert labels["by_kind"] == {"arithmetic_easy": {"no_think": 2}, "single": {"think": 2}}
    assert labels["targets"] == 4
    # 8 questions, 2 a step, 3 rounds: 12 steps of 2 groups.
    assert len(list(whole.read_records("rounds", RewardRound))) == 24
    curve = marks["rl"].facts["curve"]  # pyright: ignore
    assert "entropy_coef/all_mode_token" in curve[0]  # pyright: ignore


def test_the_last_model_is_asked_in_either_mode_too(whole: RunFolder) -> None:
    results = list(whole.read_records("test_results", EvaluationResult))
    assert [r.stage for r in results] == ["warmup", "finetune", "rl, forced think", "rl, forced no_think", "rl"]
    for result, rate in zip(results[2:4], (1.0, 0.0), strict=True):
        assert {item.metrics["think_rate"] for item in result.items} == {rate}


@pytest.mark.parametrize(
    ("earlier", "forced", "expected"),
    [
        (True, False, [("warmup", None), ("finetune", None), ("rl", None)]),
        (False, True, [("rl", "think"), ("rl", "no_think"), ("rl", None)]),
        (False, False, [("rl", None)]),
    ],
)
def test_only_what_the_config_wants_is_measured(
    whole: RunFolder, earlier: bool, forced: bool, expected: list[tuple[str, Mode | None]]
) -> None:
    ctx = context(whole)
    evaluate = ctx.config.evaluate.model_copy(update={"earlier": earlier, "forced": forced})
    ctx.config = ctx.config.model_copy(update={"evaluate": evaluate})
    assert to_ask(ctx) == expected


def test_targets_begin_with_the_tag_of_their_mode(whole: RunFolder) -> None:
    labels = mode_labels(context(whole))
    for target in whole.read_records("targets", Trajectory):
        assert target.mode is not None
        assert target.turns[0].text.startswith(MODE_TAGS[target.mode])
        assert labels[target.task_id] == target.mode


@pytest.mark.parametrize("only", ["think", "no_think"])
def test_a_baseline_labels_nothing_in_the_other_mode(whole: RunFolder, only: Mode) -> None:
    ctx = context(whole)
    ctx.config = ctx.config.model_copy(update={"label": ctx.config.label.model_copy(update={"only": only})})
    # Without thinking the annotator can do sums alone; with it, all four.
    wanted = {"think": ["think"] * 4, "no_think": ["no_think", None, "no_think", None]}
    assert list(mode_labels(ctx).values()) == wanted[only]


def test_rl_trains_on_what_refinement_kept(whole: RunFolder) -> None:
    ctx = context(whole)
    kept = [one.task_id for one in whole.read_records("refined", Refined) if one.kept]
    assert kept
    assert [task.id for task in ctx.rl_tasks] == [task.id for task in ctx.rl_pool if task.id in kept]


def test_a_step_that_was_stored_twice_counts_once(configured: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = configured(rl={"steps": 1})
    run_stages(config, tmp_path / "run", ["prepare"])
    folder = RunFolder.open(tmp_path / "run", config)
    ctx = context(folder)
    # Rewards 0, 1, 0 over three rounds have a detrended variance of 2/3; with the second one twice it would be 1/2:
    # 0, 1, 1, 0 lies around the line 1/2, residuals ±1/2, sum 1, by n - 2 = 2.
    for task in ctx.rl_pool:
        for step, reward in ((0, 0.0), (1, 1.0), (1, 1.0), (2, 0.0)):
            found = Round(reward=reward, success=0.5, spread=1.0)
            folder.append_records("rounds", [RewardRound(step=step, task_id=task.id, seed=step, round=found)])
    assert refined(ctx)["variance"] == pytest.approx([2 / 3] * 8)
    folder.close()


def test_the_teachers_attempts_are_shared_out_between_the_modes(whole: RunFolder) -> None:
    ctx = context(whole)
    taught = [_in_both_modes(ctx, t) for t in whole.read_records("synthesis", Trajectory)]
    modes = [t.mode for t in taught]
    assert {"think", "no_think"} == set(modes)
    for trajectory in taught:
        thinks = ["<think>" in turn.text for turn in trajectory.turns]
        assert thinks[0] == (trajectory.mode == "think")
        assert trajectory.mode == "think" or not any(thinks)


def test_the_base_models_own_tasks_are_tagged_too(configured: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = configured(model={"path": "embedded"}, finetune={"general": 0.5})
    run_stages(config, tmp_path / "run", ["prepare"])
    ctx = Context(config, RunFolder.open(tmp_path / "run", config), Progress())
    loaded = ctx.load("prepare")
    tags = {loaded.tokenizer.convert_tokens_to_ids(tag) for tag in MODE_TAGS.values()}
    for row in general_rows(ctx, loaded, config.finetune, 8):
        assert row.completion_ids[0] in tags
    ctx.folder.close()


def test_a_term_without_a_target_has_no_gate(configured: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = configured(rl={"entropy": [{"coefficient": 0.01}]})
    control = entropy_control(Context(config, RunFolder.open(tmp_path / "run", config), Progress()))
    assert control is not None
    assert control.terms[0].target == float("inf")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rollout": {"modes": False}}, "label.enabled needs rollout.modes = true"),
        ({"rollout": {"modes": False}}, r"rl.reward = \"mode\" needs rollout.modes = true"),
        ({"rl": {"reward": "tinr"}}, "refine needs a reward that says which attempts are right"),
        ({"rl": {"entropy": [{"rate": 0.1}]}}, "a term with a rate needs a target"),
        ({"rl": {"entropy": [{}, {"coefficient": 0.1}]}}, "two terms over the same trajectories and tokens"),
        ({"rl": {"guard": {"below": 0.1, "copies": 2}}}, "rl.guard.copies must leave some"),
        ({"rl": {"entropy": [{"amount": 1}]}}, "rl.entropy.0.amount: unknown"),
        ({"label": {"think": "gpt"}}, "label.think is an endpoint"),
        ({"label": {"enabled": False}}, "finetune.enabled needs pairs.enabled = true or label.enabled = true"),
    ],
)
def test_settings_that_make_no_sense(
    configured: Callable[..., RunConfig], changed: dict[str, dict[str, object]], said: str
) -> None:
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        configured(**changed)


def test_an_epoch_asks_every_question_once(whole: RunFolder) -> None:
    rounds = list(whole.read_records("rounds", RewardRound))
    ids = [one.task_id for one in rounds]
    pool = sorted(task.id for task in context(whole).rl_pool)
    assert [sorted(ids[start : start + 8]) for start in (0, 8, 16)] == [pool] * 3
    assert all(a.step <= b.step for a, b in pairwise(rounds))


def test_fine_tuning_leaves_out_what_is_in_the_other_mode(
    whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole.root, tmp_path / "run")
    folder, kinds = RunFolder.read(tmp_path / "run"), list[str]()
    ctx, targets = context(folder), list(whole.read_records("targets", Trajectory))
    other: dict[Mode | None, Mode] = {"think": "no_think", "no_think": "think"}
    both = [(t, t.mode) for t in targets] + [(targets[0], other[targets[0].mode])]
    examples = [
        Example(
            task_id=target.task_id,
            place=0,
            source="kept",
            by="policy",
            trajectory=target.model_copy(update={"mode": mode}),
            score=1.0,
        )
        for target, mode in both
    ]
    folder.write_records("sft_examples", examples)

    def supervise(ctx: Context, loaded: Loaded, stage: str, config: object, rows: Sequence[WeightedRow]) -> Facts:
        kinds.extend(row.kind for row in rows)
        return {}

    monkeypatch.setattr(autotraj, "supervise", supervise)
    assert autotraj.finetune(ctx) == {"in_other_mode": 1}
    # Four targets, two of each mode, and the same as kept attempts; the fifth attempt is in the other mode.
    assert Counter(kinds) == {"kept": 4, "target_think": 2, "target_no_think": 2}


def test_refinement_asks_every_question_in_every_round_whatever_the_iterations(
    configured: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, asked = configured(rl={"iterations": 2}), list[int]()
    run_stages(config, tmp_path / "run", ["prepare"])
    ctx = context(RunFolder.open(tmp_path / "run", config))
    ctx.folder.model("finetune").symlink_to(ctx.folder.model("prepare"))

    def train(*parts: object) -> tuple[SimpleNamespace, None]:
        asked.append(parts[4])  # pyright: ignore
        return SimpleNamespace(clock=SimpleNamespace(seconds=0.0)), None

    monkeypatch.setattr(reinforce, "_train", train)
    monkeypatch.setattr(reinforce, "refined", lambda ctx: {})
    reinforce.refine(ctx)
    assert asked == [24]  # 3 rounds of 8 questions, 2 a step, 2 steps of the optimiser on each


def test_more_questions_for_rl_than_there_are_leave_none_for_supervision(
    configured: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = configured(tasks={"num_rl": 20})
    ctx = Context(config, RunFolder.open(tmp_path / "run", config), Progress())
    assert ctx.sft_tasks == ()
    assert len(ctx.rl_pool) == 16
