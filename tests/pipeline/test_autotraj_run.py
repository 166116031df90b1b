"""AutoTraj as stages of a run, small: what each leaves, going on after a kill, arms with equal numbers."""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from pydantic import BaseModel
from rich.console import Console
from starlette.testclient import TestClient

from tirkit.config import ConfigError, EndpointSection, QualityConfig, RunConfig, parse_config
from tirkit.embedded.model import load_base
from tirkit.evaluation.preference import PairReport
from tirkit.evaluation.terminal import Progress
from tirkit.methods.autotraj.pairs import DatasetError, Example, Preference
from tirkit.methods.autotraj.repair import RepairedTask
from tirkit.methods.autotraj.scripted import Demonstrator, Flaw
from tirkit.methods.autotraj.synthesise import JudgedGroup
from tirkit.pipeline import autotraj, reinforce
from tirkit.pipeline.autotraj import load_scorer
from tirkit.pipeline.context import STAGE_ORDER, Context
from tirkit.pipeline.inspect import inspect_run
from tirkit.pipeline.reinforce import _reward
from tirkit.pipeline.run import STAGES, run_stages, to_ask
from tirkit.pipeline.serve import score_routes
from tirkit.rollout.policy import Policy, RolloutRequest, ScriptedPolicy, oracle
from tirkit.scoring.quality import Decision, QualitySettings
from tirkit.serving.score import HttpScorer
from tirkit.serving.server import application
from tirkit.store import RunFolder
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer
from tirkit.tools.remote import RemoteError
from tirkit.types import Task

