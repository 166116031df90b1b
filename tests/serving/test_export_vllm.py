"""The parser of an exported folder in a stand-in for vLLM, and a whole conversation through it with the client.

`parse` and `stream` below ask as vLLM's `DelegatingParser` (vllm.parser.abstract_parser) asks a parser that is
`engine_based_streaming`; where vLLM is installed, it asks itself.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import OpenAI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tirkit.rollout.loop import RolloutSettings, rollout
from tirkit.rollout.policy import RolloutRequest, ScriptedPolicy, oracle
from tirkit.serving.export import Exportable, export_folder
from tirkit.text.dialects import Dialect
from tirkit.tools.runtime import PythonToolbox
from tirkit.types import Message, Task, ToolCall, ToolSchema


def load(path: Path) -> ModuleType:
    """As vLLM's import_from_path does."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STAND_IN: Any = load(Path(__file__).with_name("vllm_stand_in.py"))
ChatCompletionRequest = STAND_IN.ChatCompletionRequest


def parse(parser: Any, text: str, request: Any) -> tuple[str | None, list[tuple[str, str]]]:
    """A whole answer, as DelegatingParser._extract_tool_calls reads it: (content, calls)."""
    forced = request.tool_choice != "auto"
    assert not (forced and parser.supports_required_and_named)
    info = parser.extract_tool_calls(text, request=request)
    if info.tools_called:
        content = info.content if (info.content or "").strip() else None
        return content, [(call.function.name, call.function.arguments) for call in info.tool_calls]
    return (info.content or None) if parser.engine_based_streaming else text, []


