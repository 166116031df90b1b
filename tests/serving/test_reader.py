"""An answer read while it is written: the same whatever the pieces, and no block's inside as text."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tirkit.serving.api import Choice
from tirkit.serving.reader import Acts, PlainReader, Reader, Stops
from tirkit.text.control import CONTROL_STRINGS
from tirkit.text.dialects import Dialect
from tirkit.text.index import build_index
from tirkit.types import ToolCall, ToolSchema

DIALECT = Dialect(build_index([ToolSchema(name="add"), ToolSchema(name="mul")]))
ADD = '<tool_call>\n{"name": "<<add>>", "arguments": {"a": 1}}\n</tool_call>'
CALL = ToolCall(name="add", arguments={"a": 1})


def read(turns: list[list[str]], stops: tuple[str, ...] = (), plain: bool = False) -> tuple[Choice, list[Acts]]:
    """What comes of turns that are written piece by piece."""
    reader, choice, acts = (PlainReader if plain else Reader)(DIALECT, stops), Choice(), []
    for pieces in turns:
        for piece in pieces:
            choice.add(reader.feed(piece))
            if reader.stopped:
                return choice, acts
        delta, done = reader.end_turn()
        choice.add(delta)
        acts.append(done)
    choice.add(reader.finish())
    return choice, acts


@pytest.mark.parametrize(
    ("text", "content", "reasoning", "acts"),
    [
        ("<answer> 21 C </answer>", "21 C", "", Acts()),
        ("[think]\n<think>\nhm  hm\n</think>\n<answer>5</answer>", "5", "hm  hm", Acts()),
        ("plain, 1 < 2", "plain, 1 < 2", "", Acts()),
        ("  plain\n<ans", "plain\n<ans", "", Acts()),
        (f"<think>a</think>\n{ADD}", "", "a", Acts(calls=(CALL,))),
        (f"Let me see.\n{ADD}\n", "Let me see.", "", Acts(calls=(CALL,))),
        ("<tool_token>\n<<add>>\n<<mul>>\n</tool_token>", "", "", Acts(selected=("add", "mul"))),
        ("<tool_token>\n<<sub>>\n</tool_token>", "", "", Acts(problem="unknown tool '<<sub>>'")),
        ("<tool_call>\n{", "", "", Acts(problem="block <tool_call> is not closed")),
        (f"<answer>5{ADD}", "5", "", Acts(calls=(CALL,))),
        ("<think>not closed", "", "not closed", Acts()),
        ("5</answer><|im_start|>6", "56", "", Acts()),
    ],
)  # fmt: skip
def test_what_is_text_and_what_is_not(text: str, content: str, reasoning: str, acts: Acts) -> None:
    for pieces in ([text], list(text)):
        choice, done = read([pieces])
        assert (choice.content, choice.reasoning, done) == (content, reasoning, [acts])


def test_thoughts_of_several_turns_are_lines() -> None:
    choice, _ = read([["<think> a </think><tool_token>\n<<add>>\n</tool_token>"], [f"<think>b </think>{ADD}"]])
    assert choice.reasoning == "a\nb"


PARTS = st.sampled_from([*CONTROL_STRINGS, "\n", " ", "<", "<<add>>", "<tool", "secret", "é", '{"name": ', "[t"])


@settings(deadline=None)
@given(st.lists(PARTS, max_size=12), st.data())
def test_pieces_change_nothing(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    stops = tuple(data.draw(st.lists(st.text("secrt <", min_size=1, max_size=4), max_size=2)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    for plain in (False, True):
        assert read([pieces], stops, plain)[0] == read([[text]], stops, plain)[0]
        assert read([list(text)], stops, plain)[0] == read([[text]], stops, plain)[0]
    if not stops:
        assert read([pieces]) == read([[text]])


@settings(deadline=None)
@given(st.lists(PARTS, max_size=12))
def test_the_inside_of_a_block_is_never_text(parts: list[str]) -> None:
    inside = "".join(part for part in parts if part != "</tool_call>")
    choice, _ = read([["before<tool_call>", *inside, "</tool_call>", "after"]])
    assert choice.content == "beforeafter"


def test_a_stop_string_ends_the_text_before_it() -> None:
    assert read([["a b", "c d"]], ("bc",))[0].content == "a "
    assert read([["<answer>a bc", "d</answer>"]], ("bc",))[0].content == "a "
    # The first that is complete counts, the longest of those that end together.
    stops = Stops(["abc", "b", "ab"])
    assert [stops.feed("xa"), stops.feed("bc"), stops.hit, stops.finish()] == ["x", "", True, ""]
    stops = Stops(["abc"])
    assert [stops.feed("xab"), stops.finish(), stops.hit] == ["x", "ab", False]
    # What is thought after it, in the same piece, is not told either.
    assert read([["abc<think>more"]], ("b",))[0].reasoning == ""
    # Calls hold no stop strings: they are no text.
    assert read([[ADD]], ("add",))[1] == [Acts(calls=(CALL,))]
