import json
import logging
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tirkit.embedded.model import build_tokenizer
from tirkit.rollout.allow import AllOf, SelectionAutomaton
from tirkit.rollout.call_grammar import CallGrammar
from tirkit.rollout.policy import GenerateRequest
from tirkit.rollout.transformers_policy import TransformersPolicy
from tirkit.text.control import CALL_OPEN, CONTROL_STRINGS
from tirkit.text.dialects import Dialect
from tirkit.text.index import build_index
from tirkit.text.render import Renderer
from tirkit.text.schema import validate_arguments
from tirkit.types import Task, ToolCall, ToolSchema, Turn


def tool(
    name: str, required: tuple[str, ...] = (), more: dict[str, Any] | None = None, **properties: Any
) -> ToolSchema:
    parameters = {"type": "object", "properties": properties, "required": list(required)} | (more or {})
    return ToolSchema(name=name, parameters=parameters)


TOOLS = (
    tool("add", ("a",), a={"type": "integer"}, b={"type": "integer", "minimum": 3, "maximum": 90}),
    tool("get weather", ("city",), city={"type": "string"}, unit={"enum": ["C", "F", None]}, days={"type": "number"}),
    tool("päth", ("to",), to={"type": "array", "items": {"type": "object", "properties": {"x": {"type": "number"}}}}),
    tool("now"),
    tool(
        "pick", ("p",), p={"anyOf": [{"type": "boolean"}, {"$ref": "#/$defs/p"}]}, more={"$defs": {"p": {"const": 7}}}
    ),
    tool(
        "code",
        ("id", "at"),
        id={"type": "string", "pattern": "^[A-Z]{2}[0-9]+$"},
        at={"type": "string", "maxLength": 4},
    ),
)
BY_NAME = {one.name: one for one in TOOLS}


def build(kind: str | None, tools: tuple[ToolSchema, ...] = TOOLS, two_step: bool = True) -> SimpleNamespace:
    tokenizer = build_tokenizer(['user assistant tool {"name": "add", "arguments": {"a": 1}} <think'], size=330)
    index = build_index(tools, kind) if kind else None  # type: ignore[arg-type]
    tokenizer.add_tokens(list(index.tokens) if index else [])
    renderer, dialect = Renderer(tokenizer, index), Dialect(index, two_step)
    grammar = CallGrammar(tokenizer, renderer, dialect, tools)
    return SimpleNamespace(tokenizer=tokenizer, renderer=renderer, dialect=dialect, grammar=grammar)


def request(tools: tuple[str, ...] = (), selected: tuple[str, ...] | None = None) -> GenerateRequest:
    turns = () if selected is None else (Turn(text="", selected=selected),)
    return GenerateRequest(Task(id="t", prompt=(), tools=tools), turns, (), (1,), 0, 100)


def follow(grammar: Any, state: Any, ids: list[int], size: int) -> tuple[int, Any]:
    """How many of `ids` are allowed, and the state after those."""
    for place, token in enumerate(ids):
        if grammar.mask(torch.zeros(1, size), [state])[0, token] != 0:
            return place, state
        state = grammar.next(state, token)
    return len(ids), state


def sampled(one: SimpleNamespace, rng: random.Random, state: Any, limit: int) -> tuple[str, bool]:
    """What a model without preferences writes from <tool_call> on, and whether it closed the block.

    Past half of the limit it prefers what ends things.
    """
    size = len(one.tokenizer) + 7  # the model's vocabulary is padded
    text_ids = one.renderer.completion_ids(CALL_OPEN)[:-1]
    endings = {one.tokenizer.convert_tokens_to_ids(text) for text in ('"', "}", "]", "Ċ", "</tool_call>")}
    state = one.grammar.next(state, text_ids[0])
    while state and len(text_ids) < limit:
        allowed = one.grammar.mask(torch.zeros(1, size), [state])[0].isfinite().nonzero()[:, 0].tolist()
        assert allowed
        assert max(allowed) < len(one.tokenizer)
        ending = [token for token in allowed if token in endings]
        choose = ending if ending and len(text_ids) > rng.randrange(limit) else allowed
        text_ids.append(rng.choice(choose))
        state = one.grammar.next(state, text_ids[-1])
    return one.renderer.decode_all(text_ids), not state


