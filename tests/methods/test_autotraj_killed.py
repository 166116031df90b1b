"""SIGKILL at random moments of synthesise → judge → repair → pairs: what continues ends with the same datasets."""

import os
import random
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from tirkit.config import RunConfig
from tirkit.embedded.model import build_tokenizer
from tirkit.embedded.world import World
from tirkit.methods.autotraj.pairs import Datasets, build_datasets
from tirkit.methods.autotraj.repair import RepairedTask, Repairer
from tirkit.methods.autotraj.scripted import gold_repairer
from tirkit.methods.autotraj.synthesise import judge, synthesise
from tirkit.rollout.loop import RolloutSettings, rollout, stable_seed
from tirkit.rollout.policy import GenerateRequest, Generation, ScriptedPolicy, oracle
from tirkit.store import RunFolder, write_atomic
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer
from tirkit.tools.runtime import PythonToolbox
from tirkit.types import Group

DIALECT = Dialect()
KILLS = 20


class Careless(ScriptedPolicy):
    """Plays the gold, with mistakes that follow from the request's seed."""

    def write(self, request: GenerateRequest) -> Generation:
        draw = random.Random(stable_seed(request.seed, "mistake")).random()
        text = oracle(DIALECT)(request.task, request.turns)
        if "<answer>" in text and draw < 0.5:
            text = (
                DIALECT.print_answer("wrong") if draw < 0.3 else f"<think>\nmaybe\n</think>\n{text.split('>', 2)[-1]}"
            )
        self.script = lambda *_: text
        return super().write(request)


def work(root: Path, renderer: Renderer, world: World) -> None:
    """All of it, going on from whatever is stored in `root`."""
    folder = RunFolder.open(root, RunConfig())
    tasks = world.tasks("train", 10, kinds=("single", "two_step"))
    by_id, tools = {task.id: task for task in tasks}, {tool.name: tool for tool in world.catalogue}
    toolbox = PythonToolbox(world.functions, world.catalogue, isolation="inline")
    limits = RolloutSettings(workers=0)
    loop = partial(rollout, renderer=renderer, dialect=DIALECT, tools=tools, toolbox=toolbox, settings=limits)

    def keep(name: str, records: Sequence[Group] | Sequence[RepairedTask]) -> None:
        folder.append_records(name, records)

    groups = synthesise(
        tasks,
        partial(loop, policy=Careless(oracle(DIALECT), renderer)),
        done=folder.read_records("groups", Group),
        keep=partial(keep, "groups"),
        chunk=2,
    )
    judged = [judge(group, by_id[group.task_id]) for group in groups]
    policy = gold_repairer(judged, by_id, renderer, DIALECT, skill=0.8)
    repaired = Repairer(loop, renderer, DIALECT, tools, lambda _: policy).repair(
        judged, by_id, done=folder.read_records("repaired", RepairedTask), keep=partial(keep, "repaired"), chunk=2
    )
    datasets = build_datasets(judged, repaired, by_id)
    write_atomic(root / "datasets.json", datasets.model_dump_json())
    folder.close()


def in_child(root: Path, renderer: Renderer, world: World, seconds: float | None) -> bool:
    """Do the work in a process of its own, killed after `seconds`; whether it got to its end."""
    child = os.fork()
    if child == 0:
        try:
            work(root, renderer, world)
            os._exit(0)
        except BaseException:
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert seconds is not None or os.waitstatus_to_exitcode(status) == 0
    return os.waitstatus_to_exitcode(status) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process")
def test_killed_at_twenty_random_points(tmp_path: Path) -> None:
    world = World(num_tools=8, seed=0)
    renderer = Renderer(build_tokenizer(["what is the of a user assistant tool"], size=400))
    started = time.monotonic()
    work(tmp_path / "whole", renderer, world)
    duration = time.monotonic() - started
    expected = (tmp_path / "whole" / "datasets.json").read_text()
    made = Datasets.model_validate_json(expected)
    assert {example.source for example in made.sft} == {"kept", "repaired"}
    assert made.preferences
    rng, kills, number = random.Random(0), 0, 0
    while kills < KILLS:
        root = tmp_path / str(number)
        number += 1
        while kills < KILLS and not in_child(root, renderer, world, rng.uniform(0, duration)):
            kills += 1
        in_child(root, renderer, world, None)
        assert (root / "datasets.json").read_text() == expected
