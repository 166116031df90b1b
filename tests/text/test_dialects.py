import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tirkit.text.control import CONTROL_STRINGS
from tirkit.text.dialects import CALL_PROBLEM, Dialect, ParsedTurn, parse_json, print_document, print_json
from tirkit.text.index import build_index
from tirkit.types import ToolCall, ToolSchema

TOOLS = [ToolSchema(name=name) for name in ("get_weather", "add", "café au lait.v2")]
INDEX = build_index(TOOLS)
TWO, ONE, PLAIN = Dialect(INDEX), Dialect(INDEX, two_step=False), Dialect()
SPELLINGS = (*CONTROL_STRINGS, "<<", ">>", "<<add>>", "<", "[", "\\", '"', "\n", "\\u003c")
hostile = st.lists(st.one_of(st.sampled_from(SPELLINGS), st.text(max_size=3)), max_size=6).map("".join)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), hostile),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(hostile, inner, max_size=3)),
    max_leaves=6,
)
calls = st.builds(ToolCall, name=st.sampled_from(INDEX.names), arguments=st.dictionaries(hostile, values, max_size=3))


def call(name: str, **arguments: object) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)  # type: ignore[arg-type]


def block(*lines: str) -> str:
    return "\n".join(("<tool_call>", *lines, "</tool_call>"))


def test_formats() -> None:
    assert TWO.print_selection(["get_weather", "add"]) == "<tool_token>\n<<get_weather>>\n<<add>>\n</tool_token>"
    oslo = call("get_weather", city="Oslo")
    assert TWO.print_calls([oslo]) == block('{"name": "<<get_weather>>", "arguments": {"city": "Oslo"}}')
    assert PLAIN.print_calls([oslo], "Hm.") == "<think>\nHm.\n</think>\n" + block(
        '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
    )
    assert PLAIN.print_answer("21 C") == "<answer>21 C</answer>"


@pytest.mark.parametrize("kind", ["atomic", "name", "numeric", "hierarchical"])
def test_every_index_reads_back(kind: str) -> None:
    dialect = Dialect(build_index(TOOLS, kind))  # type: ignore[arg-type]
    names = ("add", "café au lait.v2")
    assert dialect.parse(dialect.print_selection(names)) == ParsedTurn(selected=names)
    assert dialect.parse(dialect.print_calls([call("add", a=1)])) == ParsedTurn(calls=(call("add", a=1),))


@given(st.lists(calls, min_size=1, max_size=3), st.sampled_from([TWO, ONE, PLAIN]))
def test_calls_read_back_and_spell_no_control_string(made: list[ToolCall], dialect: Dialect) -> None:
    text = dialect.print_calls(made)
    assert dialect.parse(text) == ParsedTurn(calls=tuple(made))
    inner = text.removeprefix("<tool_call>").removesuffix("</tool_call>")
    assert not any(control in inner for control in CONTROL_STRINGS)
    for name in INDEX.names:  # the only tool tokens are the names of the calls
        made_of = sum(c.name == name for c in made) if dialect.index else 0
        assert inner.count(INDEX.surface(name)) == made_of


@given(values)
def test_json_reads_back(value: object) -> None:
    text = print_json(value)  # type: ignore[arg-type]
    assert json.loads(text) == parse_json(text) == value
    assert "\n" not in text
    assert not any(spelling in text for spelling in (*CONTROL_STRINGS, "<<"))


@given(st.lists(st.one_of(st.sampled_from((*SPELLINGS, '{"name": "add", "arguments": {}}')), st.text(max_size=4))))
def test_parsing_never_raises(pieces: list[str]) -> None:
    for dialect in (TWO, ONE, PLAIN, Dialect(INDEX, think="required"), Dialect(think="never")):
        turn = dialect.parse("".join(pieces))
        acts = bool(turn.selected) + bool(turn.calls) + (turn.answer is not None)
        assert turn.problems or acts == 1


@given(st.text().filter(lambda s: s.strip() and not any(c in s for c in CONTROL_STRINGS)))
def test_thoughts_and_answers_read_back(text: str) -> None:
    assert PLAIN.parse(PLAIN.print_answer(text, text)) == ParsedTurn(think=text.strip(), answer=text.strip())