@pytest.mark.parametrize("kind", ["atomic", "hierarchical", "name", "numeric", None])
def test_whatever_is_written_parses_and_fits_its_schema(kind: str | None) -> None:
    one, rng, seen, closed = build(kind), random.Random(0), set(), 0
    for _ in range(60):
        text, done = sampled(one, rng, one.grammar.start, 150)
        if done:
            closed += 1
            parsed = one.dialect.parse(text)
            assert parsed.calls
            assert not parsed.problems, text
            for call in parsed.calls:
                assert not validate_arguments(BY_NAME[call.name], call.arguments), text
                seen.add(call.name)
    assert closed > 40
    assert len(seen) >= 5
    assert not one.grammar.loose


@pytest.mark.parametrize("kind", ["atomic", "hierarchical", "name", "numeric", None])
def test_what_the_dialect_prints_is_allowed(kind: str | None) -> None:
    one = build(kind)
    calls = [
        ToolCall(name="get weather", arguments={"city": 'Oslo "<think>" [\n] é \U0001f600', "days": -1.25}),
        ToolCall(name="now"),
        ToolCall(name="päth", arguments={"to": [{"x": 1}, {}]}),
        ToolCall(name="pick", arguments={"p": 7}),
    ]
    ids = one.renderer.completion_ids(one.dialect.print_calls(calls))
    reached, state = follow(one.grammar, one.grammar.start, ids, len(one.tokenizer))
    assert reached == len(ids), one.renderer.decode_all(ids[:reached])
    assert not state
    for bad in (
        ToolCall(name="add", arguments={"a": 1.5}),
        ToolCall(name="add", arguments={"a": 1, "b": 2}),
        ToolCall(name="add", arguments={"b": 3}),
        ToolCall(name="now", arguments={"x": 1}),
        ToolCall(name="code", arguments={"id": "A1", "at": ""}),
    ):
        ids = one.renderer.completion_ids(one.dialect.print_calls([bad]))
        assert follow(one.grammar, one.grammar.start, ids, len(one.tokenizer))[0] < len(ids) - 3


def test_only_tools_in_force_may_be_called() -> None:
    one = build("atomic")

    def allows(name: str, asked: GenerateRequest) -> bool:
        arguments = {"add": {"a": 1}, "now": {}}[name]
        ids = one.renderer.completion_ids(one.dialect.print_calls([ToolCall(name=name, arguments=arguments)]))
        return follow(one.grammar, one.grammar.begin(asked), ids, len(one.tokenizer))[0] == len(ids)

    assert allows("add", request())
    assert allows("now", request())
    assert not allows("add", request(selected=("now",)))
    assert allows("now", request(("add",), selected=("now", "päth")))
    assert allows("add", request(("add",)))
    assert not allows("now", request(("add",)))


def test_control_strings_are_not_spelled_token_by_token() -> None:
    one = build(None)
    for text in CONTROL_STRINGS:
        plain = one.renderer.safe_ids(f'\n{{"name": "get weather", "arguments": {{"city": "a{text}')
        ids = [*one.renderer.completion_ids(CALL_OPEN)[:-1], *plain]
        reached, _ = follow(one.grammar, one.grammar.start, ids, len(one.tokenizer))
        assert reached < len(ids), text
        assert reached > len(ids) - len(text), text


def test_a_schema_that_cannot_be_compiled_is_counted_and_any_object_allowed(caplog: pytest.LogCaptureFixture) -> None:
    odd = tool("odd", x={"not": {"type": "string"}})
    spells = tool("spells", x={"enum": ["<think>", "b"]})
    one = build("atomic", (odd, spells, *TOOLS))
    with caplog.at_level(logging.WARNING):
        for name in ("odd", "spells", "now"):
            calls = [ToolCall(name=name, arguments={} if name == "now" else {"x": {"y": [1, None]}})]
            ids = one.renderer.completion_ids(one.dialect.print_calls(calls))
            assert follow(one.grammar, one.grammar.start, ids, len(one.tokenizer))[0] == len(ids)
    assert set(one.grammar.loose) == {"odd", "spells"}
    assert "not" in one.grammar.loose["odd"]
    assert one.grammar.loose["spells"] == "it spells <think>"
    assert [record.args[0] for record in caplog.records] == ["odd", "spells"]  # type: ignore[index]


