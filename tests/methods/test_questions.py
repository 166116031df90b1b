"""Questions for a catalogue: what is wanted, what templates make of it, what a teacher's answer is worth."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tirkit.methods.questions.check import Asked, Rejection, make_task
from tirkit.methods.questions.slots import Draft, Shares, Slot, draw_slots
from tirkit.methods.questions.teacher import PROMPT, PromptError, TeacherPrompt, read_drafts
from tirkit.methods.questions.templates import BARE, TRIES, drafts, telling_words
from tirkit.text.schema import validate_arguments
from tirkit.tools.runtime import PythonToolbox
from tirkit.types import Message, Task, ToolCall, ToolSchema

CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
WEATHER = ToolSchema(name="get_weather", description="Gives the weather of a city for some days.", parameters=CITY)
TIME = ToolSchema(name="now", description="Tells the time.")
ODD = ToolSchema(name="odd", parameters={"type": "object", "properties": {"x": {"type": "string", "pattern": "^#$"}}})
TOOLS = (WEATHER, TIME, *(ToolSchema(name=f"tool_{i}", description=f"Does number {i}.") for i in range(6)))


def slot(*tools: ToolSchema, difficulty: str = "easy") -> Slot:
    return Slot(1, difficulty, tools)  # type: ignore[arg-type]


def question(text: str) -> Task:
    return Task(id=text, prompt=(Message(role="user", content=text),))


def kept(
    draft: Draft, *tools: ToolSchema, toolbox: PythonToolbox | None = None, hard: bool = False
) -> Task | Rejection:
    return make_task(slot(*tools, difficulty="hard" if hard else "easy"), draft, "id", Asked(), toolbox)


def weather(question: str, name: str = "get_weather", **arguments: object) -> Draft:
    return Draft(question, (ToolCall.model_validate({"name": name, "arguments": arguments}),))


def test_every_tool_comes_first_before_one_comes_again_and_shares_are_kept() -> None:
    none = Shares(several=0, no_tool=0)
    first = [one.tools[0].name for batch in range(4) for one in draw_slots(TOOLS, batch, 4, 3, none)]
    assert sorted(first[:8]) == sorted(first[8:]) == sorted(tool.name for tool in TOOLS)
    assert first[:8] != first[8:]
    many = draw_slots(TOOLS, 0, 4000, 3, Shares(several=0.25, no_tool=0.15, hard=0.5))
    shapes, hard = Counter(one.shape for one in many), sum(one.difficulty == "hard" for one in many)
    # Standard deviations over 4,000 draws: 27, 23, 32; four of them are allowed.
    assert abs(shapes["several"] - 1000) < 110
    assert abs(shapes["no_tool"] - 600) < 92
    assert abs(hard - 2000) < 128
    assert all(len(set(one.names)) == 2 for one in many if one.shape == "several")
    assert many[:5] == draw_slots(TOOLS, 0, 5, 3, Shares(several=0.25, no_tool=0.15, hard=0.5))
    assert {one.shape for one in draw_slots([TIME], 0, 50, 0, Shares(several=1, no_tool=0))} == {"single"}


def test_templates_say_every_value_and_fit_the_schema() -> None:
    for number, one in enumerate(draw_slots(TOOLS, 0, 200, 1, Shares())):
        made = list(drafts(one, seed=1, batch=0))
        assert len(made) == TRIES
        assert made == list(drafts(one, seed=1, batch=0))
        for draft in made:
            assert [call.name for call in draft.calls] == list(one.names)
            assert draft.reply or one.tools
            for tool, call in zip(one.tools, draft.calls, strict=True):
                assert validate_arguments(tool, call.arguments) == ()
                assert all(str(value) in draft.question for value in call.arguments.values())
            task = make_task(one, draft, str(number), Asked())
            assert isinstance(task, Task)
            assert task.kind == f"{one.shape}_{one.difficulty}"
    assert len(list(drafts(slot(ODD), 0, 0))) < TRIES  # a pattern that no made-up word has


def test_short_questions_hold_a_word_that_tells_the_tool_from_the_others() -> None:
    day = {"type": "object", "properties": {"day": {"enum": ["Monday", "Sunday"]}}, "required": ["day"]}
    wind = ToolSchema(name="get_wind", description="Tells the speed of the wind at noon.", parameters=day)
    heat = ToolSchema(name="get_heat", description="Tells the temperature at noon.", parameters=day)
    # "noon" is both tools'; the first words, what is done and not with what, count for neither.
    telling = telling_words([wind, heat])
    assert telling == {"get_wind": {"speed", "wind"}, "get_heat": {"temperature", "heat"}}
    asked = [d.question.lower() for n in range(120) for d in drafts(slot(heat, difficulty="hard"), 0, n, telling)]
    short = [text for text in asked if text.startswith(("what is", "how is", "tell me", "do you know"))]
    assert len(short) > 50
    assert all(telling["get_heat"] & set(text.strip(".?!").replace(",", "").split()) for text in short)
    assert any("noon" in text for text in short)
    bare = {f"what is the temperature {say.format(value=day)}?" for say in BARE for day in ("monday", "sunday")}
    assert bare & set(short)


def test_a_value_that_two_parameters_may_have_is_said_with_its_name() -> None:
    route = {"type": "object", "properties": {"start": {"type": "string"}, "end": {"type": "string"}}}
    tool = ToolSchema(name="route", description="Finds the way.", parameters=route | {"required": ["start", "end"]})
    for number in range(40):
        for draft in drafts(slot(tool, difficulty="hard"), 0, number):
            assert "start" in draft.question.lower()
            assert "end" in draft.question.lower()


def test_lists_are_said_without_brackets_and_orders_as_orders() -> None:
    many = {"type": "object", "properties": {"towns": {"type": "array", "items": {"enum": ["Bonn", "Rome"]}}}}
    tool = ToolSchema(name="compare", description="Looks up the largest town (of several).", parameters=many)
    asked = [d.question for n in range(40) for d in drafts(slot(tool), 0, n)]
    assert any("Can you look up the largest town" in text for text in asked)
    assert any("Bonn and Rome" in text or "Rome and Bonn" in text for text in asked)
    assert any(text.startswith("Please look up the largest town") and text[-1] in ".?!" for text in asked)  # no towns
    assert not any("  " in text or " ." in text for text in asked)


def test_each_flaw_is_told_by_its_name() -> None:
    good = weather("Oslo, 3 days please", city="Oslo", days=3)
    assert isinstance(kept(good, WEATHER), Task)
    assert kept(weather(" ", city="Oslo"), WEATHER) is Rejection.EMPTY
    assert kept(Draft("hello"), WEATHER) is Rejection.EMPTY
    assert kept(Draft("hello", reply="hi"), WEATHER) is Rejection.OTHER_TOOLS
    assert kept(good, TIME) is Rejection.OTHER_TOOLS
    assert kept(good, WEATHER, TIME) is Rejection.OTHER_TOOLS
    assert kept(weather("Oslo", city="Oslo", days="3"), WEATHER) is Rejection.ARGUMENTS
    assert kept(weather("Oslo", city="Oslo", unit="C"), WEATHER) is Rejection.ARGUMENTS
    assert kept(weather("get_weather of Oslo", city="Oslo"), WEATHER) is Rejection.NAMED
    assert isinstance(kept(Draft("What is it now?", (ToolCall(name="now"),)), TIME), Task)  # a plain word is no name
    assert kept(weather("Oslo", city="Oslo", days=3), WEATHER) is Rejection.UNSAID
    assert isinstance(kept(weather("the capital of Norway", city="Oslo"), WEATHER, hard=True), Task)
    assert kept(Draft("hello", reply="<answer>hi"), *()) is Rejection.CONTROL
    plain = kept(Draft("hello", reply="hi"))
    assert isinstance(plain, Task)
    assert (plain.gold_rounds, plain.answer, plain.calls_only, plain.kind) == ((), "hi", True, "no_tool_easy")


def test_near_duplicates_are_found_by_words_by_thirteen_and_by_threes() -> None:
    asked = Asked()
    asked.add(question("a b c d e f g h i j"))
    assert asked.resembles(question("A, b c d e f g h i j!"))
    # 8 three-word sequences each. The last word another: 7 of 9 are shared, .78; the last two: 6 of 10.
    assert asked.resembles(question("a b c d e f g h i x"))
    assert not asked.resembles(question("a b c d e f g h x y"))
    long = " ".join(f"w{i}" for i in range(13))
    asked.add(question(f"{long} {' '.join('pqrstuvxyz')}"))
    assert asked.resembles(question(f"{' '.join('klmnopqrst')} {long}"))  # 11 of about 30 sequences, but 13 in a row
    assert not asked.resembles(question(f"{' '.join('klmnopqrst')} {long[:-4]}"))
    assert not Asked().resembles(question("hi"))


def test_what_may_be_run_is_run_and_its_result_is_the_answer() -> None:
    calls: list[str] = []

    def get_weather(city: str, days: int = 1) -> str:
        calls.append(city)
        answers = {"Oslo": "21 C", "Rome": "a\nb", "Bonn": f"{len(calls)} C"}
        return answers[city]

    box = PythonToolbox({"get_weather": get_weather}, [WEATHER, TIME], isolation="inline")
    oslo = kept(weather("Oslo", city="Oslo"), WEATHER, toolbox=box)
    assert isinstance(oslo, Task)
    assert (oslo.answer, oslo.calls_only) == ("21 C", False)
    for city in ("Rome", "Bonn"):  # not a line; another result each time
        task = kept(weather(city, city=city), WEATHER, toolbox=box)
        assert isinstance(task, Task)
        assert (task.answer, task.calls_only) == (None, True)
    assert kept(weather("Nowhere", city="Nowhere"), WEATHER, toolbox=box) is Rejection.FAILED
    made_up = Draft("Bofu", (ToolCall(name="get_weather", arguments={"city": "Bofu"}),), made_up=True)
    task = kept(made_up, WEATHER, toolbox=box)
    assert isinstance(task, Task)
    assert task.calls_only
    calls.clear()
    both = Draft("Oslo, and the time", (ToolCall(name="get_weather", arguments={"city": "Oslo"}), ToolCall(name="now")))
    assert isinstance(kept(both, WEATHER, TIME, toolbox=box), Task)
    assert calls == []  # one of the two cannot be run: neither is


def test_a_teacher_is_read_line_by_line() -> None:
    slots = (slot(WEATHER), Slot(2, "hard", ()), Slot(3, "easy", (TIME,)), Slot(4, "easy", (TIME,)))
    call = {"name": "get_weather", "arguments": {"city": "Oslo"}}
    lines = [
        "<think>",
        json.dumps({"number": 4, "question": "only a thought", "calls": []}),
        "</think>",
        "```json",
        json.dumps({"number": 1, "question": "q", "calls": [call]}),
        json.dumps({"number": 1, "question": "again", "calls": [call]}),  # twice
        json.dumps({"number": 9, "question": "q", "calls": []}),  # never asked for
        json.dumps({"number": 2, "question": "q", "calls": [], "reply": "r"}),
        json.dumps({"number": 3, "question": "q"}),  # no calls
        json.dumps({"number": True, "question": "q", "calls": []}),
        json.dumps({"number": 3, "question": "q", "calls": [{"tool": "now"}]}),
        "Here you are!",
        '{"number": 3, "question": "cut o',
        "```",
    ]
    found, refused = read_drafts("\n".join(lines), slots)
    assert found == {1: weather("q", city="Oslo"), 2: Draft("q", (), "r")}
    assert refused == {Rejection.UNREADABLE: 5, Rejection.UNASKED: 2}
    assert read_drafts("", slots) == ({}, {Rejection.MISSING: 4})


def test_the_teachers_prompt_can_be_read_and_replaced(tmp_path: Path) -> None:
    text = TeacherPrompt().text([slot(WEATHER, TIME), Slot(2, "hard", ())])
    assert text.count('{"name": "get_weather", "description"') == 1
    assert "1. easy, needs one call of get_weather and one call of now\n2. hard, needs no tool" in text
    own = tmp_path / "own.jinja"
    own.write_text("{{ slots[0].names[0] if slots[0].names else 'none' }} of {{ documents | length }}")
    assert TeacherPrompt(own).text([slot(WEATHER)]) == "get_weather of 1"
    for broken in ("{{ tools }}", "{% if %}"):
        own.write_text(broken)
        with pytest.raises(PromptError, match=r"own\.jinja cannot be used"):
            TeacherPrompt(own)
    with pytest.raises(PromptError, match="FileNotFoundError"):
        TeacherPrompt(tmp_path / "none")
    assert PROMPT.name == "questions.jinja"
