import pickle
import re
import subprocess
import sys

import pytest
from jsonschema import Draft202012Validator

from tirkit.embedded import phrases, values
from tirkit.embedded.world import TASK_KINDS, World
from tirkit.types import Task

WORLD = World(num_tools=64, seed=0)
GROUPS = (("train", "seen"), ("validation", "seen"), ("validation", "unseen"), ("test", "seen"), ("test", "unseen"))
TASKS: dict[tuple[str, str], list[Task]] = {key: WORLD.tasks(key[0], 300, tools=key[1]) for key in GROUPS}
ALL = [task for tasks in TASKS.values() for task in tasks]


def text(task: Task) -> str:
    return task.prompt[0].content


def test_gold_calls_run_and_give_the_answer():
    schemas = {tool.name: tool for tool in WORLD.catalogue}
    for task in ALL:
        results = [WORLD.functions[call.name](**call.arguments) for call in task.gold_calls or ()]
        for call in task.gold_calls or ():
            Draft202012Validator(schemas[call.name].parameters).validate(call.arguments)
        if task.kind in ("single", "two_step"):
            assert results[-1] == task.answer
        if task.kind == "two_step":  # the second call needs what the first one gave, and no question says it
            assert results[0] in (task.gold_calls or ())[1].arguments.values()
            assert results[0] not in text(task)


def test_thoughts_are_one_a_round_and_one_for_the_reply_and_name_the_tool():
    for task in ALL:
        assert len(task.thoughts) == len(task.gold_rounds or ()) + 1
        for calls, thought in zip(task.gold_rounds or (), task.thoughts, strict=False):
            assert thought.endswith(f" : {calls[0].name}")


def test_held_out_tools_are_a_quarter_and_in_no_training_task():
    assert len(WORLD.held_out) in (15, 16)
    for (_, tools), tasks in TASKS.items():
        for task in tasks:
            names = {call.name for call in task.gold_calls or ()}
            assert names <= WORLD.held_out if tools == "unseen" else not names & WORLD.held_out
    with pytest.raises(ValueError, match="held-out"):
        WORLD.tasks("train", 1, tools="all")


def test_every_kind_comes_in_turn_and_questions_are_new():
    for tasks in TASKS.values():
        assert [task.kind for task in tasks[:5]] == [kind for kind in TASK_KINDS if kind != "arithmetic_plain"]
        assert len({text(task) for task in tasks}) == len({task.id for task in tasks}) == len(tasks)


def test_plain_sums_look_like_hard_ones_and_have_no_carry():
    plain = WORLD.tasks("train", 100, kinds=("arithmetic_plain",))
    hard = WORLD.tasks("train", 100, kinds=("arithmetic_hard",))
    for task in plain:
        a, b = re.findall(r"\d+", text(task))
        assert len(a) == len(b) == 3
        assert task.answer == "".join(str(int(x) + int(y)) for x, y in zip(a, b, strict=True))  # 10 would be too long
    assert {re.sub(r"\d+", "0", text(task)) for task in plain} & {re.sub(r"\d+", "0", text(task)) for task in hard}


def test_values_are_apart_by_split():
    for (split, _), tasks in TASKS.items():
        for task in tasks:
            for call in task.gold_calls or ():
                for key, value in call.arguments.items():
                    if key in phrases.SUBJECT_KEYS or isinstance(value, float):
                        assert values.split_of(value) == split


def test_questions_are_apart_by_split():
    train = {text(task) for task in TASKS["train", "seen"]}
    assert not train & {text(task) for (split, _), tasks in TASKS.items() if split != "train" for task in tasks}


def test_questions_use_other_words_than_documents():
    descriptions = {tool.name: tool.description.lower() for tool in WORLD.catalogue}
    for task in ALL:
        said = set(re.findall(r"[a-z]+", text(task)))
        for call in task.gold_calls or ():
            documented = {word for word in phrases.SYNONYMS if word in re.findall(r"[a-z]+", descriptions[call.name])}
            assert len(documented) == 2
            assert not said & documented


def test_results_depend_on_every_argument_and_on_the_seed():
    tool = next(t for t in WORLD.tools.values() if not t.gives_name)
    results = {tool.run(seed, {tool.subject: name}) for seed in (0, 1) for name in ("Bo", "Ka", "Lu", "Mi", "Ne", "Po")}
    assert len(results) > 10


def test_the_same_world_in_another_process():
    code = "from tirkit.embedded.world import World; w = World(); print(w.catalogue, w.tasks('test', 20))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == f"{WORLD.catalogue} {WORLD.tasks('test', 20)}"


def test_functions_can_be_sent_to_another_process():
    call = (TASKS["train", "seen"][0].gold_calls or ())[0]
    function = pickle.loads(pickle.dumps(WORLD.functions[call.name]))
    assert function(**call.arguments) == TASKS["train", "seen"][0].answer


@pytest.mark.parametrize("num_tools", [1, 7, 1000])
def test_worlds_of_any_size(num_tools: int):
    world = World(num_tools=num_tools)
    assert len({tool.name for tool in world.catalogue}) == num_tools
    assert len({re.sub(r"\W", "", tool.description) for tool in world.catalogue}) == num_tools
    assert world.tasks("train", 5, kinds=("single",))


def test_a_world_too_small_says_so():
    with pytest.raises(ValueError, match="num_tools"):
        World(num_tools=2).tasks("test", 1, kinds=("single",), tools="unseen")
    with pytest.raises(ValueError, match="num_tools must be between"):
        World(num_tools=0)