def stream(parser: Any, deltas: list[str], request: Any) -> tuple[str | None, list[tuple[str, str]]]:
    """The same as DelegatingParser.parse_delta sends it, put together as a client does."""
    content, calls, previous = "", {}, ""
    for number, text in enumerate(deltas):
        # An engine-based parser is given no text but the new one.
        current = text if parser.engine_based_streaming else previous + text
        message = parser.extract_tool_calls_streaming(previous, current, text, [], [], [], request)
        previous = "" if parser.engine_based_streaming else current
        messages = [message]
        if number == len(deltas) - 1:
            if message and message.tool_calls:
                last = message.tool_calls[-1].function
                last.arguments = (last.arguments or "") + parser.get_remaining_unstreamed_args()
            messages.append(parser.finish_streaming())
        for one in messages:
            content += (one.content or "") if one else ""
            for call in one.tool_calls if one else ():
                name, arguments = calls.get(call.index, ("", ""))
                calls[call.index] = name + (call.function.name or ""), arguments + (call.function.arguments or "")
    assert parser.current_tool_id == len(calls) - 1
    return content or None, [calls[index] for index in sorted(calls)]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in, importable."""
    manager = type("ToolParserManager", (STAND_IN.ToolParserManager,), {"tool_parsers": {}})
    kinds = ("FunctionCall", "DeltaFunctionCall", "DeltaToolCall", "DeltaMessage", "ExtractedToolCallInformation")
    api = {"ToolCall": STAND_IN.VllmToolCall} | {name: getattr(STAND_IN, name) for name in kinds}
    modules = {
        "vllm.tool_parsers.abstract_tool_parser": {"ToolParser": STAND_IN.ToolParser, "ToolParserManager": manager},
        "vllm.entrypoints.generate.base.protocol": api,
    }
    for path, names in modules.items():
        parts = path.split(".")
        for depth in range(1, len(parts) + 1):
            name = ".".join(parts[:depth])
            module = sys.modules.get(name) or ModuleType(name)
            monkeypatch.setitem(sys.modules, name, module)
            if depth > 1:
                setattr(sys.modules[".".join(parts[: depth - 1])], parts[depth - 1], module)
        vars(sys.modules[path]).update(names)
    return manager


NUMBERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
TOOLS = (
    ToolSchema(name="add", description="Add two integers.", parameters=NUMBERS),
    ToolSchema(name='mul"é"', description="Multiply two integers.", parameters=NUMBERS),
)
REQUEST = ChatCompletionRequest(messages=[], tools=[{}], tool_choice="auto")


@pytest.fixture(scope="module")
def tiny(make_tiny: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    return make_tiny(TOOLS)


@pytest.fixture(scope="module")
def folder(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    tiny.model.save_pretrained(root / "model")
    dialect = Dialect(tiny.index)
    export_folder(Exportable(root / "model", tiny.tokenizer, tiny.renderer, dialect, tiny.tools, 16), root / "out", {})
    return root / "out"


@pytest.fixture
def parser(vllm: Any, folder: Path, tiny: SimpleNamespace) -> Callable[[], Any]:
    """Makes parsers of the exported folder, one a request."""
    load(folder / "tirkit_tool_parser.py")
    return lambda: vllm.tool_parsers["tirkit"](tiny.tokenizer, None)


ADD, MUL = '{"name": "<<add>>", "arguments": {"a": 2}}', '{"name": "<<mul_é_>>", "arguments": {"b": "\\u003cé"}}'
THOUGHT = "<think>\nhm\n</think>\n"
TURNS: dict[str, tuple[str | None, list[tuple[str, str]]]] = {
    f"<tool_call>\n{ADD}\n{MUL}\n</tool_call>": (None, [("add", '{"a": 2}'), ('mul"é"', '{"b": "<é"}')]),
    f"{THOUGHT}<tool_call>\n{ADD}\n</tool_call>": (THOUGHT, [("add", '{"a": 2}')]),
    "<tool_token>\n<<add>>\n<<mul_é_>>\n</tool_token>": (
        None,
        [("tool_documents", '{"names": ["add", "mul\\"é\\""]}')],
    ),
    f"{THOUGHT}<answer>21 < 22</answer>": (f"{THOUGHT}21 < 22", []),
    "<answer>a</answer": ("a</answer", []),
    "plain <b> text <": ("plain <b> text <", []),
    "": (None, []),
    # What cannot be read is passed on.
    **{
        text: (text, [])
        for text in (
            "<tool_call>\n{bad}\n</tool_call>",
            f'<tool_call>\n{ADD}\n{{"name": "add", "arguments": {{}}}}\n</tool_call>',
            '<tool_call>\n{"name": "<<add>>", "arguments": {"a": 1, "a": 2}}\n</tool_call>',
            '<tool_call>\n{"name": "<<add>>", "arguments": {"a": NaN}}\n</tool_call>',
            '<tool_call>\n{"name": "<<add>>", "arguments": {"a": 1e999}}\n</tool_call>',
            '<tool_call>\n{"name": "<<add>>", "arguments": {"a": "\\ud800"}}\n</tool_call>',
            '<tool_call>\n{"name": "<<add>>", "arguments": []}\n</tool_call>',
            '<tool_call>\n{"name": "<<add>>"}\n</tool_call>',
            "<tool_call>\n[1]\n</tool_call>",
            f"<tool_call>\n{ADD}",
            "<tool_token>\n<<add>>\n<<add>>\n</tool_token>",
            "<tool_token>\n<<gone>>\n</tool_token>",
            "<tool_token>\n</tool_token>",
            f"<tool_call>\n{'[' * 100_000}\n</tool_call>",
        )
    },
}


@pytest.mark.parametrize("text", TURNS, ids=lambda text: text[:60])
def test_a_turn_is_read_whole_and_in_pieces(parser: Callable[[], Any], text: str) -> None:
    expected = TURNS[text]
    assert parse(parser(), text, REQUEST) == expected
    for size in (1, 2, 7, 64, len(text) + 1):
        pieces = [text[at : at + size] for at in range(0, len(text), size)] or [""]
        if len(pieces) < 2000:
            assert stream(parser(), pieces, REQUEST) == expected


@pytest.fixture
def server(folder: Path, tiny: SimpleNamespace) -> Callable[[], Any]:
    """Makes what vLLM's server asks, one a request: its own parser around ours, loaded as `vllm serve` loads it."""
    reason = "vLLM is not installed"
    manager: Any = pytest.importorskip("vllm.parser.parser_manager", reason=reason, exc_type=ImportError).ParserManager
    parsers: Any = importlib.import_module("vllm.tool_parsers").ToolParserManager
    parsers.import_tool_parser(str(folder / "tirkit_tool_parser.py"))
    made = manager.get_parser(tool_parser_name="tirkit", enable_auto_tools=True, tokenizer=tiny.tokenizer)
    return lambda: made(tiny.tokenizer, None)