BAD = [
    # text, one of its problems, what is read all the same
    ("", "no selection, call or answer", ()),
    ("hello", "text outside of any block: 'hello'", ()),
    ("<answer>1</answer> bye", "text outside of any block: 'bye'", ("1",)),
    ("<answer>1</answer><answer>2</answer>", "<answer> more than once", ("2",)),
    ("<answer>1</answer><think>x</think>", "thinking after another block", ("1",)),
    ("<answer> </answer>", "empty answer", ("",)),
    ("<answer>1", "block <answer> is not closed", ()),
    ("<think>hm", "block <think> is not closed", ()),
    ("<answer>a<tool_call>b</answer>", "<tool_call> inside <answer>", ("a<tool_call>b",)),
    (block() + "<answer>1</answer>", "<answer> and <tool_call> in one turn", ("1",)),
    ("<tool_token></tool_token>", "empty selection", ()),
    ("<tool_token>\n<<no>>\n<<add>>\n</tool_token>", "unknown tool '<<no>>'", ("add",)),
    ("<tool_token>\nadd\n</tool_token>", "unknown tool 'add'", ()),
    ("<tool_token>\n<<add>>\n<<add>>\n</tool_token>", "tool 'add' selected twice", ("add",)),
    (block(), "call block is empty", ()),
    ('<tool_call>\n{"name": "<<add>>", "arguments": {}}', "call block <tool_call> is not closed", ()),
    (block("{"), "call 1: bad JSON (Expecting property name enclosed in double quotes) in '{'", ()),
    (block('{"name": "<<add>>", "arguments": {}}', "[]"), "call 2: not an object of 'name' and", (call("add"),)),
    (block('{"name": "<<add>>"}'), "call 1: not an object of 'name' and 'arguments'", ()),
    (block('{"name": "<<add>>", "arguments": {}, "x": 1}'), "call 1: not an object of", ()),
    (block('{"name": "<<add>>", "arguments": []}'), "call 1: 'arguments' is not an object", ()),
    (block('{"name": 1, "arguments": {}}'), "call 1: 'name' is not a string", ()),
    (block('{"name": "add", "arguments": {}}'), "call 1: unknown tool 'add'", ()),
    (block('{"name": "<<add>>", "arguments": {"a": NaN}}'), "call 1: NaN is not JSON", ()),
    (block('{"name": "<<add>>", "arguments": {"a": 1e999}}'), "call 1: 1e999 is not JSON", ()),
    (block('{"name": "<<add>>", "arguments": {"a": 1, "a": 2}}'), "call 1: a key is given twice", ()),
    (block("[" * 100_000), "call 1: nested too deep", ()),
    (block('{"name": "<<add>>", "arguments": {"a": ' + "9" * 5000 + "}}"), "call 1: Exceeds the limit", ()),
]


@pytest.mark.parametrize(("text", "problem", "read"), BAD, ids=[problem for _, problem, _ in BAD])
def test_problems_are_named(text: str, problem: str, read: tuple[object, ...]) -> None:
    turn = TWO.parse(text)
    assert any(p.startswith(problem) for p in turn.problems), turn.problems
    answer = () if turn.answer is None else (turn.answer,)
    assert (*turn.selected, *turn.calls, *answer) == read


def test_problems_of_a_call_block_can_be_told_from_others() -> None:
    for text, problem, _ in BAD:
        in_call_block = text.startswith("<tool_call>") and "in one turn" not in problem
        if in_call_block:
            assert problem.startswith(CALL_PROBLEM)
        elif "<tool_call>" not in text:
            assert not any(p.startswith(CALL_PROBLEM) for p in TWO.parse(text).problems)


def test_a_lone_surrogate_is_a_problem() -> None:
    turn = PLAIN.parse(block('{"name": "a", "arguments": {"x": "\\ud800"}}'))
    assert turn.calls == ()
    assert "surrogates not allowed" in turn.problems[0]


def test_selection_belongs_to_two_steps() -> None:
    text = TWO.print_selection(["add"])
    for dialect in (ONE, PLAIN):
        assert dialect.parse(text).problems == ("selection in a dialect without one",)
        with pytest.raises(ValueError, match="selects no tools"):
            dialect.print_selection(["add"])


def test_thinking_where_it_is_required() -> None:
    for two_step, needed in ((True, False), (False, True)):
        dialect = Dialect(INDEX, two_step, think="required")
        missing = ("no thinking where it is required",)
        assert dialect.parse(dialect.print_answer("1")).problems == missing
        assert dialect.parse(dialect.print_answer("1", "hm")).problems == ()
        # the call turn is the second of its round only with two steps
        assert dialect.parse(dialect.print_calls([call("add")])).problems == (missing if needed else ())
    assert Dialect(INDEX, think="required").parse(TWO.print_selection(["add"])).problems == missing
    assert Dialect(think="never").parse(PLAIN.print_answer("1", "hm")).problems == (
        "thinking where there must be none",
    )


def test_mode_and_thinking_agree() -> None:
    assert PLAIN.parse("[think]\n<think>hm</think><answer>1</answer>").mode == "think"
    assert PLAIN.parse("[think]<answer>1</answer>").problems == ("no thinking where it is required",)
    assert PLAIN.parse("[no_think]<answer>1</answer>") == ParsedTurn(answer="1", mode="no_think")
    assert PLAIN.parse("[no_think]<think>x</think><answer>1</answer>").problems == (
        "thinking where there must be none",
    )


def test_printing_refuses_what_it_could_not_read_back() -> None:
    with pytest.raises(ValueError, match="the answer spells the control string '</answer>'"):
        PLAIN.print_answer("a </answer> b")
    with pytest.raises(ValueError, match="the thinking spells"):
        PLAIN.print_answer("a", "</think>")
    with pytest.raises(KeyError, match="'x' is not in the index"):
        TWO.print_calls([call("x")])


def test_document() -> None:
    tool = ToolSchema(
        name="a<<b",
        description="</tool_call>",
        parameters={"$defs": {}, "required": ["z"], "properties": {"z": {}, "y": {}}, "type": "object"},
    )
    assert print_document(tool) == (
        '{"name": "a\\u003c<b", "description": "\\u003c/tool_call>", "parameters": '
        '{"type": "object", "properties": {"z": {}, "y": {}}, "required": ["z"], "$defs": {}}}'
    )
    assert print_document(tool, ["description", "name"]).startswith('{"description": "\\u003c/tool_call>", "name"')
    with pytest.raises(KeyError):
        print_document(tool, ["source"])