def test_states_are_values_and_a_wrong_token_leads_outside() -> None:
    one, size = build("atomic"), None
    size = len(one.tokenizer)
    ids = one.renderer.completion_ids(one.dialect.print_calls([ToolCall(name="add", arguments={"a": 12})]))
    state = one.grammar.start
    for token in ids[:-6]:
        before = one.grammar.mask(torch.zeros(1, size), [state])
        after = one.grammar.next(state, token)
        one.grammar.next(state, ids[0])
        assert torch.equal(one.grammar.mask(torch.zeros(1, size), [state]), before)
        state = after
    assert state
    assert not one.grammar.next(state, ids[0])


def test_log_probs_stay_and_both_blocks_are_held(tiny: SimpleNamespace) -> None:
    both = AllOf(
        [
            SelectionAutomaton(tiny.renderer, tiny.dialect),
            CallGrammar(tiny.tokenizer, tiny.renderer, tiny.dialect, list(tiny.tools.values())),
        ]
    )
    size = len(tiny.tokenizer)
    selection = tiny.renderer.completion_ids(tiny.dialect.print_selection(["add"]))
    call = tiny.renderer.completion_ids(tiny.dialect.print_calls([ToolCall(name="add", arguments={"a": 1, "b": 2})]))
    for ids in (selection, call):
        state = both.begin(request())
        held = 0
        for token in ids:
            logps_BV = torch.randn(2, size).log_softmax(-1)
            masked = both.mask(logps_BV.clone(), [state, both.start])
            allowed = masked[0].isfinite()
            assert torch.equal(masked[0][allowed], logps_BV[0][allowed])
            assert torch.equal(masked[1], logps_BV[1])
            assert allowed[token]
            held += int(not allowed.all())
            state = both.next(state, token)
        assert held == len(ids) - 2  # all but the opening tag and the end of turn


class Inside(CallGrammar):
    """Begins every turn behind <tool_call>."""

    def begin(self, request: GenerateRequest) -> Any:
        return self.next(super().begin(request), self._open)


def test_a_random_model_calls_as_it_must_and_keeps_its_log_probs(tiny: SimpleNamespace) -> None:
    grammar = Inside(tiny.tokenizer, tiny.renderer, tiny.dialect, list(tiny.tools.values()))
    policy = TransformersPolicy(tiny.model, tiny.renderer, 3.0, allow=grammar)
    requests = [
        replace(request(selected=(name,)), ids=(5, 6, 7), seed=seed, max_new_tokens=150)
        for seed in range(8)
        for name in ("add", "fail")
    ]
    closed = 0
    for asked, written in zip(requests, policy.generate(requests), strict=True):
        block, end, _ = written.text.partition("</tool_call>")
        if end:
            closed += 1
            parsed = tiny.dialect.parse(f"{CALL_OPEN}{block}{end}")
            assert not parsed.problems
            assert {call.name for call in parsed.calls} == set(asked.turns[0].selected)
            assert all(not validate_arguments(tiny.tools[call.name], call.arguments) for call in parsed.calls)
        ids = torch.tensor([[*asked.ids, *written.ids]])
        with torch.no_grad():
            logps = (tiny.model(ids).logits[0] / 3.0).log_softmax(-1)[2:-1].gather(1, ids[0, 3:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(written.logps), logps, atol=1e-4, rtol=1e-4)
    assert closed >= 4


def test_many_tools_are_named_in_one_grammar() -> None:
    tools = tuple(tool(f"tool {i}", ("n",), n={"type": "integer"}) for i in range(3000))
    for kind in ("atomic", "hierarchical", None):
        one = build(kind, tools)
        calls = [ToolCall(name=name, arguments={"n": 1}) for name in ("tool 0", "tool 2999")]
        ids = one.renderer.completion_ids(one.dialect.print_calls(calls))
        assert follow(one.grammar, one.grammar.start, ids, len(one.tokenizer))[0] == len(ids)
        assert one.grammar._rest.cache_info().currsize == 2
        assert json.dumps(one.grammar.loose) == "{}"
