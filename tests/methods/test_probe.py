from types import SimpleNamespace

import pytest

from tirkit.methods.tinr.corpus import RECALL_CUE, selection_text
from tirkit.methods.tinr.probe import Probe, field_f1, probe
from tirkit.rollout.policy import ScriptedPolicy
from tirkit.text.dialects import print_document
from tirkit.types import Task, Turn


def test_field_f1_by_hand() -> None:
    gold = '{"name": "a", "parameters": {"x": {"type": "integer"}, "required": ["x", "y"]}}'
    # leaves: name=a, x.type=integer, required∋x, required∋y
    assert field_f1(gold, gold) == 1.0
    assert field_f1(gold, gold.replace('["x", "y"]', '["y", "x"]')) == 1.0
    # 3 of 4 found, 4 said: 2·3/8
    assert field_f1(gold, gold.replace("integer", "number")) == pytest.approx(0.75)
    # 1 of 4 found, 1 said: 2·1/5
    assert field_f1(gold, '{"name": "a"}') == pytest.approx(0.4)
    for nothing in ("", "[]", "{", "1", "[" * 100_000, '{"name": "b"}'):
        assert field_f1(gold, nothing) == 0.0
    assert field_f1('{"a": 1}', '{"a": true}') == 0.0  # types are strict


def test_probe_asks_for_both_directions(four: SimpleNamespace) -> None:
    def knows_half(task: Task, turns: tuple[Turn, ...]) -> str:
        tool = four.by_name[task.id.removeprefix("probe/")]
        if task.prompt[-1].content == RECALL_CUE:
            assert task.prompt[1].content == selection_text(tool, four.dialect)
            document = print_document(tool)
            return document if tool.name != "mul" else document.replace("Multiply", "Add")
        assert print_document(tool) in task.prompt[0].content
        return selection_text(four.tools[1], four.dialect)

    policy = ScriptedPolicy(knows_half, four.renderer)
    first, second = probe(policy, four.renderer, four.dialect, four.tools[:2])
    assert first == Probe("add_two", memorised=False, recalled=True, recall_f1=1.0)
    assert (second.name, second.memorised, second.recalled) == ("mul", True, False)
    # leaves of mul: name, description, type, a.type, b.type, required∋a, required∋b: 6 of 7
    assert second.recall_f1 == pytest.approx(6 / 7)
