import random
from pathlib import Path

import pytest
import torch

from tirkit.embedded import base, phrases
from tirkit.embedded.model import load_base, new_model
from tirkit.embedded.skills import SKILLS, draw_replay, draw_sample
from tirkit.embedded.world import World
from tirkit.text.dialects import Dialect
from tirkit.text.masks import TokenRow

TOKENIZER = base.make_tokenizer(samples=100)


def test_every_skill_writes_well_formed_turns():
    rng = random.Random(0)
    for skill, (draw, _) in SKILLS.items():
        for split in ("train", "validation", "test"):
            for _ in range(20):
                trajectory = draw(rng, split)
                assert trajectory.task_id == skill
                if skill != "describe":  # writes a bare document
                    assert not [Dialect().parse(turn.text).problems for turn in trajectory.turns if turn.problems]


def test_the_base_stage_sees_no_tool_and_no_document_about_a_thing():
    rng = random.Random(0)
    names = {tool.name for tool in World().catalogue}
    said = set(phrases.SYNONYMS)
    for _ in range(500):
        trajectory = draw_sample(rng, "train")
        texts = list(base.texts_of(trajectory))
        assert not any(f'"{name}"' in text for name in names for text in texts)
        for text in texts:
            if '"description"' in text:
                description = text.split('"description": "')[1].split('"')[0]
                assert not said & set(description.lower().replace("'s", "").strip(".").split())


def test_replay_never_answers_a_question_about_a_tool_with_a_rewording():
    rng = random.Random(0)
    drawn = [draw_replay(rng) for _ in range(300)]
    assert {sample.task_id for sample in drawn} == set(SKILLS)
    assert all(s.prompt[0].content.startswith("Reword") for s in drawn if s.task_id == "paraphrase")


def test_labels_are_the_sampled_tokens_only():
    row = TokenRow(prompt_ids=(5, 6), completion_ids=(7, 8, 9), tool_mask=(1, 0, 1), old_logps=(0.0,) * 3)
    other = TokenRow(prompt_ids=(5,), completion_ids=(7,), tool_mask=(1,), old_logps=(0.0,))
    ids, mask, labels = base.collate([row, other], pad_id=0)
    x = base.IGNORED
    assert ids.tolist() == [[5, 6, 7, 8, 9], [5, 7, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert labels.tolist() == [[x, x, 7, x, 9], [x, 7, x, x, x]]


def test_logits_are_those_before_each_trained_token():
    model = new_model(TOKENIZER).eval()
    row = TokenRow(prompt_ids=(5, 6), completion_ids=(7, 8, 9), tool_mask=(1, 0, 1), old_logps=(0.0,) * 3)
    logits, targets, rows = base.trained_logits(model, [row], pad_id=0)
    every = model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits[0]
    torch.testing.assert_close(logits, every[[1, 3]], rtol=1e-5, atol=1e-5)
    assert (targets.tolist(), rows.tolist()) == ([7, 9], [0, 0])


def test_every_parameter_has_one_optimizer():
    model = new_model(TOKENIZER)
    chosen = [p for opt in base.optimizers(model, 0.1, 0.1) for group in opt.param_groups for p in group["params"]]
    assert len(chosen) == len({id(p) for p in chosen}) == len(list(model.parameters()))


def test_a_few_steps_lower_the_loss_and_leave_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = new_model(TOKENIZER)
    base.train(model, TOKENIZER, tmp_path, steps=8, batch_tokens=600, save_every=4, log_every=4)
    lines = [line for line in capsys.readouterr().out.splitlines() if "loss" in line]
    losses = [float(line.split("loss ")[1].split()[0]) for line in lines]
    assert losses[-1] < losses[0]
    loaded, _ = load_base(tmp_path)
    assert loaded.num_parameters() == model.num_parameters()
