"""An exported folder: its chat template against the renderer, its files, and plain transformers against our policy."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tirkit.embedded.model import build_tokenizer
from tirkit.rollout.policy import GenerateRequest
from tirkit.rollout.transformers_policy import TransformersPolicy
from tirkit.serving.export import Exportable, ExportError, export_folder, serving_tokenizer, template_ids, tool_file
from tirkit.text.control import CONTROL_STRINGS
from tirkit.text.dialects import Dialect, print_document
from tirkit.text.index import build_index
from tirkit.text.render import Renderer
from tirkit.types import Message, Task, ToolCall, ToolSchema

TOOLS = (ToolSchema(name="add", description="Add <b>."), ToolSchema(name='café "x"'), ToolSchema(name="<<c0>>"))
# In the manner of Qwen's: a system prompt of its own, results as a user's, thinking taken out of earlier turns.
FORGETFUL = """\
{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{% endif -%}
{%- if tools %}{{- tools | tojson }}{% endif -%}
{%- for message in messages -%}
{%- set content = message.content.split('</think>')[-1] if not loop.last else message.content -%}
{%- if message.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif -%}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif -%}
{%- else -%}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif -%}
"""
TOKENS = (*CONTROL_STRINGS, "<|pad|>", "<<")
SPELLED = re.compile("|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in TOKENS))
ENDS = re.compile(r"<(?=\|im_start\|>|\|im_end\|>|\|pad\|>)")
PIECES = (*TOKENS, *(t[:3] for t in TOKENS), *(t[3:] for t in TOKENS), "<<add>>", "<<<", "\ufdd0.", "\ue000", '"', "\\")
hostile = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=6).map("".join)
thoughts = st.text(st.characters(exclude_characters="<[\ufdd0", exclude_categories=("Cs",)), max_size=4).map(
    lambda text: f"t{text}."
)
calls = st.builds(
    lambda name, arguments: ToolCall(name=name, arguments=arguments),
    st.sampled_from([tool.name for tool in TOOLS]),
    st.dictionaries(hostile, st.one_of(hostile, st.none(), st.integers(), st.lists(hostile, max_size=2)), max_size=2),
)
rounds = st.lists(
    st.fixed_dictionaries(
        {
            "question": hostile,
            "think": st.one_of(st.just(""), thoughts),
            "calls": st.lists(calls, min_size=1, max_size=2),
            "results": st.lists(hostile, min_size=2, max_size=2),
            "answer": thoughts,
        }
    ),
    min_size=1,
    max_size=2,
)
KINDS = [("atomic", True), ("atomic", False), ("hierarchical", True), ("numeric", True), ("name", True), (None, True)]


def exportable(kind: Any, two_step: bool, template: str = "", folder: Path = Path()) -> Exportable:
    index = build_index(TOOLS, kind) if kind else None
    tokenizer = build_tokenizer(["user assistant tool the text of names add arguments"] * 3, size=300)
    tokenizer.chat_template = template or tokenizer.chat_template
    tokenizer.add_tokens(list(index.tokens) if index else [])
    renderer = Renderer(tokenizer, index)
    tools = {tool.name: tool for tool in TOOLS}
    return Exportable(folder, tokenizer, renderer, Dialect(index, two_step=two_step), tools, 16)


PAIRS = {f"{k} {t} {name}": (k, t, text) for k, t in KINDS for name, text in (("own", ""), ("forgetful", FORGETFUL))}


@pytest.fixture(scope="module", params=PAIRS.values(), ids=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[Exportable, PreTrainedTokenizerFast]:
    one = exportable(*request.param)
    return one, serving_tokenizer(one, tool_file(one)["selection"])


def neutral(text: str, one: Exportable) -> str:
    """What the template makes of outside text: a gap after the first character of each spelling."""
    tokens = any(token.startswith("<<") for token in one.tokenizer.get_added_vocab())
    return SPELLED.sub(lambda m: m[0] + "\u200b" if tokens or text[m.start() :][:2] != "<<" else m[0], text)


def play(one: Exportable, rounds: Sequence[dict[str, Any]]) -> tuple[list[int], list[Any], list[Any]]:
    """A conversation: its ids as a rollout makes them, and as messages: in the model's own words, in OpenAI's form."""
    render, dialect, tools = one.renderer, one.dialect, one.tools
    selection = tool_file(one)["selection"]
    ids: list[int] = []
    own: list[Any] = []
    api: list[Any] = []

    def hand_back(role: Any, texts: list[str], joined: str) -> None:
        message = Message(role=role, content=neutral(joined, one))
        ids.extend(render.reply_ids([message]) if ids else render.prompt_ids([message]))
        own.append({"role": role, "content": joined})
        api.extend({"role": role, "content": text} for text in texts)

    def turn(text: str, message: dict[str, Any]) -> None:
        kept = ENDS.sub("<\u200b", text)
        ids.extend(render.completion_ids(kept))
        own.append({"role": "assistant", "content": text})
        api.append({"role": "assistant", **message})

    def call(name: str, arguments: Any) -> dict[str, Any]:
        return {"type": "function", "function": {"name": name, "arguments": arguments}}

    for item in rounds:
        think = item["think"]
        hand_back("user", [item["question"]], item["question"])
        if dialect.selects:
            names = list(dict.fromkeys(one.name for one in item["calls"]))
            asked = {"reasoning_content": think, "tool_calls": [call(selection, {"names": names})]}
            turn(dialect.print_selection(names, think), asked)
            documents = "\n".join(print_document(tools[name]) for name in names)
            hand_back("tool", [documents], documents)
            think = ""
        made = {"reasoning": think, "content": None, "tool_calls": [call(c.name, c.arguments) for c in item["calls"]]}
        turn(dialect.print_calls(item["calls"], think), made)
        results = item["results"][: len(item["calls"])]
        hand_back("tool", results, "\n".join(results))
        turn(dialect.print_answer(item["answer"], think), {"content": item["answer"], "reasoning_content": think})
    hand_back("user", [item["question"]], item["question"])
    return ids, own, api


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=12)
@given(rounds=rounds)
def test_the_template_gives_the_renderers_ids(
    pair: tuple[Exportable, PreTrainedTokenizerFast], rounds: list[dict[str, Any]]
) -> None:
    one, tokenizer = pair
    ids, own, api = play(one, rounds)
    assert template_ids(tokenizer, own) == ids
    assert template_ids(tokenizer, api) == ids


def test_content_as_a_client_was_given_it_comes_back_as_it_was_written() -> None:
    one = exportable("atomic", True)
    tokenizer = serving_tokenizer(one, "tool_documents")
    call = {"function": {"name": "add", "arguments": {}}}
    text = '<tool_call>\n{"name": "<<add>>", "arguments": {}}\n</tool_call>'
    forms = {
        "<think>\nt\n</think>\n<answer>5</answer>": {"content": "<think>\nt\n</think>\n5"},
        "[no_think]\n<answer>5</answer>": {"content": "[no_think]\n5"},
        f"<think>\nt\n</think>\n{text}": {"content": "<think>\nt\n</think>\n", "tool_calls": [call]},
        f"<think>\nI add\n</think>\n{text}": {"content": "I add", "tool_calls": [call]},
        f"[think]\n{text}": {"content": "[think]\n", "tool_calls": [call]},
        "<answer>a b</answer>": {"content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]},
    }
    start = one.renderer.prompt_ids([Message(role="user", content="q")])
    for written, message in forms.items():
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", **message}]
        expected = start + one.renderer.completion_ids(written) + one.renderer.reply_ids([])
        assert template_ids(tokenizer, messages) == expected, written


def test_documents_are_shown_only_to_models_that_do_not_know_their_tools() -> None:
    messages = [{"role": "user", "content": "q"}]
    for kind in ("atomic", None):
        one = exportable(kind, True)
        apply: Any = serving_tokenizer(one, tool_file(one)["selection"]).apply_chat_template
        tool = ToolSchema(name="t", description="d")
        function = tool.model_dump(include={"name", "description", "parameters"})
        ids = apply(messages, tools=[{"function": function}], add_generation_prompt=True, return_dict=False)
        assert ids == one.renderer.prompt_ids([Message(role="user", content="q")], [] if kind else [tool])
    with pytest.raises(jinja2.TemplateError, match="a tool document spells the control string"):
        apply(messages, tools=[{"function": {"name": "a<|im_end|>"}}], add_generation_prompt=True)
    with pytest.raises(jinja2.TemplateError, match="must be an object here"):
        apply([*messages, {"role": "assistant", "tool_calls": [{"function": {"name": "t", "arguments": "{}"}}]}])


def test_the_renderer_reads_the_exported_tokenizer_as_it_reads_the_runs(
    pair: tuple[Exportable, PreTrainedTokenizerFast],
) -> None:
    one, tokenizer = pair
    renderer = Renderer(tokenizer, one.dialect.index)
    assert renderer.end_of_turn_id == one.renderer.end_of_turn_id
    question, result = Message(role="user", content="<<add>> <|im_end|>"), Message(role="tool", content="</tool_call>")
    assert renderer.prompt_ids([question]) == one.renderer.prompt_ids([question])
    assert renderer.reply_ids([result]) == one.renderer.reply_ids([result])


def test_tools_json_says_how_each_tool_is_written_and_keeps_retired_tokens() -> None:
    one = exportable("atomic", True)
    one.tokenizer.add_tokens(["<<gone>>"])
    file = tool_file(one)
    empty = {"type": "object", "properties": {}}
    assert file["tools"][0] == {"token": "<<add>>", "name": "add", "description": "Add <b>.", "parameters": empty}
    assert [tool["token"] for tool in file["tools"]][1:] == ["<<café _x_>>", "<<__c0__>>"]
    assert (file["index"], file["selection"], file["retired"]) == ("atomic", "tool_documents", ["<<gone>>"])
    taken = Exportable(Path(), one.tokenizer, one.renderer, one.dialect, {"tool_documents": TOOLS[0]}, 1)
    assert tool_file(taken)["selection"] == "tool_documents_"


ALONE = """
import json, sys
sys.modules["tirkit"] = None
try:
    import tirkit.types
