"""RLTrainer with modes: entropy controller, metrics by mode, the guard."""

import dataclasses
import json

import pytest
import torch

from tirkit.losses.entropy import entropy
from tirkit.methods.autotool.decoupled import EntropyControl, EntropyTerm, decoupled
from tirkit.text.masks import token_row
from tirkit.training.base import training_arguments
from tirkit.training.callbacks import ModeWatch
from tirkit.training.rl import ModeGuard, RLSettings, RLTrainer
from tirkit.types import RewardBreakdown, RewardTerm, Turn

# Targets amid the entropies of the fresh model (2.5 to 2.8 nats, of first tokens 2.2 to 3.2), so that some gates are
# open and others are not.
CONTROL = EntropyControl(
    (
        EntropyTerm("no_think", coefficient=0.05, target=2.7),
        EntropyTerm("think", coefficient=0.03, target=2.7, rate=0.02),
        EntropyTerm("all", "mode", coefficient=0.08, target=2.83, rate=0.02),
    )
)
SETTINGS = RLSettings(num_generations=3, entropy=CONTROL)


@pytest.fixture
def equal_reward():
    """Nothing to learn but the entropy: all advantages are 0."""
    return lambda trajectory, task: RewardBreakdown(terms=(RewardTerm(name="right", value=1.0, weight=0.0),))


@pytest.fixture
def train(make_model, tasks, make_trajectory, tmp_path):
    """Plain gradient steps on made-up attempts: the trainer afterwards."""

    def run(name, settings, reward, change=lambda trajectory, request: trajectory, callbacks=(), resume=False, **args):
        def rollout(requests):
            attempts = [make_trajectory(r.task.id, r.seed % 10_000, r.copy_index) for r in requests]
            return [change(attempt, request) for attempt, request in zip(attempts, requests, strict=True)]

        defaults = {"max_steps": 3, "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_grad_norm": 0}
        defaults |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "logging_steps": 1}
        arguments = training_arguments(str(tmp_path / name), **defaults | args)
        model = make_model()
        trainer = RLTrainer(model, arguments, settings, tasks, rollout, reward, pad_id=0, callbacks=callbacks)
        trainer.optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def lines(trainer):
    return [
        {k: v for k, v in line.items() if not k.endswith("_s") and k != "seconds"} for line in trainer.state.log_history
    ]


