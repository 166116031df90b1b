"""The micro world: worked by hand, token by token, and three steps from end to end."""

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from examples.micro_world import report
from examples.micro_world.arms import ARMS, CHOSEN, scaled
from examples.micro_world.grid import Run, make_start, rounded, run_all
from examples.micro_world.model import Rollout, new_model
from examples.micro_world.studies import BOTH, STUDIES, shift_rows
from examples.micro_world.training import REWARD, Curve, Sizes, coin_flip_rows, measure
from examples.micro_world.world import (
    CLASSES,
    END_ID,
    HARD,
    IDS,
    MAX_ANSWER,
    PAD_ID,
    PAIRS,
    Problem,
    World,
    decode,
    encode,
    teacher_row,
    trajectory,
)

from tirkit.methods.autotool.decoupled import decoupled
from tirkit.rollout.policy import GenerateRequest, RolloutRequest
from tirkit.rollout.transformers_policy import TransformersPolicy
from tirkit.text.masks import token_row
from tirkit.types import StopReason

TINY = Sizes(sft_steps=2, sft_batch=8, steps=3, problems=4, copies=4, window=1, measured=8)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def world() -> World:
    """Tool a adds one, tool b takes from nine, all others add three."""
    world = World()
    add_one = (1, 2, 3, 4, 5, 6, 7, 8, 9, 0)
    reverse = (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)
    add_three = (3, 4, 5, 6, 7, 8, 9, 0, 1, 2)
    object.__setattr__(world, "permutations", (add_one, reverse, *[add_three] * 6))
    return world


HARD_PROBLEM = Problem(4, (0, 1, 2, 0, 1, 7))  # 4 -a-> 5 -b-> 4 -c-> 7 -a-> 8 -b-> 1 -h-> 4: class B (4 mod 3 = 1)
EASY_PROBLEM = Problem(8, (1,))  # 8 -b-> 1: class B


def test_permutations_are_permutations_and_follow_the_seed() -> None:
    permutations = World(seed=3).permutations
    assert len(permutations) == 8
    assert all(sorted(permutation) == list(range(10)) for permutation in permutations)
    assert permutations == World(seed=3).permutations != World(seed=4).permutations