SECTIONS = {
    "name": "tiny",
    "catalogue": {"num_tools": 16},
    "tasks": {"num_train": 18, "num_rl": 12, "num_validation": 3, "num_test": 3, "decontaminate": True},
    "internalise": {"enabled": False},
    "synthesise": {"enabled": False},
    "warmup": {"enabled": False},
    "candidates": {"enabled": True, "samples": 2, "chunk": 4},
    "repair": {"enabled": True},
    "pairs": {"enabled": True},
    "rl": {"enabled": False},
    "rollout": {"max_new_tokens": 48, "max_calls": 3},
    "evaluate": {"enabled": False, "knowledge_items": 1, "general_items": 0},
}
TRAINING = {
    "finetune": {"enabled": True, "steps": 2, "batch_size": 4, "replay": 0.0},
    "reward_model": {"enabled": True, "epochs": 1.0, "batch_size": 4},
    "rl": {
        "enabled": True,
        "steps": 2,
        "batch_size": 2,
        "num_generations": 2,
        "min_success": 0.0,
        "reward": "trajectory",
    },
    "evaluate": {"enabled": True},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded model as a folder: a run from it leaves out the tests of the base model's own skills."""
    folder = tmp_path_factory.mktemp("base")
    for part in load_base():
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def configured(base: str) -> Callable[..., RunConfig]:
    """A function from changed sections to a config."""

    def make(**changed: dict[str, object]) -> RunConfig:
        sections = {"model": {"path": base}} | SECTIONS
        merged = {name: sections.get(name, {}) | values for name, values in changed.items()}
        return parse_config(sections | merged, "test")

    return make


@pytest.fixture(scope="module")
def whole(configured: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of all stages that nothing interrupted."""
    root = tmp_path_factory.mktemp("whole") / "run"
    run_stages(configured(**TRAINING), root)
    return RunFolder.read(root)


def datasets(root: Path) -> list[str]:
    """What a run made to train on, durations left out."""
    folder = RunFolder.read(root)
    texts = [folder.records(name).read_text() for name in ("candidates", "repairs", "sft_examples", "preferences")]
    return [re.sub(r'"duration_s":[-.e0-9]+', "", text) for text in texts]


def stage_facts(root: Path, stage: str) -> dict[str, object]:
    mark = RunFolder.read(root).mark(stage)
    assert mark is not None
    return mark.facts


def test_stages_stand_in_one_order() -> None:
    assert tuple(STAGES) == STAGE_ORDER
    made = QualitySettings(**QualityConfig().model_dump())
    assert made == QualitySettings()  # the section mirrors it, default by default


def test_every_stage_says_what_it_did(whole: RunFolder) -> None:
    candidates, repair, pairs = (stage_facts(whole.root, stage) for stage in ("candidates", "repair", "pairs"))
    groups = list(whole.read_records("candidates", JudgedGroup))
    decided = Counter(decision for group in groups for decision in group.decisions)
    assert (candidates["tasks"], candidates["attempts"]) == (12, 24)
    assert candidates["kept"] == decided[Decision.KEEP] > 0
    assert candidates["poor"] + candidates["wrong"] == decided[Decision.REPAIR] == repair["to_repair"]
    assert repair["to_repair"] == repair["repaired"] + repair["hard"]
    assert repair["repaired"] == sum(repair["by"].values()) == repair["poor_repaired"] + repair["wrong_repaired"] > 0
    assert repair["requests"] > 0
    assert repair["wrong_S_after"] > 0.8
    examples = list(whole.read_records("sft_examples", Example))
    assert pairs["sft_examples"] == len(examples) == pairs["kept"] + pairs["repaired"]
    assert {task.id for task in whole.read_records("tasks_train", Task)} >= {e.task_id for e in examples}
    model, rl = (stage_facts(whole.root, stage) for stage in ("reward_model", "rl"))
    (report,) = whole.read_records("pair_report", PairReport)
    assert model["accuracy"] == report.accuracy.mean
    assert model["trained_pairs"] + model["accuracy_pairs"] == pairs["preferences"]
    assert {"reward/outcome", "reward/bonus", "reward/scorer_failed"} <= rl["curve"][0].keys()
    assert rl["scorer_failures"] == 0
    assert {f"{stage}_success_all" for stage in ("prepare", "finetune", "rl")} <= stage_facts(
        whole.root, "evaluate"
    ).keys()


def test_candidates_are_sampled_on_questions_supervision_left_out(whole: RunFolder) -> None:
    train = [task.id for task in whole.read_records("tasks_train", Task)]
    assert [group.task_id for group in whole.read_records("candidates", JudgedGroup)] == train[-12:]


def test_datasets_are_exported_and_reported(whole: RunFolder) -> None:
    from datasets import Dataset

    sft = Dataset.from_parquet(str(whole.root / "datasets" / "sft.parquet"))
    assert len(sft) == stage_facts(whole.root, "pairs")["sft_examples"]
    assert {"prompt", "completion", "labels", "by"} <= set(sft.column_names)
    assert (whole.root / "datasets" / "preferences.parquet").exists()
    page = (whole.root / "report" / "index.html").read_text()
    for title in ("Candidates", "Repairs", "What is trained on", "Reward model on held-out pairs", "ranking loss"):
        assert title in page


def test_inspect_shows_candidates_and_originals_beside_their_repairs(whole: RunFolder) -> None:
    console = Console(width=240, record=True)
    console.print(*inspect_run(whole.root, "candidates", 24, ""))
    assert console.export_text().count(", S ") == 24
    (shown,) = inspect_run(whole.root, "repairs", 1, "")
    console.print(shown)
    text = console.export_text()
    assert "original, wrong, S" in text
    assert "repaired by scripted repairer" in text


@pytest.mark.parametrize(("name", "writes"), [("candidates", 1), ("candidates", 3), ("repairs", 2)])
def test_a_run_stopped_between_two_pieces_ends_with_the_same_datasets(
    whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, writes: int
) -> None:
    append, counted = RunFolder.append_records, Counter[str]()

    def append_and_stop(self: RunFolder, records: str, values: Sequence[BaseModel]) -> None:
        append(self, records, values)
        counted[records] += 1
        if records == name and counted[name] == writes:
            raise KeyboardInterrupt

    stages = ["prepare", "candidates", "repair", "pairs"]
    config = whole.manifest.config
    monkeypatch.setattr(RunFolder, "append_records", append_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run_stages(config, tmp_path / "run", stages)
    done = len(list(RunFolder.read(tmp_path / "run").read_records(name, JudgedGroup if writes != 2 else RepairedTask)))
    assert done == 4 * writes
    run_stages(config, tmp_path / "run", stages)
    assert counted[name] == 3  # no piece was made twice
    assert datasets(tmp_path / "run") == datasets(whole.root)


def test_arms_at_equal_numbers_have_equal_numbers(
    whole: RunFolder, configured: Callable[..., RunConfig], tmp_path: Path
) -> None:
    total = stage_facts(whole.root, "pairs")["sft_examples"]
    found: dict[str, list[Example]] = {}
    for repairs in ("use", "demonstrations"):
        root = tmp_path / repairs
        run_stages(configured(pairs={"repairs": repairs, "num_examples": total - 1}), root)
        found[repairs] = list(RunFolder.read(root).read_records("sft_examples", Example))
    assert len(found["use"]) == len(found["demonstrations"]) == total - 1
    assert [e.task_id for e in found["use"]] == [e.task_id for e in found["demonstrations"]]
    sources = [[e.source for e in examples] for examples in found.values()]
    assert [s.replace("repaired", "demonstration") for s in sources[0]] == sources[1]
    for example in found["demonstrations"]:
        if example.source == "demonstration":
            assert (example.by, example.trajectory.policy) == ("scripted teacher", "scripted teacher")
    preferences = list(RunFolder.read(tmp_path / "demonstrations").read_records("preferences", Preference))
    assert {p.source for p in preferences} == {"demonstration"}
    kept = stage_facts(whole.root, "pairs")["kept"]
    none = {"pairs": {"repairs": "none", "num_examples": kept}, "repair": {"enabled": False}}
    run_stages(configured(**none), tmp_path / "kept")
    assert stage_facts(tmp_path / "kept", "pairs")["sft_examples"] == kept
    assert stage_facts(tmp_path / "kept", "pairs")["preferences"] == 0
    none["pairs"]["num_examples"] = total + 24
    with pytest.raises(DatasetError, match=rf"{total + 24} SFT examples are wanted .* and {kept} passed"):
        run_stages(configured(**none), tmp_path / "more")


def test_a_log_takes_the_place_of_sampling(
    whole: RunFolder, configured: Callable[..., RunConfig], tmp_path: Path
) -> None:
    attempts = [t for g in whole.read_records("candidates", JudgedGroup) for t in g.trajectories]
    log = tmp_path / "log.jsonl"
    lines = [attempt.model_dump_json() for attempt in attempts]
    lines.append(json.dumps({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}))
    log.write_text("\n".join([*lines, "no JSON"]))
    run_stages(configured(candidates={"log": str(log)}), tmp_path / "run")
    assert datasets(tmp_path / "run")[1:] == datasets(whole.root)[1:]
    facts = stage_facts(tmp_path / "run", "candidates")
    assert (facts["attempts"], facts["left"]) == (25, 1)  # nothing says what would be right for "?"
    call = {"function": {"name": "get x", "arguments": "{}"}, "id": "1", "type": "function"}
    plain = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    log.write_text(json.dumps(plain))
    with pytest.raises(ConfigError, match=r'dialect can.t read .*catalogue.indexing = "none"'):
        run_stages(configured(candidates={"log": str(log)}), tmp_path / "plain")


def test_endpoints_are_asked_at_their_temperatures_and_within_the_caps(
    configured: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, float]] = []

    def endpoint(model: str, section: EndpointSection, renderer: Renderer, temperature: float) -> Policy:
        asked.append((model, temperature))
        dialect = Dialect()
        wrong = lambda task, turns: dialect.print_answer("wrong")  # noqa: E731
        return ScriptedPolicy(wrong if model == "small" else oracle(dialect), renderer, model)

    monkeypatch.setattr(autotraj, "make_endpoint", endpoint)
    sections = {
        "catalogue": {"indexing": "none"},
        "rollout": {"prompt": "retrieve"},
        "candidates": {"policy": "small", "temperature": 0.5, "samples": 1},
        "repair": {"repairer": "large", "max_requests": 5, "price_in": 2.0},
    }
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"candidates.policy and repair.repairer: .*OPENAI_API_KEY"):
        run_stages(configured(**sections), tmp_path / "keyless")
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    run_stages(configured(**sections), tmp_path / "run")
    assert asked[:2] == [("small", 0.5), ("large", 0.0)]
    facts = stage_facts(tmp_path / "run", "repair")
    assert facts["by"] == {"large": facts["repaired"]}
    assert facts["requests"] >= 5  # those in flight when the cap is reached are counted too
    assert facts["hard_because"]["the budget is used up"] == facts["hard"] > 0
    assert facts["cost"] == pytest.approx(facts["prompt_tokens"] * 2e-6)


def test_scripts_name_tools_as_the_student_writes_them(whole: RunFolder) -> None:
    ctx = Context(whole.manifest.config, whole, Progress())
    task = next(task for task in ctx.rl_tasks if task.gold_rounds)
    name = task.gold_calls[0].name
    assert name in task.thoughts[0]
    written = Demonstrator(ctx.dialect)(task, [])
    assert written.count(f"<<{name}>>") == 2  # in the thought and in the selection
    assert name not in written.replace(f"<<{name}>>", "")
    assert Demonstrator(Dialect())(task, []).count(name) == 2


def test_without_a_bonus_no_reward_model_is_asked(whole: RunFolder, configured: Callable[..., RunConfig]) -> None:
    config = configured(rl={"reward": "trajectory", "bonus_weight": 0.0, "enabled": True})
    ctx = Context(config, whole, Progress())
    loaded = ctx.load("prepare")
    rollout = ctx.rollout(loaded.renderer, ScriptedPolicy(Demonstrator(ctx.dialect), loaded.renderer))
    same, reward = _reward(ctx, rollout)
    assert same is rollout
    group = next(whole.read_records("candidates", JudgedGroup))
    terms = reward(group.trajectories[0], ctx.candidate_tasks[group.task_id]).terms
    assert {term.name: term.weight * term.value for term in terms}["bonus"] == 0.0


def test_a_served_reward_model_scores_as_the_trained_one_did(
    whole: RunFolder, configured: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = Context(whole.manifest.config, whole, Progress())
    group = next(whole.read_records("candidates", JudgedGroup))
    tasks = [ctx.candidate_tasks[group.task_id]] * len(group.trajectories)
    own = load_scorer(ctx).score(group.trajectories, tasks)
    assert None not in own
    with TestClient(application(score_routes(str(whole.root))), base_url="http://scorer.test") as client:
        monkeypatch.setattr(reinforce, "HttpScorer", partial(HttpScorer, client=client))
        monkeypatch.setattr(reinforce, "load_scorer", None)  # it is not to be asked
        config = configured(rl={"reward": "trajectory", "scorer_url": "http://scorer.test/score", "enabled": True})
        _, reward = _reward(Context(config, whole, Progress()), lambda _: list(group.trajectories))
        scored = reward.scorer.__self__  # pyright: ignore
        scored([RolloutRequest(task) for task in tasks])
        served = [scored.score(trajectory, tasks[0]) for trajectory in group.trajectories]
    assert served == pytest.approx(own, abs=1e-6)


def test_a_served_reward_model_may_want_a_key(
    whole: RunFolder, configured: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = next(whole.read_records("candidates", JudgedGroup))
    task = next(iter(Context(whole.manifest.config, whole, Progress()).candidate_tasks.values()))
    settings = {"reward": "trajectory", "scorer_url": "http://scorer.test/score", "scorer_key_env": "SCORER_KEY"}
    config = configured(rl={**settings, "enabled": True})
    monkeypatch.delenv("SCORER_KEY", raising=False)
    with pytest.raises(ConfigError, match="the environment has no SCORER_KEY; set it to the key"):
        _reward(Context(config, whole, Progress()), lambda _: [])
    monkeypatch.setenv("SCORER_KEY", "secret")
    _, reward = _reward(Context(config, whole, Progress()), lambda _: [group.trajectories[0]])
    scorer = reward.scorer.__self__.scorer  # pyright: ignore
    assert scorer._client.headers["authorization"] == "Bearer secret"
    app = application(score_routes(str(whole.root)), key="secret")
    for key, refused in (("secret", False), ("other", True)):
        with TestClient(app, base_url="http://scorer.test", headers={"authorization": f"Bearer {key}"}) as client:
            asked = HttpScorer("http://scorer.test/score", client=client)
            with pytest.raises(RemoteError) if refused else contextlib.nullcontext():
                assert asked.score([group.trajectories[0]], [task]) != [None]


def test_what_is_tested_shows_the_part_of_each_stage(whole: RunFolder, configured: Callable[..., RunConfig]) -> None:
    def stages(config: RunConfig) -> list[str]:
        return [stage for stage, _ in to_ask(Context(config, whole, Progress()))]

    assert stages(configured(**TRAINING)) == ["prepare", "finetune", "rl"]
    tinr = RunConfig()
    assert stages(tinr) == ["warmup", "rl"]
    no_rl = tinr.model_copy(update={"rl": tinr.rl.model_copy(update={"enabled": False})})
    assert stages(no_rl) == ["warmup"]


def test_a_repairer_is_only_as_knowing_as_the_config_says(
    whole: RunFolder, configured: Callable[..., RunConfig], tmp_path: Path
) -> None:
    run_stages(configured(repair={"knows": [Flaw.WRONG_ANSWER.value], "rules": False}), tmp_path / "run")
    facts = stage_facts(tmp_path / "run", "repair")
    assert facts["repaired"] < stage_facts(whole.root, "repair")["repaired"]
    run_stages(configured(repair={"repairer": "rules"}), tmp_path / "rules")
    assert stage_facts(tmp_path / "rules", "repair")["requests"] == 0
