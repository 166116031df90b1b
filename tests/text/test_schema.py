import pytest
from pydantic import JsonValue

from tirkit.text.schema import canonical, validate_arguments, validate_schema
from tirkit.types import ToolCall, ToolSchema

PARAMETERS: dict[str, JsonValue] = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "unit": {"enum": ["C", "F"]}, "tags": {"type": "array"}},
    "required": ["n"],
}
TOOL = ToolSchema(name="t", parameters=PARAMETERS)


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        ({"n": 1}, ()),
        ({"n": 1.0, "unit": "C"}, ()),  # JSON Schema: a whole number is an integer
        ({"n": True}, ("n: True is not of type 'integer'",)),
        ({}, ("arguments: 'n' is a required property",)),
        ({"n": 1, "unit": "K"}, ("unit: 'K' is not one of ['C', 'F']",)),
        ({"n": 1, "x": 2}, ("arguments: Additional properties are not allowed ('x' was unexpected)",)),
        ({"n": "1", "tags": 3}, ("n: '1' is not of type 'integer'", "tags: 3 is not of type 'array'")),
    ],
)
def test_arguments(arguments: dict[str, JsonValue], problems: tuple[str, ...]) -> None:
    assert validate_arguments(TOOL, arguments) == problems


def test_a_schema_that_says_more_than_properties_is_left_open() -> None:
    for more in ({"additionalProperties": True}, {"anyOf": [{}]}):
        assert validate_arguments(ToolSchema(name="t", parameters=PARAMETERS | more), {"n": 1, "x": 2}) == ()
    assert validate_arguments(ToolSchema(name="t", parameters={"type": "object"}), {"x": 2}) == ()


def test_a_broken_schema_is_a_problem_not_a_crash() -> None:
    def problem(schema: dict[str, JsonValue]) -> str:
        tool = ToolSchema(name="t", parameters={"type": "object", "properties": {"x": schema}})
        return validate_arguments(tool, {"x": "1"})[0]

    assert "refers to 'https://example.org/none'" in problem({"$ref": "https://example.org/none"})
    assert "refers to '/$defs/none'" in problem({"$ref": "#/$defs/none"})
    assert "pattern that can't be read" in problem({"type": "string", "pattern": "("})
    endless = ToolSchema(name="t", parameters={"type": "object", "$ref": "#"})
    assert "nested too deep" in validate_arguments(endless, {"x": 1})[0]


def test_many_problems_are_cut_short() -> None:
    names = [f"p{i}" for i in range(9)]
    tool = ToolSchema(name="t", parameters={"type": "object", "required": names})
    assert validate_arguments(tool, {})[5:] == ("and 4 more",)


def test_schema() -> None:
    assert validate_schema(PARAMETERS) == ()
    assert validate_schema({"type": "object"}) == ()
    assert validate_schema({"type": "dict"}) == ("'type' must be 'object', not 'dict'",)
    assert validate_schema({}) == ("'type' must be 'object', not None",)
    bad: dict[str, JsonValue] = {"type": "object", "properties": {"x": {"type": "float"}}}
    assert validate_schema(bad)[0].startswith("properties.x.type: 'float' is not valid")
    assert validate_schema({"type": "object", "required": "x"})[0].startswith("required: ")


def equal(a: JsonValue, b: JsonValue) -> tuple[bool, bool]:
    one, other = (ToolCall(name="f", arguments={"x": value}) for value in (a, b))
    return canonical(one) == canonical(other), canonical(one, "lenient") == canonical(other, "lenient")


@pytest.mark.parametrize(
    ("a", "b", "strict", "lenient"),
    [
        (1, 1, True, True),
        (1, 1.0, False, True),
        (1, True, False, False),
        (1.0, True, False, False),
        (0, False, False, False),
        (1, "1", False, False),
        (" a", "a ", False, True),
        ([1, 2], [2, 1], False, False),
        ({"p": 1, "q": [" a"]}, {"q": ["a"], "p": 1.0}, False, True),
        ({"p": 1, "q": 2}, {"q": 2, "p": 1}, True, True),
        (None, "null", False, False),
        (0.5, 0.5, True, True),
    ],
)
def test_canonical(a: JsonValue, b: JsonValue, strict: bool, lenient: bool) -> None:
    assert equal(a, b) == (strict, lenient)


def test_canonical_tells_names_apart() -> None:
    assert canonical(ToolCall(name="f")) != canonical(ToolCall(name="g"))