def test_in_a_paired_world_a_rough_thought_leaves_the_class_open_in_three_pairs_of_five() -> None:
    world, partner = World(seed=1, paired=True), {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
    for tools in [tuple(range(6)), (7, 0, 7, 3, 6, 6)]:
        agree = []
        for digit in range(10):
            one, other = Problem(digit, tools), Problem(partner[digit], tools)
            assert all(partner[a] == b for a, b in zip(world.digits(one), world.digits(other), strict=True))
            thoughts = [world.answer(problem, "think", "rough").split() for problem in (one, other)]
            assert thoughts[0][:-1] == thoughts[1][:-1]
            agree.append(thoughts[0][-1] == thoughts[1][-1])
        assert sum(agree) == 4  # the best guess by pairs alone: 0.4 + 0.6 / 2 = 0.7
    flips = [permutation[a] > permutation[b] for permutation in world.permutations for a, b in PAIRS]
    assert 8 < sum(flips) < 32  # of 40: a tool that never turns a pair round would give nothing to lose


def test_a_chain_by_hand(world: World) -> None:
    assert HARD_PROBLEM.text == "4 a b c a b h ?"
    assert EASY_PROBLEM.text == "8 b - - - - - ?"
    assert world.digits(HARD_PROBLEM) == (5, 4, 7, 8, 1, 4)
    assert world.task(HARD_PROBLEM, "t").answer == world.task(EASY_PROBLEM, "t").answer == "B"
    assert (HARD_PROBLEM.difficulty, EASY_PROBLEM.difficulty) == ("hard", "easy")


def test_answers_by_hand(world: World) -> None:
    assert world.answer(HARD_PROBLEM, "no_think") == "[no_think] B"
    assert world.answer(HARD_PROBLEM, "think") == "[think] all 5 4 7 8 1 4 so B"
    # Pairs: (0 3) (1 4) (2 6) (5 7) (8 9). The class is of the last digit itself, 4, not of the 1 that stands for it.
    assert world.answer(HARD_PROBLEM, "think", "rough") == "[think] rough 5 1 5 8 1 1 so B"
    assert world.answer(EASY_PROBLEM, "think", "rough") == "[think] rough 1 so B"


def test_noise_replaces_digits_and_the_rest_follows(world: World) -> None:
    changed = 0
    for seed in range(300):
        words = world.answer(HARD_PROBLEM, "think", noise=0.5, seed=seed).split()
        digits = [HARD_PROBLEM.digit, *map(int, words[2:-2])]
        followed = [
            world.permutations[t][a] == b for t, (a, b) in zip(HARD_PROBLEM.tools, pairwise(digits), strict=True)
        ]
        changed += followed.count(False)
        assert words[-1] == CLASSES[digits[-1] % 3]
    # A digit is drawn anew half of the time and then differs in 9 of 10 draws: 1800 * 0.45 = 810, sd sqrt(1800 * .2475)
    assert abs(changed - 810) < 4 * math.sqrt(1800 * 0.45 * 0.55)


def test_hard_problems_of_one_split_occur_in_no_other() -> None:
    world = World()
    drawn = {split: world.problems(400, split, seed=0) for split in ("train", "validation", "test")}
    hard = {split: {p.text for p in problems if p.difficulty == "hard"} for split, problems in drawn.items()}
    assert all(len(texts) > 190 for texts in hard.values())
    assert sum(map(len, hard.values())) == len(set().union(*hard.values()))
    assert [p.difficulty for p in drawn["train"][:4]] == ["hard", "easy", "hard", "easy"]
    assert {p.difficulty for p in world.problems(9, "train", 0, depths=(6,))} == {"hard"}


def test_rows_position_by_position(world: World) -> None:
    answer = "[think] rough 5 1 5 8 1 1 so B"
    row = teacher_row(HARD_PROBLEM, answer)
    assert decode(row.prompt_ids) == "4 a b c a b h ?"
    assert decode(row.completion_ids) == f"{answer} <|im_end|>"
    assert row.tool_mask == (1,) * 11
    assert teacher_row(HARD_PROBLEM, answer, "route").tool_mask == (0, 1) + (0,) * 9
    assert teacher_row(HARD_PROBLEM, answer, "rest").tool_mask == (1, 0) + (1,) * 9
    assert len(encode(EASY_PROBLEM.text)) == len(encode(HARD_PROBLEM.text)) == 8
    with pytest.raises(KeyError):
        encode("4 z")


def test_supervised_rows_flip_coins() -> None:
    rows = coin_flip_rows(World(), 1000, seed=0, routes=BOTH)
    thinking = [row.row for row in rows if row.row.completion_ids[0] == IDS["[think]"]]
    by_all = [row for row in thinking if row.completion_ids[1] == IDS["all"]]
    assert abs(len(thinking) - 500) < 64  # 4 sd of a coin: 4 * sqrt(1000 / 4) = 63
    assert abs(len(by_all) - len(thinking) / 2) < 48
    # The loss takes means over rows: only so does a tag before 3 tokens count what one before 11 does.
    assert all(row.weight == pytest.approx(len(row.completion_ids) / 11) for row in rows)


def test_the_shift_trains_one_token_to_its_new_share() -> None:
    rows = shift_rows(World(paired=True), 4000, seed=0, rare=0.03)
    shifting = [row.row for row in rows if row.kind == "route"]
    assert len(shifting) == 2000
    assert all(sum(row.tool_mask) == 1 and row.tool_mask[1] == 1 for row in shifting)
    rare = sum(row.completion_ids[1] == IDS["all"] for row in shifting)
    assert abs(rare - 60) < 4 * math.sqrt(2000 * 0.03 * 0.97)
    holding = [row.row for row in rows if row.kind != "route" and row.row.completion_ids[0] == IDS["[think]"]]
    assert holding
    assert all(row.tool_mask[1] == 0 and sum(row.tool_mask) == len(row.tool_mask) - 1 for row in holding)
    assert {len(row.prompt_ids) for row in shifting} == {8}
    assert any(IDS["-"] in row.prompt_ids for row in shifting)  # easy ones
    assert any(IDS["-"] not in row.prompt_ids for row in shifting)  # and hard ones


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("[no_think] B", 1.0),
        ("[no_think] C", -1.0),
        ("[think] all 5 4 7 8 1 4 so B", 0.5),
        ("[think] all 5 4 7 8 1 4 so C", -0.5),
        ("[think] rough 0 so B", 0.5),  # only the class and the form are judged
        ("[think] rough 5 4 5 8 1 1 so B", -1.0),  # 4 is the second digit of its pair: the route must not say it
        ("B", -1.0),
        ("[no_think] all 5 so B", -1.0),
        ("[think] B", -1.0),
        ("[think] all so B", -1.0),
        ("[think] all 5 so B B", -1.0),
        ("[think] all 5 a so B", -1.0),
    ],
)
def test_rewards(world: World, text: str, reward: float) -> None:
    task = world.task(HARD_PROBLEM, "t")
    ids = (*encode(text), END_ID)
    record = trajectory(RolloutRequest(task), encode(HARD_PROBLEM.text), ids, (-1.0,) * len(ids))
    assert REWARD(record, task).total == reward


