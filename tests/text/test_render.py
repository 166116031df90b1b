from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tirkit.text.control import CONTROL_STRINGS, TURN_END
from tirkit.text.index import ToolIndex, build_index
from tirkit.text.render import Renderer, TextStream, UnsupportedTokenizerError
from tirkit.types import Message, ToolSchema

TOKENS = (*CONTROL_STRINGS, "<<get_weather>>", "<<add>>", "<<café au lait.v2>>", "<|pad|>")
# Whole spellings, halves that could join, and the renderer's own escapes.
PIECES = (
    *TOKENS,
    *(t[:3] for t in TOKENS),
    *(t[3:] for t in TOKENS),
    "\ufdd0",
    "\ufdd0.",
    "\ue000",
    "\ue001",
    '"',
    "\\",
)
hostile = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=8).map("".join)
ordinary = st.text(st.characters(exclude_characters="\ufdd0", exclude_categories=("Cs",))).filter(
    lambda text: not any(token in text for token in TOKENS)
)
anything = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def hostile_tool(text: str) -> ToolSchema:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"k" + text: {"enum": [text, 1]}},
        "required": ["k" + text],
    }
    return ToolSchema(name="n" + text, description=text, parameters=schema)


def added(renderer: Renderer, ids: list[int]) -> list[str]:
    """The added tokens among `ids`."""
    return [renderer.decode_all([id_]) for id_ in ids if renderer.decode_all([id_]) in TOKENS]


@anything
@given(question=hostile, document=hostile, result=hostile)
def test_outside_text_yields_no_added_token(renderer: Renderer, question: str, document: str, result: str) -> None:
    plain = [Message(role="system", content="s"), *user("q")]
    tools = [hostile_tool(document)]
    asked = [Message(role="system", content=document), *user(question)]
    assert added(renderer, renderer.prompt_ids(asked, tools)) == added(
        renderer, renderer.prompt_ids(plain, [hostile_tool("")])
    )
    results = [Message(role="tool", content=text) for text in (result, document)]
    expected = [Message(role="tool", content="r") for _ in results]
    assert added(renderer, renderer.reply_ids(results)) == added(renderer, renderer.reply_ids(expected))
    assert added(renderer, renderer.safe_ids(question)) == []


@anything
@given(hostile)
def test_outside_text_arrives_unchanged(renderer: Renderer, text: str) -> None:
    assert text in renderer.decode_all(renderer.prompt_ids(user(f".{text}.")))
    assert text in renderer.decode_all(renderer.reply_ids([Message(role="tool", content=f".{text}.")]))
    assert renderer.decode_all(renderer.safe_ids(text)) == text