def real_request(choice: Any = "auto") -> Any:
    kind: Any = importlib.import_module("vllm.entrypoints.openai.chat_completion.protocol").ChatCompletionRequest
    tools = [{"type": "function", "function": {"name": name}} for name in ("add", "tool_documents")]
    return kind(messages=[{"role": "user", "content": "q"}], model="m", tools=tools, tool_choice=choice)


NAMED = {"type": "function", "function": {"name": "add"}}


@pytest.mark.parametrize("choice", ["auto", "required", NAMED], ids=str)
def test_vllm_itself_reads_turns_with_the_parser(server: Callable[[], Any], choice: Any) -> None:
    """Against vLLM's own classes, which need no GPU to be imported; the stand-in above is to be as they are."""
    for text, (content, calls) in TURNS.items():
        request = server().adjust_request(real_request(choice))
        assert (request.skip_special_tokens, request.structured_outputs) == (False, None)
        thought, said, made = server().parse(text, request, enable_auto_tools=True)
        assert (thought, said) == (None, content if calls or (content or "").strip() else None), text
        assert [(call.name, call.arguments) for call in made or ()] == calls
        parser, size, streamed, ids = server(), max(1, len(text) // 50), "", []
        pieces = [text[at : at + size] for at in range(0, len(text), size)] or [""]
        sent: dict[int, tuple[str, str]] = {}
        for number, piece in enumerate(pieces):
            delta = parser.parse_delta(piece, [0], request, prompt_token_ids=[0], finished=number == len(pieces) - 1)
            streamed += (delta.content or "") if delta else ""
            for call in delta.tool_calls if delta else ():
                ids += [call.id] if call.id else []
                name, arguments = sent.get(call.index, ("", ""))
                sent[call.index] = name + (call.function.name or ""), arguments + (call.function.arguments or "")
        assert (streamed or None, [sent[index] for index in range(len(sent))]) == (content, calls), text
        assert len(set(ids)) == len(calls)


TAGS = tuple(f"<{slash}{tag}>" for tag in ("tool_call", "tool_token", "answer", "think") for slash in ("", "/"))
PARTS = st.one_of(st.sampled_from(["\n", " ", "<", ADD, MUL, "<<add>>", *TAGS]), st.text(max_size=2))


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=60)
@given(st.lists(PARTS, max_size=9), st.data())
def test_calls_are_those_the_dialect_reads(
    parser: Callable[[], Any], tiny: SimpleNamespace, parts: list[str], data: st.DataObject
) -> None:
    """Whatever was written: nothing is raised, streamed or not is the same, well-formed turns are read alike."""
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    content, calls = parse(parser(), text, REQUEST)
    streamed, same = stream(parser(), pieces, REQUEST)
    assert (content or "").strip() == (streamed or "").strip()
    assert calls == same
    parsed = Dialect(tiny.index).parse(text)
    if not parsed.problems:
        read = [ToolCall(name=name, arguments=json.loads(arguments)) for name, arguments in calls]
        selected = [ToolCall(name="tool_documents", arguments={"names": list(parsed.selected)})]
        assert read == (selected if parsed.selected else list(parsed.calls))
        if parsed.answer:
            assert (content or "").strip().endswith(parsed.answer)


def test_tokens_that_a_byte_level_decoder_garbles_are_known(parser: Callable[[], Any], tiny: SimpleNamespace) -> None:
    token = "<<mul_é_>>"
    garbled = tiny.tokenizer.decode(tiny.tokenizer.convert_tokens_to_ids([token]))
    assert garbled != token
    text = f'<tool_call>\n{{"name": "{garbled}", "arguments": {{}}}}\n</tool_call>'
    assert parse(parser(), text, REQUEST) == (None, [('mul"é"', "{}")])


