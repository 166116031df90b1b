"""A trained model as a plain Hugging Face folder, which needs no tirkit to be loaded, asked and served.

config.json, *.safetensors      as the run left them (LoRA is merged there)
tokenizer*, chat_template.jinja the tokenizer; its template speaks the run's protocol (see protocol.jinja)
generation_config.json          greedy, as the model was measured; ids that end a turn; tokens a turn may have
tools.json                      the catalogue: how each tool is written, its document, tokens that are retired
tirkit_tool_parser.py           reads calls in vLLM
tirkit_client.py                a conversation with real tools, through any server that reads calls
README.md, run.json             the model card, and all settings of the run
*.gguf                          if asked for: all of it but the tools, for llama.cpp (see gguf_file.py)
"""

import copy
import json
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import JsonValue

from tirkit.serving.gguf_file import Converter
from tirkit.store import save_folder
from tirkit.text.control import CONTROL_STRINGS, TURN_END, TURN_START
from tirkit.text.dialects import Dialect, print_document
from tirkit.text.index import ToolIndex
from tirkit.text.render import Renderer
from tirkit.types import Message, ToolCall, ToolSchema, UserError

if TYPE_CHECKING:  # importing transformers takes seconds
    from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent
SELECTION = "tool_documents"
TOOL_FILE = "tools.json"
RUN_FILE = "run.json"
GAP = "\u200b"  # what keeps outside text from spelling a token: a space of no width
MARK = "\ufdd0"
COPIED = ("config.json", "*.safetensors", "*.safetensors.index.json")
STANDALONE = {"vllm_parser.py": "tirkit_tool_parser.py", "client.py": "tirkit_client.py"}
BRACKETS = {"atomic": ("<<", ">>"), "name": ("", "")}


class ExportError(UserError):
    """A model cannot be exported; the message says why and what to do."""


@dataclass(frozen=True)
class Exportable:
    """What is exported: the folder of a trained model, its tokenizer, what it writes, its tools by name.

    max_new_tokens: of one turn, as it was measured. name: of the GGUF file.
    """

    model: Path
    tokenizer: "PreTrainedTokenizerFast"
    renderer: Renderer
    dialect: Dialect
    tools: Mapping[str, ToolSchema]
    max_new_tokens: int
    name: str = "model"


def export_folder(
    exportable: Exportable, out: Path, files: Mapping[str, str], converter: Converter | None = None
) -> None:
    """Write the folder, with further text `files` in it such as README.md, and a GGUF file by `converter`; it is absent
    or whole.

    Raises ExportError where `out` exists, where the model has no weights to copy, or where the chat template could not
    be made to give the ids that the run's rollouts were made of; GgufError where the GGUF file cannot be made.
    """
    if out.exists():
        raise ExportError(f"{out} is there already; give another --out folder, or remove it")
    if not list(exportable.model.glob("*.safetensors")):
        raise ExportError(f"{exportable.model} has no weights (*.safetensors); finish the run with `tirkit run` first")
    tools = tool_file(exportable)
    tokenizer = serving_tokenizer(exportable, tools["selection"])
    check_template(exportable, tokenizer, tools["selection"])

    def write(folder: Path) -> None:
        for pattern in COPIED:
            for file in exportable.model.glob(pattern):
                shutil.copyfile(file, folder / file.name)
        tokenizer.save_pretrained(folder)
        generation_config(exportable).save_pretrained(folder)
        (folder / TOOL_FILE).write_text(_tool_lines(tools), encoding="utf-8")
        for source, name in STANDALONE.items():
            shutil.copyfile(HERE / source, folder / name)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        if converter is not None:
            file = folder / converter.file_name(exportable.name)
            converter.convert(folder, file, tokenizer, exportable.renderer.end_of_turn_id)

    out.parent.mkdir(parents=True, exist_ok=True)
    save_folder(out, write)


