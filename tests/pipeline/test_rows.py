"""What the phases train on, and what a policy is held to, as the config says."""

from pathlib import Path

import pytest
from pydantic import JsonValue

from tirkit.config import ConfigError, parse_config
from tirkit.evaluation.terminal import Progress
from tirkit.methods.tinr.tokens import grow_vocabulary
from tirkit.pipeline import reinforce, run, train
from tirkit.pipeline.context import Context, Loaded
from tirkit.pipeline.sources import load_model
from tirkit.pipeline.train import alignment_rows, supervise, unseen_ids, use_rows, use_tasks
from tirkit.rollout.allow import AllOf, SelectionAutomaton
from tirkit.rollout.call_grammar import CallGrammar
from tirkit.store import RunFolder
from tirkit.text.masks import TokenRow
from tirkit.text.render import Renderer
from tirkit.training.sft import SFTReport, SFTSettings, WeightedRow

SMALL: dict[str, JsonValue] = {"catalogue": {"num_tools": 16}, "tasks": {"num_train": 20, "num_rl": 5}}


def prepared(folder: Path, **sections: JsonValue) -> tuple[Context, Loaded]:
    config = parse_config(SMALL | sections, "here")
    ctx = Context(config, RunFolder.open(folder, config), Progress())
    model, tokenizer = load_model(config, ctx.sources.tools, ctx.sources.tasks["train"])
    assert ctx.index is not None
    grow_vocabulary(model, tokenizer, ctx.index, ctx.sources.tools)
    return ctx, Loaded(model, tokenizer, Renderer(tokenizer, ctx.index))


def test_phase_1_asks_only_what_needs_tools_and_spares_unseen_ones_on_questions_alone(tmp_path: Path) -> None:
    ctx, loaded = prepared(tmp_path, internalise={"corpus": {"questions": 4}})
    asked = use_tasks(ctx)
    assert any(not task.gold_rounds for task in ctx.sft_tasks[:8])
    assert asked == [task for task in ctx.sft_tasks if task.gold_rounds][:4]
    assert {row.kind for row in alignment_rows(ctx, loaded)} == {"memorise", "recall", "view", "pseudo_call"}
    assert {row.spares for row in alignment_rows(ctx, loaded)} == {False}
    assert [row.spares for row in use_rows(ctx, loaded, asked)] == [True] * 4


def test_spared_are_the_tokens_of_tools_outside_training_questions(tmp_path: Path) -> None:
    ctx, loaded = prepared(tmp_path)
    named = {loaded.tokenizer.convert_ids_to_tokens(i) for i in unseen_ids(ctx, loaded)}
    assert named == {f"<<{tool.name}>>" for tool in ctx.sources.tools if tool.name not in ctx.sources.seen}
    assert len(named) == 3  # a quarter of those that give names and of those that do not, rounded down
    by_name, loaded = prepared(tmp_path / "name", catalogue={"num_tools": 16, "indexing": "name"})
    assert unseen_ids(by_name, loaded) == ()


@pytest.mark.parametrize(
    ("constrain", "expected"),
    [
        ("none", None),
        ("selection", [SelectionAutomaton]),
        ("calls", [CallGrammar]),
        ("both", [SelectionAutomaton, CallGrammar]),
    ],
)
def test_a_policy_is_held_to_what_the_config_says(tmp_path: Path, constrain: str, expected: list[type] | None) -> None:
    ctx, loaded = prepared(tmp_path, rollout={"constrain": constrain})
    held_to = ctx.policy(loaded, 0.0).sampler.allow
    if expected is None:
        assert held_to is None
    else:
        assert isinstance(held_to, AllOf)
        assert [type(part) for part in held_to.parts] == expected


