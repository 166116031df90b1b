import random
from types import SimpleNamespace

import pytest
import torch

from tirkit.rollout.allow import SelectionAutomaton
from tirkit.text.dialects import Dialect
from tirkit.text.index import build_index
from tirkit.types import ToolSchema

NAMES = ("add", "mul", "fail")


def slow_reference(tiny: SimpleNamespace, dialect: Dialect, written: list[int], names: tuple[str, ...]) -> set[int]:
    """What may follow `written`, the tokens from <tool_token> on: by trying all blocks of up to two tools."""
    choices = [(one,) for one in names] + [(one, two) for one in names for two in names]
    blocks = [tiny.renderer.completion_ids(dialect.print_selection(choice))[:-1] for choice in choices]
    return {block[len(written)] for block in blocks if block[: len(written)] == written and len(block) > len(written)}


@pytest.mark.parametrize("kind", ["atomic", "name", "numeric"])
def test_the_mask_equals_a_slow_reference_at_every_state(tiny: SimpleNamespace, kind: str) -> None:
    dialect = Dialect(build_index(list(tiny.tools.values()), kind))
    automaton = SelectionAutomaton(tiny.renderer, dialect, NAMES)
    size, logps_V = len(tiny.tokenizer), torch.randn(len(tiny.tokenizer))
    for names in ((), ("add",), ("mul", "fail")):
        block = tiny.renderer.completion_ids(dialect.print_selection(names or ("add",)))[:-1]
        state = 0
        for place, token in enumerate(block[: len(block) if names else 2]):
            if place:
                allowed = slow_reference(tiny, dialect, block[:place], NAMES)
                want = torch.full((size,), float("-inf"))
                want[list(allowed)] = logps_V[list(allowed)]
                got = automaton.mask(logps_V.clone()[None], [state])[0]
                # Two tools are as far as the reference looks; beyond, the automaton allows a third.
                assert torch.equal(got, want) or place == len(block) - 1
                assert got[token] == logps_V[token]
            state = automaton.next(state, token)
        assert (state == 0) == bool(names)


def test_rows_are_masked_each_by_its_own_state_and_free_rows_not_at_all(tiny: SimpleNamespace) -> None:
    automaton = SelectionAutomaton(tiny.renderer, tiny.dialect)
    block = tiny.renderer.completion_ids(tiny.dialect.print_selection(("mul",)))[:-1]
    states = [0]
    for token in block:
        states.append(automaton.next(states[-1], token))
    order = random.Random(0).sample(range(len(states)), len(states))
    logps_BV = torch.randn(len(states), len(tiny.tokenizer))
    together = automaton.mask(logps_BV.clone(), [states[i] for i in order])
    for row, i in enumerate(order):
        alone = automaton.mask(logps_BV[row : row + 1].clone(), [states[i]])
        assert torch.equal(together[row], alone[0])
        assert torch.equal(alone[0], logps_BV[row]) == (states[i] == 0)


def test_ten_thousand_tools_are_held_once(tiny: SimpleNamespace) -> None:
    """Memory by entries, not by entries times vocabulary: two states list all tools, the others one token each."""
    index = build_index([ToolSchema(name=f"tool {i}") for i in range(10_000)], "numeric")
    automaton = SelectionAutomaton(tiny.renderer, Dialect(index))
    assert len(automaton._tokens) == sum(map(len, automaton._edges)) < 60_000