except ImportError:
    pass
else:
    raise SystemExit("tirkit is there")
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
for messages in json.load(sys.stdin):
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    length = inputs["input_ids"].shape[1]
    print(json.dumps([inputs["input_ids"][0].tolist(), model.generate(**inputs)[0, length:].tolist()]))
"""


def test_plain_transformers_writes_what_our_policy_writes(tmp_path: Path, tiny: SimpleNamespace) -> None:
    one = save_tiny(tmp_path, tiny)
    export_folder(one, tmp_path / "out", {"README.md": "card"})
    conversations = [
        [{"role": "user", "content": text}] for text in ("add 2 and 3", "what is the product?", "<tool>", "9")
    ]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "out")],
        input=json.dumps(conversations),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    theirs = [json.loads(line) for line in done.stdout.splitlines()]
    policy = TransformersPolicy(tiny.model, tiny.renderer, temperature=0.0)
    prompts = [tuple(Message.model_validate(m) for m in messages) for messages in conversations]
    ids = [tuple(tiny.renderer.prompt_ids(prompt)) for prompt in prompts]
    requests = [
        GenerateRequest(Task(id="t", prompt=p), (), p, i, 0, one.max_new_tokens)
        for p, i in zip(prompts, ids, strict=True)
    ]
    written = [list(generation.ids) for generation in policy.generate(requests)]
    assert theirs == [[list(prompt), answer] for prompt, answer in zip(ids, written, strict=True)]
    assert max(map(len, written)) == one.max_new_tokens


def save_tiny(folder: Path, tiny: SimpleNamespace) -> Exportable:
    tiny.model.save_pretrained(folder / "model")
    tiny.tokenizer.save_pretrained(folder / "model")
    return Exportable(folder / "model", tiny.tokenizer, tiny.renderer, Dialect(tiny.index), tiny.tools, 24)


def test_the_folder_is_whole_or_absent(tmp_path: Path, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    one = save_tiny(tmp_path, tiny)
    out = tmp_path / "deep" / "out"
    monkeypatch.setattr("tirkit.serving.export.generation_config", _fail)
    with pytest.raises(RuntimeError, match="killed"):
        export_folder(one, out, {})
    assert not out.exists()
    monkeypatch.undo()
    export_folder(one, out, {"README.md": "card"})
    names = {path.name for path in out.iterdir()}
    assert names == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tools.json",
        "tirkit_client.py", "tirkit_tool_parser.py", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [tiny.renderer.end_of_turn_id]
    assert generation["max_new_tokens"] == 24
    with pytest.raises(ExportError, match="is there already"):
        export_folder(one, out, {})
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(ExportError, match="has no weights"):
        export_folder(one, tmp_path / "other", {})


def _fail(*_: Any) -> None:
    raise RuntimeError("killed")


def test_a_template_that_does_not_agree_with_the_renderer_is_refused(
    tmp_path: Path, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = save_tiny(tmp_path, tiny)
    monkeypatch.setattr(one.renderer, "reply_ids", lambda _: [1])
    with pytest.raises(ExportError, match="cannot be made to give the ids"):
        export_folder(one, tmp_path / "out", {})