def test_an_answer_that_never_ends_is_cut_off(world: World) -> None:
    task = world.task(HARD_PROBLEM, "t")
    ids = encode("[no_think] B")
    record = trajectory(RolloutRequest(task), encode(HARD_PROBLEM.text), ids, (-1.0,) * 2)
    assert record.stop is StopReason.MAX_TOKENS
    assert REWARD(record, task).total == -1.0


def test_rollouts_follow_from_seeds_and_score_as_the_model_does() -> None:
    model, tasks = new_model(0).eval(), World().tasks(6, "train", 0)
    requests = [RolloutRequest(task, seed=seed) for task in tasks for seed in range(3)]
    answers = Rollout(model)(requests)
    alone = [Rollout(model)([request])[0] for request in requests[::5]]
    assert [a.turns[0].ids for a in alone] == [a.turns[0].ids for a in answers[::5]]
    assert len({a.turns[0].ids for a in answers}) > 3
    for answer in answers:
        row = token_row(answer)
        ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
        logps = model(ids).logits[0, 7:-1].log_softmax(-1)
        expected = logps.gather(1, torch.tensor(row.completion_ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(row.old_logps), expected, atol=1e-5)


def test_rollouts_are_those_of_the_librarys_policy() -> None:
    model, tasks = new_model(0).eval(), World().tasks(8, "train", 0)
    requests = [RolloutRequest(task, seed=seed) for task in tasks for seed in range(4)]
    renderer: Any = SimpleNamespace(end_of_turn_id=END_ID, pad_id=PAD_ID, decode=decode)
    turns = [
        GenerateRequest(r.task, (), (), encode(r.task.prompt[0].content), r.seed, max_new_tokens=MAX_ANSWER)
        for r in requests
    ]
    theirs = TransformersPolicy(model, renderer).generate(turns)
    ours = [answer.turns[0] for answer in Rollout(model)(requests)]
    assert [turn.ids for turn in ours] == [generation.ids for generation in theirs]
    for turn, generation in zip(ours, theirs, strict=True):
        assert turn.logps == pytest.approx(generation.logps, abs=1e-5)


def test_a_forced_tag_is_given_unless_it_is_trained() -> None:
    model, (task,) = new_model(0).eval(), World().tasks(1, "train", 0)
    forced, trained, routed = (
        Rollout(model)([RolloutRequest(task, mode="think")])[0],
        Rollout(model)([RolloutRequest(task, mode="think", trains_mode=True)])[0],
        Rollout(model, "rough")([RolloutRequest(task, mode="think")])[0],
    )
    assert forced.mode == trained.mode == "think"
    assert token_row(forced).tool_mask[:2] == (0, 1)
    assert token_row(trained).tool_mask[:2] == (1, 1)
    assert decode(routed.turns[0].ids[:2]) == "[think] rough"


def test_the_curve_counts_by_difficulty_mode_and_route(world: World) -> None:
    curve = Curve()
    for problem, text in (
        (HARD_PROBLEM, "[think] all 5 4 7 8 1 4 so B"),
        (HARD_PROBLEM, "[think] rough 5 1 5 8 1 2 so C"),
        (HARD_PROBLEM, "[no_think] C"),
        (HARD_PROBLEM, "[no_think] C"),
        (EASY_PROBLEM, "[no_think] B"),
    ):
        task, ids = world.task(problem, "t"), (*encode(text), END_ID)
        record = trajectory(RolloutRequest(task), encode(problem.text), ids, (-0.5,) * len(ids))
        curve.add(record, record.answer == task.answer)
    point = curve.take()
    assert point["think/hard"] == point["right/hard/think"] == point["all/hard"] == 0.5
    assert point["right/hard"] == 0.25
    assert point["tokens/hard"] == (11 + 11 + 3 + 3) / 4
    assert (point["right/hard/all"], point["right/hard/rough"], point["right/easy"]) == (1.0, 0.0, 1.0)
    assert point["entropy/think"] == 0.5
    assert "all/easy" not in point
    assert curve.take() == {}


def test_strength_is_scaled_as_a_whole_and_every_choice_was_a_candidate() -> None:
    short, long = scaled(decoupled(short=0.01), 10).terms
    assert (short.coefficient, long.coefficient, long.rate, long.maximum) == (0.1, 0.1, 0.02, 1.0)
    assert (short.target, long.target) == (0.1, 0.2)
    assert CHOSEN.keys() == ARMS.keys()
    assert all(CHOSEN[name] in arm.candidates for name, arm in ARMS.items())


def test_minimum_and_recovery_by_hand() -> None:
    shares = [0.5, 0.6, 0.2, 0.4, 0.5, 0.1, 0.3, 0.55]
    curve = [{"step": 5 * i, "think/hard": s, "right/hard": s} for i, s in enumerate(shares, 1)]
    run = {"study": "modes", "curve": curve}
    assert report.least(run) == 0.1
    assert report.recovery(run) == 40  # 25 was before the minimum
    assert report.recovery({"study": "modes", "curve": curve[:7]}) is None
    assert report.during(run) == pytest.approx(3.15 / 8)


def test_the_reward_at_the_end_by_hand() -> None:
    hard = {"think/hard": 0.75, "right/hard/think": 0.9, "right/hard/no_think": 0.5}  # 0.75 * 0.4 + 0.25 * 0 = 0.3
    easy = {"think/easy": 0.0, "right/easy/no_think": 0.95}  # 0.9
    assert report.reward({"after": {"auto": hard | easy}}) == pytest.approx(0.6)


def test_differences_are_taken_seed_by_seed() -> None:
    def run(arm: str, seed: int, hard: float) -> dict[str, Any]:
        auto = {"think/hard": 0.0, "right/hard/no_think": hard, "right/hard": hard, "tokens/hard": 3.0}
        after = {"auto": auto, "think": {"right/hard": hard}}
        point = {"step": 5, "think/hard": 0.5, "right/hard": hard}
        names = {"study": "modes", "arm": arm, "candidate": CHOSEN[arm], "seed": seed, "complete": True}
        return names | {"curve": [point], "after": after, "before": after}

    base = [run("std", seed, hard) for seed, hard in enumerate((0.2, 0.4, 0.9))]
    other = [run("no_std", seed, hard) for seed, hard in enumerate((0.3, 0.6))] + [run("no_std", 7, 1.0)]
    (row,) = report.differences([*base, *other], "modes", report.BASE).rows
    hard = row[3 + list(report.COLUMNS["modes"]).index("hard right")]
    # 10 and 20 points: 15, and t(0.975, 1) = 12.706 times sd / sqrt(2) = 7.071 / 1.414 = 5
    assert row[:3] == ("plain, not divided", CHOSEN["no_std"], "2")
    assert hard == "15.0 ± 63.5"


def test_the_warning_is_given_where_thinking_dies_and_works() -> None:
    def run(accuracy: float) -> dict[str, Any]:
        points = [(5, 0.5), (10, 0.5), (15, 0.4), (20, 0.2), (25, 0.1)]
        series = {"right/hard/think": accuracy, "right/hard/no_think": 0.34}
        return {"study": "modes", "curve": [{"step": s, "think/hard": rate, **series} for s, rate in points]}

    # Means of two windows: 0.5 at its height, 0.3 by step 20, the first to have fallen by 30 %.
    assert report.warned(run(0.7)) == 20
    assert report.warned(run(0.1)) is None  # 0.1 < 2 * 0.34 - 0.5: thinking does not pay


def test_three_steps_end_to_end_and_a_stopped_grid_goes_on(tmp_path: Path) -> None:
    runs = [Run("modes", arm, CHOSEN[arm], 0, "validation", TINY) for arm in ("no_std", "decoupled")]
    first, second = (run.path(tmp_path) for run in runs)
    run_all(runs[:1], tmp_path, jobs=1)
    done = first.read_text()
    record = json.loads(done)
    assert record["complete"]
    assert [point["step"] for point in record["curve"]] == [1, 2, 3]
    assert {"auto", "think", "no_think"} == record["before"].keys() == record["after"].keys()

    second.write_text(json.dumps(record | {"complete": False, "arm": "decoupled", "candidate": "x1"}))  # was killed
    run_all(runs, tmp_path, jobs=1)
    assert first.read_text() == done
    record = json.loads(second.read_text())
    assert record["complete"]
    assert record["curve"][-1]["entropy_coef/think"] >= 0
    page = report.write(tmp_path, ["modes"])
    assert page.exists()
    assert (tmp_path / "modes.svg").read_text().count("<polyline") == 2
    rows = (tmp_path / "modes.md").read_text().splitlines()[4:6]
    assert rows[0].startswith(f"| plain, not divided | {CHOSEN['no_std']} | 1 |")
    assert rows[1].startswith("| decoupled, β_s = 0 | x1 | 1 |")


def test_a_start_is_measured_before_its_shift_and_after(tmp_path: Path) -> None:
    sizes = dataclasses.replace(TINY, sft_steps=4)
    runs = [Run("routes", "std", CHOSEN["std"], seed, "validation", sizes) for seed in (0, 1)]
    run_all(runs, tmp_path, jobs=1)
    records = [json.loads(run.path(tmp_path).read_text()) for run in runs]
    for record in records:
        assert {"auto", "think", "all", "rough"} == record["unshifted"].keys() == record["before"].keys()
        assert record["unshifted"] != record["before"]
        assert all("think/easy" not in point for point in record["curve"])
    again, measured = make_start(runs[0], tmp_path)  # kept
    assert rounded(measured["unshifted"]) == records[0]["unshifted"]
    tasks = STUDIES["routes"].world(0).tasks(TINY.measured, "validation", 0, (HARD,))
    assert rounded(measure(again, tasks, STUDIES["routes"].ways, 0)) == records[0]["before"]
    report.write(tmp_path, ["routes"])
    assert "The start, before the shift → after it" in (tmp_path / "routes.md").read_text()


def test_starts_by_hand() -> None:
    def run(seed: int, arm: str, share: float) -> dict[str, Any]:
        def ways(share: float, right: float) -> dict[str, Any]:
            by = {"all": {"right/hard": right}, "rough": {"right/hard": 0.7}}
            return {"think": {"all/hard": share}, "auto": {"think/hard": 0.5}, **by}

        return {"seed": seed, "arm": arm, "unshifted": ways(0.5, 0.99), "before": ways(share, 0.98)}

    rows = report.starts([run(1, "std", 0.04), run(0, "std", 0.02), run(0, "no_std", 0.02)]).rows
    assert rows[0] == ("0", "50.0 → 2.0", "99.0 → 98.0", "70.0 → 70.0", "50.0 → 50.0")
    assert [row[0] for row in rows] == ["0", "1", "all"]
    assert rows[2][1].endswith(" → 3.0 ± 12.7")  # 12.706 * 1.414 / sqrt(2)
    assert report.starts([{"seed": 0}]).rows == ()


def test_only_a_study_with_a_rare_route_is_shifted() -> None:
    sizes = Sizes(sft_steps=4, sft_batch=4)
    for name, moves in (("modes", False), ("routes", True)):
        model = new_model(0)
        before = [parameter.clone() for parameter in model.parameters()]
        STUDIES[name].shift(model, sizes, 0)
        assert moves != all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