def test_the_gradient_of_the_first_step_by_the_formula(train, make_model, equal_reward):
    """L = -1/N Σ β_i H_i from full logits, one sequence at a time, against what the trainer moved."""
    seen = []
    trainer = train("one", SETTINGS, equal_reward, lambda t, _: seen.append(t) or t, max_steps=1)
    model, terms = make_model(), CONTROL.terms
    loss = torch.zeros(())
    for trajectory in seen:
        row = token_row(trajectory)
        logits = model(torch.tensor([[*row.prompt_ids, *row.completion_ids]])).logits[0]
        entropies = entropy(logits[len(row.prompt_ids) - 1 : -1])
        mask = torch.tensor(row.tool_mask)
        mean, first = (entropies * mask).sum() / mask.sum(), entropies[0]
        short, long, floor = terms
        own = short if trajectory.mode == "no_think" else long
        loss -= own.coefficient * (mean.item() <= own.target) * mean / len(seen)
        loss -= floor.coefficient * (first.item() <= floor.target) * first / len(seen)
    assert len(seen) == 6
    loss.backward()
    want = torch.cat([(p - 0.05 * p.grad).detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(weights(trainer), want, atol=1e-6, rtol=0)
    assert loss.item() < -0.01
    line = lines(trainer)[0]
    assert line["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert 0 < line["entropy_gate/think"] < 1
    assert line["computed_tokens"] == 1.0  # rows without advantage are computed


def test_the_cut_into_micro_batches_changes_nothing(train, share_of_even):
    whole = train("whole", SETTINGS, share_of_even)
    assert len({line["entropy_coef/think"] for line in lines(whole)}) == 3  # the coefficient moved
    assert any(0 < line["entropy_gate/all_mode_token"] < 1 for line in lines(whole))
    for name, settings, arguments in (
        ("single rows", {"max_tokens": 1}, {}),
        ("split", {"max_tokens": 60}, {}),
        ("padded", {"shared_prefix": False}, {}),
        ("padded and split", {"shared_prefix": False, "max_tokens": 60}, {}),
        ("no accumulation", {}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}),
    ):
        cut = train(name, dataclasses.replace(SETTINGS, **settings), share_of_even, **arguments)
        torch.testing.assert_close(weights(cut), weights(whole), atol=1e-5, rtol=0)
        for got, want in zip(lines(cut), lines(whole), strict=True):
            assert got == pytest.approx(want, abs=1e-5), name


@pytest.mark.parametrize(("iterations", "killed_at"), [(1, 2), (3, 4)])
def test_a_killed_run_goes_on_with_its_coefficients(train, stop_at, share_of_even, tmp_path, iterations, killed_at):
    settings = dataclasses.replace(SETTINGS, iterations=iterations)
    whole = train("whole", settings, share_of_even, max_steps=6)
    train("parts", settings, share_of_even, callbacks=[stop_at(killed_at)], max_steps=6, save_steps=1)
    state = json.loads((tmp_path / "parts" / f"checkpoint-{killed_at}" / "trainer_state.json").read_text())
    saved = state["stateful_callbacks"]["ModeState"]["attributes"]
    assert saved["coefficients"][1] == lines(whole)[killed_at]["entropy_coef/think"] != 0.03
    resumed = train("parts", settings, share_of_even, max_steps=6, save_steps=1, resume=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert lines(resumed) == lines(whole)


def test_malformed_attempts_get_no_bonus_and_are_not_computed(train, equal_reward):
    def malformed(trajectory, request):
        turns = (trajectory.turns[0].model_copy(update={"problems": ("bad",)}), *trajectory.turns[1:])
        return trajectory.model_copy(update={"turns": turns}) if request.copy_index < 2 else trajectory

    trainer = train("malformed", SETTINGS, equal_reward, malformed, max_steps=1)
    line = lines(trainer)[0]
    assert 0 < line["computed_tokens"] < 1
    everything_malformed = train(
        "all", SETTINGS, equal_reward, lambda t, r: malformed(t, dataclasses.replace(r, copy_index=0)), max_steps=1
    )
    assert lines(everything_malformed)[0]["computed_tokens"] == 0
    assert everything_malformed.modes.entropy == CONTROL.start()  # no long trajectory: unchanged


def test_what_is_logged_by_mode(train):
    def reward(trajectory, task):
        right = RewardTerm(name="right", value=float(trajectory.copy_index == 0), weight=0.0)
        return RewardBreakdown(terms=(RewardTerm(name="mode", value=0.5 * trajectory.copy_index), right))

    seen = []
    trainer = train("log", SETTINGS, reward, lambda t, _: seen.append(t) or t, max_steps=1)
    line = lines(trainer)[0]
    for mode in ("think", "no_think"):
        own = [t for t in seen if t.mode == mode]
        assert line[f"{mode}/tokens"] == pytest.approx(sum(t.num_sampled for t in own) / len(own))
        assert (
            line[f"{mode}/reward"]
            == line[f"{mode}/mode"]
            == pytest.approx(sum(0.5 * t.copy_index for t in own) / len(own))
        )
        assert line[f"{mode}/right"] == pytest.approx(sum(t.copy_index == 0 for t in own) / len(own))
        assert line[f"{mode}/entropy"] == pytest.approx(line[f"entropy_mean/{mode}"])
    assert line["think_rate"] == pytest.approx(sum(t.mode == "think" for t in seen) / 6)
    assert line["mode_entropy"] == pytest.approx(line["entropy_mean/all_mode_token"])
    assert [line[f"entropy_coef/{term.name}"] for term in CONTROL.terms] == [0.05, 0.03, 0.08]


def test_the_guard_forces_thoughts_once_they_are_gone_and_trains_their_tag(train, share_of_even):
    asked = []

    def change(trajectory, request):
        """A policy that never thinks by itself; a forced tag has its own, tiny, probability."""
        asked.append((request.task.id, request.copy_index, request.mode, request.trains_mode))
        first = trajectory.turns[0]
        ids, logps = (1 if request.mode else 2, *first.ids[1:]), (-9.0, *[-1.0] * (len(first.ids) - 1))
        turns = (Turn(text="x", ids=ids, logps=logps, reply_ids=first.reply_ids), *trajectory.turns[1:])
        return trajectory.model_copy(update={"turns": turns, "mode": request.mode or "no_think"})

    settings = dataclasses.replace(SETTINGS, guard=ModeGuard(below=0.05, copies=1), entropy=decoupled())
    trainer = train("guard", settings, share_of_even, change)
    steps = [asked[i : i + 6] for i in range(0, 18, 6)]
    assert [[mode for _, _, mode, _ in step] for step in steps] == [[None] * 6, *[["think", None, None] * 2] * 2]
    assert all(trained for _, _, _, trained in asked)
    # forced ones do not count as the policy's choice, or the guard would think that all is well
    assert [line["think_rate"] for line in lines(trainer)] == [0.0] * 3
    assert "think/reward" not in lines(trainer)[0]
    assert "think/reward" in lines(trainer)[1]
    assert trainer.modes.think_rate == 0.0


def test_a_policy_that_thinks_is_left_alone(train, share_of_even):
    asked = []
    settings = dataclasses.replace(SETTINGS, guard=ModeGuard(below=0.05, copies=2))
    train("left", settings, share_of_even, lambda t, request: asked.append(request.mode) or t)
    assert asked == [None] * 18


def test_the_watch_warns_once_when_thinking_goes_although_it_works(train, share_of_even, stop_at):
    """Thinks in the six rollouts of each of the first four steps, then never; forced thoughts stay right in 0.9."""

    def run(name, killed_at=None):
        asked, warnings = [], []

        def change(trajectory, request):
            asked.append(request)
            return trajectory.model_copy(update={"mode": "think" if len(asked) <= 4 * 6 else "no_think"})

        def go(*callbacks, resume=False):
            watch = ModeWatch({"think": 0.9, "no_think": 0.3}.get, 16, warnings.append, every=2)
            arguments = {"max_steps": 10, "save_steps": 1}
            train(name, SETTINGS, share_of_even, change, [watch, *callbacks], resume=resume, **arguments)
            return watch.history, warnings

        return go(stop_at(killed_at)) and go(resume=True) if killed_at else go()

    history, warnings = run("whole")
    assert [(p.step, p.think_rate) for p in history] == [(2, 1.0), (4, 1.0), (6, 0.0), (8, 0.0), (10, 0.0)]
    assert [text.partition(" although")[0] for text in warnings] == ["step 6: thinking is being unlearnt"]
    assert run("killed", killed_at=6) == (history, warnings)
