import contextlib
import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from transformers import Gemma2Config, Gemma2ForCausalLM

from tirkit.methods.autotool.decoupled import bonus
from tirkit.training.base import StepTrainer, training_arguments
from tirkit.training.callbacks import ProgressCallback
from tirkit.training.rl import RLSettings, RLTrainer, need_whole_weights
from tirkit.types import RewardBreakdown, RewardTerm, StopReason, Turn

SETTINGS = RLSettings(num_generations=3)


@pytest.fixture
def sample(make_trajectory):
    """Rollouts that the model samples itself: a new last turn of four tokens after a made-up beginning."""

    def rollout_with(model):
        @torch.no_grad()
        def rollout(requests):
            assert not model.training
            trajectories = []
            for request in requests:
                start = make_trajectory(request.task.id, request.seed % 1000, request.copy_index)
                generator = torch.Generator().manual_seed(request.seed)
                ids = [*start.prompt_ids, *(i for turn in start.turns for i in (*turn.ids, *turn.reply_ids))]
                new, logps = [], []
                for _ in range(4):
                    all_logps = model(torch.tensor([ids + new])).logits[0, -1].log_softmax(-1)
                    new.append(int(torch.multinomial(all_logps.exp(), 1, generator=generator)))
                    logps.append(all_logps[new[-1]].item())
                turns = (*start.turns, Turn(text="x", ids=tuple(new), logps=tuple(logps)))
                trajectories.append(start.model_copy(update={"turns": turns}))
            return trajectories

        return rollout

    return rollout_with


@pytest.fixture
def make_trainer(make_model, tasks, sample, share_of_even, tmp_path):
    def make(folder="run", settings=SETTINGS, rollout=None, reward=share_of_even, callbacks=(), model=None, **changes):
        model = make_model() if model is None else model
        more = {key: changes.pop(key) for key in ("on_group", "max_seconds") if key in changes}
        arguments = {
            "max_steps": 4,
            "learning_rate": 0.01,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2,
            "seed": 0,
            "logging_steps": 1,
        }
        args = training_arguments(str(tmp_path / folder), **arguments | changes)
        rollout = rollout or sample(model)
        return RLTrainer(model, args, settings, tasks, rollout, reward, pad_id=0, callbacks=callbacks, **more)

    return make


@pytest.mark.parametrize(
    ("kind", "stage", "whole"),
    [("MULTI_GPU", 0, True), ("NO", 0, True), ("FSDP", 0, False), ("DEEPSPEED", 2, True), ("DEEPSPEED", 3, False)],
)
def test_rollouts_need_whole_weights_in_each_process(kind, stage, whole):
    plugin = SimpleNamespace(zero_stage=stage) if kind == "DEEPSPEED" else None
    accelerator = SimpleNamespace(
        distributed_type=DistributedType[kind], state=SimpleNamespace(deepspeed_plugin=plugin)
    )
    with contextlib.nullcontext() if whole else pytest.raises(RuntimeError, match="all weights in each process"):
        need_whole_weights(accelerator)


def test_activations_that_are_recomputed_give_the_same_weights(make_trainer, make_model):
    weights, forwards = [], []
    for again in (False, True):
        model, count = make_model(), []
        for layer in model.model.layers:
            layer.mlp.register_forward_pre_hook(
                lambda module, _, count=count: count.append(1) if module.training else None
            )
        trainer = make_trainer(str(again), model=model, max_steps=2, activation_checkpointing=again)
        trainer.train()
        weights.append([p.detach().clone() for p in model.parameters()])
        forwards.append(len(count))
    assert forwards[1] == 2 * forwards[0] > 0
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_an_optimiser_that_steps_by_itself_does_so_behind_the_last_micro_batch():
    stepped = []

    class Accelerator(SimpleNamespace):
        def backward(self, loss):  # as DeepSpeed's engine
            stepped.append(self.gradient_state.sync)

    state = SimpleNamespace(sync=None)
    state._set_sync_gradients = lambda sync: setattr(state, "sync", sync)
    accelerator = Accelerator(gradient_state=state, no_sync=lambda _: contextlib.nullcontext())
    trainer = SimpleNamespace(
        args=SimpleNamespace(device="cpu", world_size=1), accelerator=accelerator, batch_loss=lambda _, batch: batch,
        compute_loss_context_manager=contextlib.nullcontext,
    )  # fmt: skip
    total = StepTrainer.training_step(trainer, torch.nn.Linear(1, 1), [torch.tensor(float(n)) for n in (1, 2, 3)])
    assert (stepped, total.item()) == ([False, False, True], 6.0)


