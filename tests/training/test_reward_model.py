import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from tirkit.embedded.model import build_tokenizer
from tirkit.losses.ranking import ranking_loss
from tirkit.methods.autotraj.pairs import Preference
from tirkit.rollout.policy import RolloutRequest
from tirkit.scoring.reward import TrajectoryReward
from tirkit.text.dialects import Dialect
from tirkit.text.masks import TokenRow, token_row
from tirkit.text.render import Renderer, encode
from tirkit.training.reward_model import (
    NORMALISATION,
    Normalisation,
    RewardModel,
    RewardModelError,
    RewardSettings,
    ScoredRollout,
    new_reward_model,
    raw_scores,
    split_pairs,
    train_reward_model,
)
from tirkit.types import Message, StopReason, Task, ToolSchema, Trajectory, Turn

pytest.importorskip("trl", reason="reward models are trained through TRL")
TOOL = ToolSchema(name="add", description="Adds.")


def attempt(name: str, answer: str, filler: int) -> Trajectory:
    """Calls a tool, then thinks `filler` words and replies."""
    call = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    reply = f"<think>\n{' '.join(['so'] * filler)}\n</think>\n<answer>{answer}</answer>"
    turns = (Turn(text=call, reply=(Message(role="tool", content="5"),)), Turn(text=reply, answer=answer))
    prompt = (Message(role="user", content=f"{name}?"),)
    return Trajectory(task_id=name, prompt=prompt, turns=turns, stop=StopReason.ANSWERED)


def pair(name: str, rng: random.Random) -> Preference:
    """The chosen one says yes, the other no; lengths say nothing."""
    return Preference(
        task_id=name,
        place=0,
        source="repair",
        by="x",
        case="wrong",
        changes=(),
        chosen=attempt(name, "yes", rng.randrange(1, 9)),
        rejected=attempt(name, "no", rng.randrange(1, 9)),
        chosen_score=1.0,
        rejected_score=0.0,
    )


@pytest.fixture
def kit(make_model: Callable[..., PreTrainedModel], tmp_path: Path) -> SimpleNamespace:
    """A tiny checkpoint with its tokenizer, 40 pairs of 20 tasks, and the rendering."""
    tokenizer = build_tokenizer(["yes no so add user assistant tool"], size=300)
    renderer = Renderer(tokenizer)
    pad = tokenizer.pad_token_id
    make_model(vocab_size=len(tokenizer), pad_token_id=pad, tie_word_embeddings=True).save_pretrained(tmp_path / "lm")
    rng = random.Random(0)
    pairs = [pair(f"q{i % 20}", rng) for i in range(40)]

    def row(trajectory: Trajectory, _: Task) -> TokenRow:
        return token_row(encode(renderer, trajectory, (TOOL,)))

    tasks = {f"q{i}": Task(id=f"q{i}", prompt=()) for i in range(20)}
    return SimpleNamespace(
        tokenizer=tokenizer, renderer=renderer, pairs=pairs, tasks=tasks, row=row, folder=tmp_path, pad=pad
    )


def train(kit: SimpleNamespace, **changes: object):
    settings = RewardSettings(
        **{"lr": 1e-2, "epochs": 9, "batch_size": 8, "log_steps": 4, "lora_rank": 0, "held_out": 0.3} | changes
    )  # type: ignore[arg-type]
    folder = kit.folder
    return train_reward_model(
        kit.pairs, kit.tasks, kit.row, folder / "lm", kit.tokenizer, settings, folder / "rm", folder / "work"
    )


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_train_save_load_score(kit: SimpleNamespace, lora_rank: int) -> None:
    made = train(kit, lora_rank=lora_rank)
    assert (made.num_trained, len(made.held_out), made.num_too_long) == (28, 12, 0)
    assert all(chosen > rejected for chosen, rejected in made.rewards)
    # the loss falls from log 2
    losses = [line["loss"] for line in made.curve if "loss" in line]
    assert losses[-1] < 0.3
    scorer = RewardModel.load(kit.folder / "rm", kit.row)
    trajectories = [t for i in made.held_out for t in (kit.pairs[i].chosen, kit.pairs[i].rejected)]
    tasks = [kit.tasks[t.task_id] for t in trajectories]
    expected = [reward for pair_ in made.rewards for reward in pair_]
    assert scorer.raw(trajectories, tasks) == pytest.approx(expected, abs=1e-4)  # what is saved is what was trained
    scorer.batch_tokens = 1  # each alone: neither company nor padding matters
    assert scorer.raw(trajectories, tasks) == pytest.approx(expected, abs=1e-4)
    scores = scorer.score(trajectories, tasks)
    assert scores == pytest.approx([made.normalisation(r) for r in expected], abs=1e-4)
    assert all(-1 < s < 1 for s in scores if s is not None)
    values = torch.tensor(expected)
    stored = json.loads((kit.folder / "rm" / NORMALISATION).read_text())
    assert stored == pytest.approx({"mean": values.mean().item(), "scale": values.std().item()})