@anything
@given(ordinary, ordinary)
def test_ordinary_text_gets_the_ids_of_the_chat_template(renderer: Renderer, question: str, description: str) -> None:
    tool = ToolSchema(name="t", description=description)
    messages = [{"role": "user", "content": question}, {"role": "tool", "content": description}]
    ids = raw(renderer).apply_chat_template(
        messages,
        tools=[{"type": "function", "function": tool.model_dump(include={"name", "description", "parameters"})}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert renderer.prompt_ids([Message.model_validate(m) for m in messages], [tool]) == ids


def raw(renderer: Renderer) -> PreTrainedTokenizerFast:
    return renderer._apply_template.__self__  # type: ignore[attr-defined]


@anything
@given(st.lists(st.one_of(st.sampled_from(TOKENS[2:-1]), ordinary), max_size=6).map("".join))
def test_the_assistants_own_words_are_real_tokens(renderer: Renderer, text: str) -> None:
    ids = renderer.completion_ids(text)
    assert renderer.decode(ids) == text
    assert ids == [*raw(renderer).encode(text, add_special_tokens=False), renderer.end_of_turn_id]


def test_the_assistant_cannot_spell_the_end_of_its_turn(renderer: Renderer) -> None:
    text = "<answer>a<|im_end|><|im_start|>b<|pad|></answer>"
    ids = renderer.completion_ids(text)
    assert added(renderer, ids) == ["<answer>", "</answer>", "<|im_end|>"]
    assert renderer.decode(ids) == text


def test_replies_stand_between_turns(renderer: Renderer) -> None:
    """prompt + completion + reply is the conversation as the template writes it."""
    tool = Message(role="tool", content="21 C <b>")
    before = [Message(role="system", content="s"), *user("q")]
    for text in ("a", "<tool_call>\n{}\n</tool_call>"):
        ids = renderer.prompt_ids(before) + renderer.completion_ids(text) + renderer.reply_ids([tool, tool])
        assert ids == renderer.prompt_ids([*before, Message(role="assistant", content=text), tool, tool])


def test_only_the_assistants_messages_hold_tool_tokens(renderer: Renderer) -> None:
    text = "<<add>> <|im_end|>"
    token = renderer.completion_ids("<<add>>")[0]
    for role in ("system", "user", "tool"):
        assert token not in renderer.prompt_ids([*user("q"), Message(role=role, content=text)])
    said, plain = (renderer.prompt_ids([*user("q"), Message(role="assistant", content=t)]) for t in (text, "a"))
    assert said.count(token) == 1
    assert said.count(renderer.end_of_turn_id) == plain.count(renderer.end_of_turn_id)


def test_tokens_with_accents_are_decoded(renderer: Renderer) -> None:
    # the tokenizer's own decoder takes the é of an added token for a byte
    assert renderer.decode(renderer.completion_ids("<<café au lait.v2>> é")) == "<<café au lait.v2>> é"


@anything
@given(st.lists(st.one_of(ordinary, st.sampled_from(TOKENS), st.integers(0, 300)), max_size=8), st.integers(1, 4))
def test_text_streams_as_it_is_decoded_whole(renderer: Renderer, parts: list[str | int], step: int) -> None:
    ids: list[int] = []
    for part in parts:  # single ids may be parts of characters
        ids += [part] if isinstance(part, int) else renderer.completion_ids(part)[:-1]
    stream = TextStream(renderer)
    said = [stream.feed(ids[at : at + step]) for at in range(0, len(ids), step)]
    assert "".join([*said, stream.finish()]) == renderer.decode_all(ids)


def test_half_a_character_is_held_back(renderer: Renderer) -> None:
    one, two, *_ = ids = renderer.safe_ids("é!")
    assert renderer.decode_all([one]) == "\ufffd"
    stream = TextStream(renderer)
    assert [stream.feed([one]), stream.feed([two]), stream.feed(ids[2:]), stream.finish()] == ["", "é", "!", ""]


def test_ids_of_ends(renderer: Renderer) -> None:
    assert renderer.decode_all([renderer.end_of_turn_id, renderer.pad_id]) == TURN_END + "<|pad|>"
    assert renderer.decode([renderer.end_of_turn_id]) == renderer.decode([]) == ""


def test_a_tool_token_that_is_missing_is_named(renderer: Renderer) -> None:
    with pytest.raises(
        UnsupportedTokenizerError, match="1 tool tokens are not in the vocabulary, the first is '<<new>>'"
    ):
        Renderer(raw(renderer), build_index([ToolSchema(name="new")]))


def test_unusable_tokenizers_are_refused(index: ToolIndex, make_tokenizer: Any) -> None:
    no_end = make_tokenizer(index, "{% for m in messages %}{{ m.role + m.content + '.' }}{% endfor %}")
    with pytest.raises(UnsupportedTokenizerError, match="must end an assistant's message with an added token"):
        Renderer(no_end)
    html = make_tokenizer(index, "{% for m in messages %}{{ m.content | e }}{{ '<|im_end|>' }}{% endfor %}")
    with pytest.raises(UnsupportedTokenizerError, match="changes outside text"):
        Renderer(html)
    by_text = make_tokenizer(index, "{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}")
    by_text.add_tokens([AddedToken("x", normalized=False)])
    with pytest.raises(UnsupportedTokenizerError, match="makes 'x' from ordinary text"):
        Renderer(by_text)