def generation_config(exportable: Exportable) -> Any:
    """Greedy; a turn ends at the renderer's end of turn and at the tokenizer's eos."""
    from transformers import GenerationConfig

    renderer, eos = exportable.renderer, exportable.tokenizer.eos_token_id
    ends = dict.fromkeys((renderer.end_of_turn_id, *([] if eos is None else [eos])))
    return GenerationConfig(
        do_sample=False,
        eos_token_id=list(ends),
        pad_token_id=renderer.pad_id,
        max_new_tokens=exportable.max_new_tokens,
    )


def tool_file(exportable: Exportable) -> dict[str, Any]:
    """What tools.json holds: `index` (the kind, "none" without one), `selection` (the function that stands for one,
    "" where the model selects nothing), the tools with their tokens and documents, and `retired` tokens: those of the
    vocabulary that are no tool's any more, and must never be another's.
    """
    index, names = exportable.dialect.index, set(exportable.tools)
    selection = SELECTION
    while selection in names:
        selection += "_"
    tools: list[dict[str, JsonValue]] = [
        {"token": index.surface(tool.name) if index else tool.name} | json.loads(print_document(tool))
        for tool in exportable.tools.values()
    ]
    return {
        "index": index.kind if index else "none",
        "selection": selection if exportable.dialect.selects else "",
        "tools": tools,
        "retired": retired(exportable.tokenizer.get_added_vocab(), exportable.dialect),
    }


def _tool_lines(file: Mapping[str, Any]) -> str:
    """tools.json with one tool a line, so that two of them can be compared."""
    head = json.dumps({key: value for key, value in file.items() if key != "tools"}, ensure_ascii=False)
    lines = ",\n".join(json.dumps(tool, ensure_ascii=False) for tool in file["tools"])
    return f'{head[:-1]}, "tools": [\n{lines}\n]}}\n'


def read_tools(folder: Path) -> tuple[ToolIndex | None, dict[str, ToolSchema]]:
    """What tools.json of an exported folder says: how tools are written (None: by plain name), and the tools by name.

    An origin in it is not taken over: an export may be somebody else's, and an origin names what to run. Raises
    ExportError where it cannot be read.
    """
    path = folder / TOOL_FILE
    try:
        file = json.loads(path.read_text(encoding="utf-8"))
        surfaces = tuple((tool["name"], tool.pop("token")) for tool in file["tools"])
        tools = {tool["name"]: ToolSchema.model_validate(tool | {"origin": None}) for tool in file["tools"]}
        kind = file["index"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} is not what an export leaves ({error!r}); export the run again") from error
    tokens = dict.fromkeys(token for _, surface in surfaces for token in re.findall("<<.*?>>", surface))
    return (None if kind == "none" else ToolIndex(kind, surfaces, tuple(tokens))), tools


def retired(added: Collection[str], dialect: Dialect) -> list[str]:
    """Tool tokens among the `added` ones that are no tool's, in alphabetical order."""
    known = set(dialect.index.tokens) if dialect.index else set[str]()
    return sorted(token for token in added if token.startswith("<<") and token.endswith(">>") and token not in known)


def unbreakable(added: Collection[str]) -> tuple[str, ...]:
    """Those of the `added` tokens that the chat template cannot keep outside text from spelling."""
    return tuple(sorted(token for token in added if len(token) < 2))


def serving_tokenizer(exportable: Exportable, selection: str) -> "PreTrainedTokenizerFast":
    """A copy of the tokenizer, with its own template as a part of one that speaks the protocol of the dialect.

    In it outside text cannot spell an added token: it gets a space of no width after the spelling's first character.
    (`Renderer` keeps such text as it is; for all other text the ids are equal.)
    """
    tokenizer = copy.deepcopy(exportable.tokenizer)  # the renderer goes on with the template as it was
    tokenizer.chat_template = _template(tokenizer, exportable.renderer, exportable.dialect, selection)
    return tokenizer