def test_an_untrained_model_knows_nothing(kit: SimpleNamespace) -> None:
    model = new_reward_model(kit.folder / "lm", kit.pad)
    assert raw_scores(model, [[5, 6, 7], [8]]) == [0.0, 0.0]


def test_the_loss_is_ours(kit: SimpleNamespace, make_model: Callable[..., PreTrainedModel]) -> None:
    """TRL's first logged loss is the ranking loss of the same scores: log 2 for a head of zeros."""
    made = train(kit, epochs=0.25, log_steps=1)
    zeros = torch.zeros(3)
    first = next(line["loss"] for line in made.curve if "loss" in line)
    assert first == pytest.approx(ranking_loss(chosen_B=zeros, rejected_B=zeros)[0].item(), abs=1e-6)


def test_what_cannot_be_scored_is_none_and_counted(kit: SimpleNamespace) -> None:
    model = new_reward_model(kit.folder / "lm", kit.pad)
    scorer = RewardModel(model, kit.row, Normalisation(mean=0.0, scale=1.0), max_tokens=200)
    silent = Trajectory(task_id="q0", prompt=(), turns=(), stop=StopReason.POLICY_FAILED)
    long = attempt("q0", "yes", 200)
    fine = attempt("q0", "yes", 1)
    tasks = [kit.tasks["q0"]] * 3
    assert scorer.score([silent, long, fine], tasks) == [None, None, 0.0]
    assert scorer.num_failures == 2
    torch.nn.init.constant_(model.get_parameter("score.weight"), float("nan"))
    assert scorer.score([fine], tasks[:1]) == [None]
    assert scorer.num_failures == 3


def test_a_checkpoint_without_a_head_is_refused(kit: SimpleNamespace) -> None:
    with pytest.raises(RewardModelError, match="holds no reward model"):
        RewardModel.load(kit.folder / "nowhere", kit.row)
    AutoModelForSequenceClassification.from_pretrained(kit.folder / "lm", num_labels=1)  # a random head, silently
    (kit.folder / "lm" / NORMALISATION).write_text('{"mean": 0.0, "scale": 1.0}')
    with pytest.raises(RewardModelError, match="no trained scalar head"):
        RewardModel.load(kit.folder / "lm", kit.row)


def test_splits_keep_tasks_apart(kit: SimpleNamespace) -> None:
    train_, held_out = split_pairs(kit.pairs, 0.05)
    assert len(held_out) == 2  # the pairs of one task
    assert not {kit.pairs[i].task_id for i in train_} & {kit.pairs[i].task_id for i in held_out}
    assert sorted(train_ + held_out) == list(range(40))
    with pytest.raises(RewardModelError, match="at least 2 tasks"):
        split_pairs(kit.pairs[:1], 0.5)
    with pytest.raises(RewardModelError, match="max_tokens = 5"):
        train(kit, max_tokens=5)


def test_rollouts_are_scored_in_one_batch(kit: SimpleNamespace) -> None:
    calls: list[int] = []

    class Constant:
        def score(self, trajectories: Sequence[Trajectory], tasks: Sequence[Task]) -> list[float | None]:
            calls.append(len(trajectories))
            return [0.5, None]

    task = kit.tasks["q0"].model_copy(update={"answer": "yes"})

    def rollout(requests: Sequence[RolloutRequest]) -> list[Trajectory]:
        last = Turn(text="<answer>yes</answer>", answer="yes")
        made = attempt("q0", "yes", 1).model_copy(update={"turns": (last,)})
        return [made.model_copy(update={"copy_index": request.copy_index}) for request in requests]

    scored = ScoredRollout(rollout, Constant())
    reward = TrajectoryReward(Dialect(), scored.score)
    made = scored([RolloutRequest(task, 0), RolloutRequest(task, 1)])
    assert [reward(t, task).total for t in made] == pytest.approx([1.1, 1.0])
    assert [reward(t, task).terms[-1].value for t in made] == [0, 1]
    assert calls == [2]
    with pytest.raises(KeyError):
        scored.score(made[0].model_copy(update={"seed": 5}), task)
