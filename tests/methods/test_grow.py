"""Tools added later: tokens stay with their tools, retired ones with none; what is trained and replayed."""

from collections import Counter

import pytest

from tirkit.methods.tinr.corpus import CorpusSettings
from tirkit.methods.tinr.grow import compare_catalogues, grow_index, growth_corpus, trained_tokens
from tirkit.text.dialects import Dialect
from tirkit.text.index import build_index
from tirkit.types import ToolSchema


def tool(name: str, description: str = "d") -> ToolSchema:
    return ToolSchema(name=name, description=f"{name} does {description}")


OLD = [tool(name) for name in ("a", "b", "c", "d")]
NEW = [tool("e"), tool("b", "other"), tool("d"), tool("a").model_copy(update={"source": "elsewhere"})]
SETTINGS = CorpusSettings(memorise=3, recall=1, views=2, pseudo_calls=2)  # 8 examples a tool


def test_a_change_is_told_by_name_and_document() -> None:
    change = compare_catalogues(OLD, NEW)
    names = [[one.name for one in part] for part in (change.added, change.changed, change.removed, change.kept)]
    assert names == [["e"], ["b"], ["c"], ["d", "a"]]
    assert change.changed[0].description == "b does other"
    assert [one.name for one in change.learned] == ["e", "b"]


def test_known_tools_keep_their_tokens_whatever_comes() -> None:
    # `x<` is written x_; a tool that is really called x_ would have had that, had it been there first.
    index = build_index([tool("x<"), tool("a")])
    assert index.surfaces == (("x<", "<<x_>>"), ("a", "<<a>>"))
    grown, retired = grow_index(index, [tool("x_"), tool("a"), tool("x<")])
    assert grown.surfaces == (("x_", "<<x__2>>"), ("a", "<<a>>"), ("x<", "<<x_>>"))
    assert grown.tokens == ("<<x__2>>", "<<a>>", "<<x_>>")
    assert retired == ()


def test_a_retired_token_is_never_given_again() -> None:
    index, retired = grow_index(build_index(OLD), [tool("a")])
    assert retired == ("<<b>>", "<<c>>", "<<d>>")
    again, still = grow_index(index, [tool("a"), tool("b")], retired)  # b comes back: nobody knows as what
    assert again.surfaces == (("a", "<<a>>"), ("b", "<<b_2>>"))
    assert still == retired


def test_names_grow_without_tokens_and_places_do_not_grow() -> None:
    index, retired = grow_index(build_index(OLD, "name"), NEW)
    assert (index.surface("e"), index.tokens, retired) == ("e", (), ())
    for kind in ("numeric", "hierarchical"):
        with pytest.raises(ValueError, match=f"{kind} indexing cannot grow"):
            grow_index(build_index(OLD, kind), NEW)


def test_new_and_changed_tools_are_learned_whole_and_kept_ones_replayed_in_turn() -> None:
    change = compare_catalogues(OLD, NEW)
    index, _ = grow_index(build_index(OLD), NEW)
    assert trained_tokens(index, change) == ("<<e>>", "<<b>>")
    examples = growth_corpus(change, Dialect(index), SETTINGS, replay=0.5)
    # 2 tools · 8 examples are new; half as many, 8, are replayed, 4 of each of the 2 kept tools.
    assert len(examples) == 16 + 8
    replayed = [example.trajectory.task_id for example in examples[16:]]  # kind/tool, and number
    assert Counter(task.split("/")[1] for task in replayed) == {"a": 4, "d": 4}
    assert len(set(replayed)) == 8  # another example of the tool round after round
    assert growth_corpus(change, Dialect(index), SETTINGS, replay=0.5) == examples
    assert growth_corpus(change, Dialect(index), SETTINGS, replay=0.0) == examples[:16]
    assert len(growth_corpus(change, Dialect(index), SETTINGS, replay=2.0)) == 16 + 32  # more than there are: again
    with pytest.raises(ValueError, match="replay = -1"):
        growth_corpus(change, Dialect(index), SETTINGS, replay=-1)
    assert len(growth_corpus(compare_catalogues([], NEW), Dialect(build_index(NEW)), SETTINGS)) == 32  # none kept