@pytest.mark.parametrize(("iterations", "killed_at"), [(1, 3), (3, 4), (3, 5)])
def test_a_killed_run_goes_on_exactly(make_trainer, stop_at, iterations, killed_at):
    """Also inside the window in use: with 3 iterations, steps 3, 4 and 5 share their rollouts."""
    settings = dataclasses.replace(SETTINGS, iterations=iterations, optimizer="muon")
    whole = make_trainer("whole", settings, max_steps=7)
    whole.train()
    make_trainer("parts", settings, max_steps=7, save_steps=1, callbacks=[stop_at(killed_at)]).train()
    resumed = make_trainer("parts", settings, max_steps=7, save_steps=1)
    resumed.train(resume_from_checkpoint=True)
    for (name, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    timeless = [
        [
            {k: v for k, v in line.items() if not k.endswith("_s") and k != "seconds"}
            for line in trainer.state.log_history
        ]
        for trainer in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]


def test_every_task_of_every_window_is_attempted_with_its_own_seeds(make_trainer, make_trajectory):
    seen = []

    def rollout(requests):
        seen.append(requests)
        return [make_trajectory(request.task.id, 0, request.copy_index) for request in requests]

    make_trainer(rollout=rollout, settings=dataclasses.replace(SETTINGS, iterations=2), max_steps=8).train()
    assert len(seen) == 4  # 8 steps, two a window
    assert all(len(requests) == 2 * 3 for requests in seen)  # 2 tasks a step, 3 generations
    first_epoch = [request.task.id for requests in seen[:3] for request in requests[::3]]
    assert sorted(first_epoch) == [f"t{i}" for i in range(6)]
    seeds = [request.seed for requests in seen for request in requests]
    assert len(set(seeds)) == len(seeds)
    assert [request.copy_index for request in seen[0]] == [0, 1, 2, 0, 1, 2]


def test_what_is_logged(make_trainer, share_of_even):
    lines, groups = [], []
    trainer = make_trainer(
        callbacks=[ProgressCallback(lambda *line: lines.append(line))], on_group=lambda *group: groups.append(group)
    )
    trainer.train()
    metrics = lines[0][2]
    assert lines[-1][:2] == (4, 4)
    assert metrics["logp_gap"] < 1e-5  # rollouts were sampled from this very model, and scored the same
    assert metrics["stop/answered"] == 1.0
    assert metrics["clip_fraction"] == 0.0
    assert 0 < metrics["entropy"] < 4  # ln 50 = 3.9
    # step 0 made two groups of three
    first = [group for step, group, _ in groups if step == 0]
    rewards = [reward for step, _, rewards in groups if step == 0 for reward in rewards]
    assert [len(group.trajectories) for group in first] == [3, 3]
    assert metrics["reward"] == pytest.approx(sum(reward.total for reward in rewards) / 6)
    assert metrics["reward/even"] == pytest.approx(sum(reward.terms[0].value for reward in rewards) / 6)
    sampled = [trajectory.num_sampled for group in first for trajectory in group.trajectories]
    assert metrics["completion_tokens"] == pytest.approx(sum(sampled) / 6)
    assert trainer.state.log_history[0]["rollout_s"] > 0


def test_it_learns(make_trainer):
    lines = []
    trainer = make_trainer(
        settings=RLSettings(num_generations=8),
        reward=lambda t, task: RewardBreakdown(
            terms=(RewardTerm(name="low", value=sum(i < 25 for i in t.turns[-1].ids) / 4),)
        ),
        max_steps=25,
        callbacks=[ProgressCallback(lambda step, total, metrics, eta: lines.append(metrics["reward"]))],
    )
    trainer.train()
    assert sum(lines[-5:]) / 5 > sum(lines[:5]) / 5 + 0.2


def test_entropy_bonus_raises_entropy(make_trainer):
    ends = []
    for coefficient in (1e-9, 1.0):  # without any, nothing would be computed: all advantages are 0
        lines = []
        trainer = make_trainer(
            f"entropy{coefficient}",
            dataclasses.replace(SETTINGS, entropy=bonus(coefficient)),
            reward=lambda t, task: RewardBreakdown(terms=()),
            max_steps=10,
            callbacks=[
                ProgressCallback(lambda step, total, metrics, eta, lines=lines: lines.append(metrics["entropy"]))
            ],
        )
        trainer.train()
        ends.append(lines)
    assert ends[0][0] == ends[1][0]
    assert ends[1][-1] > ends[0][-1] + 0.1


@pytest.fixture
def weights_after(make_trainer, make_trajectory):
    """The model's weights after two plain gradient steps on made-up attempts, and the log."""

    def train(name, **settings):
        trainer = make_trainer(
            name,
            dataclasses.replace(SETTINGS, **settings),
            rollout=lambda requests: [make_trajectory(r.task.id, 0, r.copy_index) for r in requests],
            reward=lambda t, task: RewardBreakdown(
                terms=(RewardTerm(name="x", value=0.7 if task.id in ("t0", "t1") else t.copy_index % 3 + 0.1),)
            ),
            max_steps=3,
        )
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
        trainer.train()
        return torch.cat([p.detach().flatten() for p in trainer.model.parameters()]), trainer.state.log_history

    return train


def test_the_cut_into_micro_batches_changes_no_gradient(weights_after):
    want, _ = weights_after("whole", entropy=bonus(0.01))
    for name, changes in (
        ("single", {"max_tokens": 1}),
        ("split", {"max_tokens": 60}),
        ("plain", {"shared_prefix": False}),
        ("plain split", {"shared_prefix": False, "max_tokens": 60}),
    ):
        got, _ = weights_after(name, entropy=bonus(0.01), **changes)
        torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mean", ["token", "trajectory"])
def test_what_teaches_nothing_is_not_computed(weights_after, mean):
    """Groups t0 and t1 have equal rewards; in the others the middle one of three has the mean."""
    got, log = weights_after("skipped", mean=mean)
    want, full_log = weights_after("computed", mean=mean, entropy=bonus(1e-12))
    torch.testing.assert_close(got, want, atol=1e-7, rtol=0)
    assert [line["computed_tokens"] for line in full_log] == [1.0] * 3
    learning = [line["learning_groups"] for line in log]
    assert sum(learning) == 2.0  # 4 of the 6 groups, two a step
    for line in log:
        assert 0 <= line["computed_tokens"] < max(line["learning_groups"], 1e-9)


def test_a_failed_policy_is_no_evidence(make_trainer, make_trajectory, share_of_even):
    def rollout(requests):
        """Copy 1 of the first task fails; the second task fails altogether."""
        trajectories = [make_trajectory(request.task.id, 0, request.copy_index) for request in requests]
        for i in (1, 3, 4, 5):
            failed = {"turns": (), "stop": StopReason.POLICY_FAILED}
            trajectories[i] = trajectories[i].model_copy(update=failed)
        return trajectories

    def reward(trajectory, task):
        return share_of_even(trajectory, task) if trajectory.turns else RewardBreakdown(terms=())

    def two(requests):
        return [make_trajectory(request.task.id, 0, copy) for request, copy in zip(requests, (0, 2), strict=True)]

    lines = []
    watch = ProgressCallback(lambda step, total, metrics, eta: lines.append(metrics))
    trainer = make_trainer("failed", rollout=rollout, reward=reward, max_steps=1, callbacks=[watch])
    trainer.train()
    settings = dataclasses.replace(SETTINGS, num_generations=2)
    without = make_trainer("without", settings, rollout=two, reward=reward, max_steps=1, gradient_accumulation_steps=1)
    without.train()
    assert lines[0]["stop/policy_failed"] == pytest.approx(4 / 6)
    for a, b in zip(trainer.model.parameters(), without.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_a_model_that_cannot_share_prompts_trains_all_the_same(make_trainer, make_model, make_trajectory, caplog):
    gemma = make_model(Gemma2Config, Gemma2ForCausalLM, attn_implementation="eager")
    before = [p.clone() for p in gemma.parameters()]
    trainer = make_trainer(model=gemma, max_steps=1)
    trainer.train()
    assert not trainer.shared_prefix
    assert "logits" in caplog.text
    assert trainer.state.log_history[0]["logp_gap"] < 1e-5
    assert any(not torch.equal(a, b) for a, b in zip(before, gemma.parameters(), strict=True))


def test_the_clock_ends_a_run(make_trainer):
    trainer = make_trainer(max_steps=10_000, max_seconds=0.5)
    trainer.train()
    assert 0 < trainer.state.global_step < 10_000
    assert trainer.clock.seconds < 5


def test_what_cannot_work_is_refused(make_trainer, tmp_path):
    with pytest.raises(ValueError, match="max_steps"):
        make_trainer(max_steps=-1)
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2"):
        make_trainer(settings=dataclasses.replace(SETTINGS, num_processes=2))
    with pytest.raises(ValueError, match="0 trajectories for 6 requests"):
        make_trainer(rollout=lambda requests: []).train()


def test_checkpoints_carry_the_window_only_where_it_goes_on(make_trainer, tmp_path):
    make_trainer(settings=dataclasses.replace(SETTINGS, iterations=2), max_steps=4, save_steps=1).train()
    assert (tmp_path / "run" / "checkpoint-3" / "window_0.pt").exists()
    assert not (tmp_path / "run" / "checkpoint-4" / "window_0.pt").exists()
    assert json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())["global_step"] == 4