def test_requests_keep_their_tags_and_are_never_forced(parser: Callable[[], Any]) -> None:
    forced = REQUEST.model_copy(update={"tool_choice": "required"})
    changed = parser().adjust_request(forced)
    assert (changed.skip_special_tokens, changed.spaces_between_special_tokens) == (False, False)
    assert changed.model_extra == {}
    assert parse(parser(), f"<tool_call>\n{ADD}\n</tool_call>", changed) == (None, [("add", '{"a": 2}')])
    plain = ChatCompletionRequest(messages=[])
    assert parser().adjust_request(plain).skip_special_tokens is None


TASK = Task(
    id="t",
    prompt=(Message(role="user", content="What is 2 + 3, times 4?"),),
    gold_rounds=(
        (ToolCall(name="add", arguments={"a": 2, "b": 3}), ToolCall(name="add", arguments={"a": 0, "b": 0})),
        (ToolCall(name='mul"é"', arguments={"a": 5, "b": 4}),),
    ),
    answer="20",
    thoughts=("add first", "then multiply", "done"),
)
FUNCTIONS: dict[str, Callable[..., str]] = {"add": lambda a, b: str(a + b), 'mul"é"': lambda a, b: str(a * b)}


class Scripted:
    """A server that plays a trajectory's turns and keeps the prompts it would have answered."""

    def __init__(self, turns: list[str], parser: Callable[[], Any], tokenizer: Any) -> None:
        self.turns, self.parser, self.tokenizer = turns, parser, tokenizer
        self.prompts: list[list[int]] = []

    async def answer(self, request: Request) -> JSONResponse:
        body = await request.json()
        asked = ChatCompletionRequest(messages=body["messages"], tools=body["tools"], tool_choice="auto")
        for message in asked.messages:  # vLLM gives templates the arguments as objects
            for call in message.get("tool_calls", ()):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        self.prompts.append(
            self.tokenizer.apply_chat_template(
                asked.messages, tools=asked.tools, add_generation_prompt=True, return_dict=False
            )
        )
        text = self.turns[sum(message["role"] == "assistant" for message in asked.messages)]
        content, calls = parse(self.parser(), text, asked)
        functions = [
            {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(calls)
        ]
        message = {"role": "assistant", "content": content, "tool_calls": functions or None}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
        return JSONResponse({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})


@pytest.fixture
def client_module(folder: Path) -> Any:
    return load(folder / "tirkit_client.py")


def test_a_conversation_through_the_parser_sees_the_tokens_of_a_rollout(
    parser: Callable[[], Any],
    folder: Path,
    tiny: SimpleNamespace,
    client_module: Any,
    serve: Callable[[Any], AbstractContextManager[str]],
) -> None:
    from transformers import AutoTokenizer

    dialect = Dialect(tiny.index)
    trajectory = rollout(
        [RolloutRequest(TASK)],
        ScriptedPolicy(oracle(dialect), tiny.renderer),
        tiny.renderer,
        dialect,
        tiny.tools,
        PythonToolbox(FUNCTIONS, TOOLS, isolation="inline"),
        RolloutSettings(workers=0),
    )[0]
    assert trajectory.answer == "20"
    server = Scripted([turn.text for turn in trajectory.turns], parser, AutoTokenizer.from_pretrained(folder))
    with serve(Starlette(routes=[Route("/v1/chat/completions", server.answer, methods=["POST"])])) as url:
        messages = client_module.converse(
            OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0),
            "m",
            [{"role": "user", "content": TASK.prompt[0].content}],
            client_module.Catalogue(folder / "tools.json"),
            lambda name, arguments: FUNCTIONS[name](**arguments),
        )
    assert messages[-1]["content"] == "<think>\ndone\n</think>\n20"
    seen: list[list[int]] = []
    ids = list(trajectory.prompt_ids)
    for turn in trajectory.turns:
        seen.append(list(ids))
        ids += [*turn.ids, *turn.reply_ids]
    assert len(seen) == 5  # select, call, select, call, answer
    assert server.prompts == seen