def _template(tokenizer: "PreTrainedTokenizerFast", renderer: Renderer, dialect: Dialect, selection: str) -> str:
    added = tokenizer.get_added_vocab()
    odd = unbreakable(added)
    index, end = dialect.index, renderer.decode_all([renderer.end_of_turn_id])
    kind = index.kind if index else "none"
    left, right = BRACKETS.get(kind, ("", ""))
    surfaces = {name: surface for name, surface in index.surfaces if surface != left + name + right} if index else {}
    # Every `<<` is broken: twice, as in `<<<` the second pair is only seen when the first is.
    pairs = ["<<", "<<"] if any(token.startswith("<<") for token in added) else []
    ends = (TURN_START, TURN_END, end, tokenizer.eos_token, tokenizer.pad_token)
    values: dict[str, Any] = {
        "kind": kind,
        "brackets": [left, right],
        "surfaces": surfaces,
        "selection": selection,
        "marks": [*pairs, *sorted(token for token in added if not token.startswith("<<") and token not in odd)],
        "structure": sorted(token for token in added if token in ends),
        "spellings": ["<<", "<<", *CONTROL_STRINGS],
        "gap": GAP,
        "mark": MARK,
    }
    sets = [f"{{%- set {name} = {_literal(value)} -%}}" for name, value in values.items()]
    # Documents of tools that are in the weights must not stand in the prompt.
    sets.append("{%- set shown = none -%}" if index else "{%- set shown = tools -%}")
    own = str(tokenizer.chat_template).removesuffix("\n")  # jinja drops it at a template's end, but not in a macro
    base = f"{{%- macro base(messages, tools, add_generation_prompt) %}}{own}{{%- endmacro -%}}"
    return "\n".join([*sets, base, (HERE / "protocol.jinja").read_text(encoding="utf-8")])


def _literal(value: Any) -> str:
    """Jinja's strings take the escapes of JSON's, but not a surrogate pair: other letters stand as they are."""
    return json.dumps(value, ensure_ascii=False)


def check_template(exportable: Exportable, tokenizer: "PreTrainedTokenizerFast", selection: str) -> None:
    """ExportError where `tokenizer`'s template and the renderer disagree about a conversation."""
    renderer, dialect = exportable.renderer, exportable.dialect
    call = ToolCall(name=next(iter(exportable.tools)), arguments={"text": 'Is 1 < 2?\n"é"', "n": [1, None, True]})
    document = Message(role="tool", content=print_document(exportable.tools[call.name]))
    result, prompt = Message(role="tool", content="21 C"), [Message(role="user", content="How warm is it?")]
    turns = [(dialect.print_calls([call], "I ask."), [result]), (dialect.print_answer("21 C"), prompt)]
    said: list[dict[str, Any]] = [{"role": "assistant", "reasoning_content": "I ask.", "tool_calls": _calls(call)}]
    if dialect.selects:
        turns[0] = dialect.print_calls([call]), [result]
        turns.insert(0, (dialect.print_selection([call.name], "I ask."), [document]))
        asked = ToolCall(name=selection, arguments={"names": [call.name]})
        said = [said[0] | {"tool_calls": _calls(asked)}, {"role": "assistant", "tool_calls": _calls(call)}]
    said.append({"role": "assistant", "content": "21 C"})
    ids, own, api = renderer.prompt_ids(prompt), [*prompt], [message.model_dump() for message in prompt]
    for (text, replies), message in zip(turns, said, strict=True):
        ids += [*renderer.completion_ids(text), *renderer.reply_ids(replies)]
        own += [Message(role="assistant", content=text), *replies]
        api += [message, *(reply.model_dump() for reply in replies)]
    for form in ([message.model_dump() for message in own], api):
        if template_ids(tokenizer, form) != ids:
            raise ExportError(
                "the tokenizer's chat template cannot be made to give the ids that the model was trained on; serve it "
                "with `tirkit serve`, and report the base model's name"
            )


def _calls(call: ToolCall) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": call.name, "arguments": call.arguments}}]


def template_ids(tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """What plain transformers makes of `messages`, up to where the assistant begins to write."""
    apply = cast(Any, tokenizer).apply_chat_template
    return apply(list(messages), tools=None, add_generation_prompt=True, return_dict=False)
