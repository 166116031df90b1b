import pytest
from hypothesis import given
from hypothesis import strategies as st

from tirkit.text.index import build_index
from tirkit.types import ToolSchema

KINDS = ("atomic", "name", "numeric", "hierarchical")


def tools(*names: str) -> list[ToolSchema]:
    return [ToolSchema(name=name) for name in names]


def test_four_kinds() -> None:
    four = tools("d", "b", "a", "c")
    assert build_index(four).surfaces == (("d", "<<d>>"), ("b", "<<b>>"), ("a", "<<a>>"), ("c", "<<c>>"))
    assert build_index(four).tokens == ("<<d>>", "<<b>>", "<<a>>", "<<c>>")
    assert build_index(four, "name").surface("a") == "a"
    assert build_index(tools(*map(str, range(11))), "numeric").surface("7") == "07"
    # sorted a b c d in groups of ceil(sqrt(4)) = 2: a, b in group 0, c, d in group 1
    tree = build_index(four, "hierarchical")
    assert [tree.surface(name) for name in "abcd"] == ["<<c0>><<m0>>", "<<c0>><<m1>>", "<<c1>><<m0>>", "<<c1>><<m1>>"]
    assert tree.tokens == ("<<c0>>", "<<c1>>", "<<m0>>", "<<m1>>")
    assert build_index(four, "name").tokens == build_index(four, "numeric").tokens == ()


def test_hierarchy_of_real_size_needs_few_tokens() -> None:
    # 4076 tools: ceil(sqrt(4076)) = 64 members, ceil(4076 / 64) = 64 groups
    index = build_index(tools(*(f"tool {i}" for i in range(4076))), "hierarchical")
    assert len(index.tokens) == 128
    assert len({surface for _, surface in index.surfaces}) == 4076


def test_surfaces_need_no_escape_and_stay_unique() -> None:
    index = build_index(tools('say "hi"', "say _hi_", "a\nb", "</tool_call>"))
    assert index.surface('say "hi"') == "<<say _hi__2>>"  # "say _hi_" keeps the name it came with
    assert index.surface("say _hi_") == "<<say _hi_>>"
    assert index.surface("a\nb") == "<<a_b>>"
    assert index.surface("</tool_call>") == "<<_/tool_call_>>"


def test_unknown_and_double_names() -> None:
    index = build_index(tools("a"))
    assert index.name("a") is None
    with pytest.raises(KeyError, match="'b' is not in the index"):
        index.surface("b")
    with pytest.raises(ValueError, match="these are not: a"):
        build_index(tools("a", "b", "a"))


def test_no_tools() -> None:
    for kind in KINDS:
        assert build_index([], kind).names == ()


@given(st.lists(st.text(min_size=1, max_size=6), unique=True, max_size=8), st.sampled_from(KINDS))
def test_surface_and_name_are_inverse(names: list[str], kind: str) -> None:
    index = build_index(tools(*names), kind)  # type: ignore[arg-type]
    assert index.names == tuple(names)
    assert [index.name(index.surface(name)) for name in names] == names