def test_a_thought_may_be_required(tmp_path: Path) -> None:
    answer = "<answer>5</answer>"
    ctx, _ = prepared(tmp_path / "required", rollout={"think": "required"})
    assert ctx.dialect.parse(answer).problems == ("no thinking where it is required",)
    ctx, _ = prepared(tmp_path / "optional")
    assert ctx.dialect.parse(answer).problems == ()
    with pytest.raises(ConfigError, match=r'rollout\.think = "required" leaves rollout\.modes no attempt'):
        parse_config({"rollout": {"think": "required", "modes": True}}, "here")


def test_activations_are_recomputed_where_the_config_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def no_training(_model: object, _rows: object, settings: SFTSettings, *_: object, **__: object) -> SFTReport:
        asked.append(settings.gradient_checkpointing)
        return SFTReport(0, 0.0, 0, ())

    monkeypatch.setattr(train, "train_sft", no_training)
    monkeypatch.setattr(train, "measure", lambda *_: {})
    for given in (True, False):
        ctx, loaded = prepared(tmp_path / str(given), model={"gradient_checkpointing": given}, warmup={"replay": 0.0})
        row = WeightedRow(TokenRow((1,), (2,), (1,), (0.0,)))
        supervise(ctx, loaded, "warmup", ctx.config.warmup, [row])
    assert asked == [True, False]


class Told(Exception):  # noqa: N818
    """Ends a stage once it has said what is asked about."""


def test_rl_recomputes_activations_where_the_config_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def tell(_folder: str, **settings: object) -> None:
        asked.append(bool(settings["activation_checkpointing"]))
        raise Told

    monkeypatch.setattr(reinforce, "training_arguments", tell)
    for given in (True, False):
        ctx, loaded = prepared(tmp_path / str(given), model={"gradient_checkpointing": given})
        with pytest.raises(Told):
            reinforce._train(ctx, loaded, "rl", (), 1, lambda *_: None)
    assert asked == [True, False]


@pytest.mark.parametrize("modes", [True, False])
def test_tokens_count_alike_where_rows_begin_with_the_choice_of_a_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modes: bool
) -> None:
    ctx, loaded = prepared(tmp_path, rollout={"modes": modes}, warmup={"replay": 0.0})
    seen: list[WeightedRow] = []

    def no_training(_ctx: Context, _loaded: Loaded, _stage: str, _config: object, rows: list[WeightedRow]) -> SFTReport:
        seen.extend(rows)
        return SFTReport(0, 0.0, 0, ())

    monkeypatch.setattr(train, "_train_sft", no_training)
    monkeypatch.setattr(train, "measure", lambda *_: {})
    rows = [WeightedRow(TokenRow((1,), (2,) * n, (1,) * n, (0.0,) * n)) for n in (2, 2, 8)]
    supervise(ctx, loaded, "warmup", ctx.config.warmup, rows)
    weights = sorted((sum(row.tool_mask), row.weight) for row in seen)
    # 4 trained tokens in the mean of three rows.
    assert weights == ([(2, 0.5), (2, 0.5), (8, 2.0)] if modes else [(2, 1.0), (2, 1.0), (8, 1.0)])


def test_a_grammar_is_made_once_and_what_it_cannot_hold_is_a_fact_of_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx, loaded = prepared(tmp_path, rollout={"constrain": "calls"})

    def stage(ctx: Context) -> dict[str, JsonValue]:
        first, second = (ctx.policy(loaded, temperature).sampler.allow for temperature in (0.0, 1.0))
        assert isinstance(first, AllOf)
        assert isinstance(second, AllOf)
        assert first.parts == second.parts  # the very same: they have no equality of their own
        assert isinstance(first.parts[0], CallGrammar)
        first.parts[0].loose["odd"] = "it spells <think>"
        return {"rows": 3}

    assert ctx.loose == {}
    monkeypatch.setitem(run.STAGES, "prepare", stage)
    run._do(ctx, "prepare")
    mark = ctx.folder.mark("prepare")
    assert mark is not None
    assert mark.facts == {"rows": 3, "loose_tools": 1}
    assert ctx.loose == {"odd": "it spells <think>"}
