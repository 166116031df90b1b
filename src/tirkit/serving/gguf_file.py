"""An exported folder as one GGUF file, by llama.cpp's own converter, and a check that its tokens came through.

llama.cpp's converter has the last word on names and tensors. It is given a copy of the tokenizer's files, in which

- tokens that the model writes (tools, tags) are no special ones: llama.cpp would not print them;
- they count as normalised: the converter sends others through the decoder, which garbles letters such as é;
- the token that ends a turn is the end of the text, and nothing is put before the prompt that the template has not.
"""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tirkit.text.control import CONTROL_STRINGS, TURN_END, TURN_START
from tirkit.types import UserError

if TYPE_CHECKING:  # importing transformers takes seconds
    from transformers import PreTrainedTokenizerFast

GgufType = Literal["f32", "f16", "bf16", "q8_0"]
TYPES: tuple[str, ...] = get_args(GgufType)
SCRIPT = "convert_hf_to_gguf.py"
RUNNER = Path(__file__).with_name("gguf_runner.py")
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # token types of the GGUF format
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_DIGITS = {"type": "Digits", "individual_digits": True}
# What tokenizer.json says of cutting text into words → the name of the same rule in llama.cpp.
PRE_TOKENIZERS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"type": "Sequence", "pretokenizers": [_DIGITS, _BYTES]}, "smollm"),
    (_BYTES, "gpt-2"),
)


class GgufError(UserError):
    """No GGUF file can be made, or not one that means the same; the message says why and what to do."""


@dataclass(frozen=True)
class Converter:
    """llama.cpp's converter: its script, and the number type of the matrices it is to write."""

    script: Path
    type: GgufType

    @classmethod
    def find(cls, path: Path, type: str) -> "Converter":
        """The converter of the llama.cpp checkout `path`, or the script `path` itself. GgufError where it can't run."""
        script = path / SCRIPT if path.is_dir() else path
        if not script.is_file():
            raise GgufError(f"there is no {SCRIPT} in {path}; give a checkout of llama.cpp, or the script itself")
        if type not in TYPES:
            raise GgufError(f"a GGUF file of type {type!r} can't be made; choose one of {', '.join(TYPES)}")
        missing = [name for name in ("gguf", "sentencepiece") if importlib.util.find_spec(name) is None]
        if missing:
            raise GgufError(f"llama.cpp's converter needs {' and '.join(missing)}: pip install 'tirkit[gguf]'")
        return cls(script.resolve(), type)  # type: ignore[arg-type]

    def file_name(self, name: str) -> str:
        """How the file of the model `name` is called."""
        safe = re.sub(r"[^\w.-]", "_", name)
        return f"{safe}-{self.type}.gguf"

    def convert(self, folder: Path, file: Path, tokenizer: "PreTrainedTokenizerFast", end_of_turn_id: int) -> None:
        """Write the exported `folder` to `file` and check it. GgufError where either fails; `file` is then absent."""
        with tempfile.TemporaryDirectory(prefix="tirkit-gguf-") as stage:
            stage_folder(folder, Path(stage), tokenizer, end_of_turn_id)
            pre = pre_tokenizer(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
            given = [self.script, pre, stage, "--outfile", file, "--outtype", self.type, "--model-name", file.stem]
            done = subprocess.run(
                [sys.executable, RUNNER, *given], capture_output=True, text=True, errors="replace", check=False
            )
        try:
            if done.returncode != 0 or not file.is_file():
                said = "\n".join(done.stderr.strip().splitlines()[-8:])
                raise GgufError(f"{self.script} failed (exit {done.returncode}); it said at last:\n{said}")
            check_file(file, folder, tokenizer, end_of_turn_id)
        except GgufError:
            file.unlink(missing_ok=True)
            raise


def pre_tokenizer(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for the rule by which a tokenizer.json cuts text into words; "" where we know none.

    llama.cpp knows a tokenizer by the ids it gives one text, so it never knows one that was trained afresh, though it
    may well know its rule.
    """
    model = tokenizer["model"]
    odd = ("continuing_subword_prefix", "end_of_word_suffix", "unk_token", "byte_fallback", "ignore_merges", "dropout")
    if model["type"] != "BPE" or any(model.get(key) for key in odd) or tokenizer.get("normalizer"):
        return ""
    rule = _without(tokenizer.get("pre_tokenizer"), "trim_offsets")  # offsets are no one's concern here
    return next((name for known, name in PRE_TOKENIZERS if known == rule), "")


def _without(value: Any, key: str) -> Any:
    if isinstance(value, list):
        return [_without(item, key) for item in value]
    return {k: _without(v, key) for k, v in value.items() if k != key} if isinstance(value, dict) else value


def written(added: dict[str, int]) -> set[str]:
    """Those of the `added` tokens that a model writes within its turns: tools and tags."""
    tags = set(CONTROL_STRINGS) - {TURN_START, TURN_END}
    return {token for token in added if token in tags or (token.startswith("<<") and token.endswith(">>"))}


def stage_folder(folder: Path, stage: Path, tokenizer: "PreTrainedTokenizerFast", end_of_turn_id: int) -> None:
    """Fill `stage` with what the converter is given: links to the exported `folder`, and two files of its own."""
    own = written(tokenizer.get_added_vocab())
    said = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for token in said["added_tokens"]:
        if token["content"] in own:
            token |= {"special": False, "normalized": True}
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for key in ("extra_special_tokens", "additional_special_tokens"):
        if isinstance(config.get(key), list):
            config[key] = [token for token in config[key] if token not in own]
    config["eos_token"] = tokenizer.convert_ids_to_tokens(end_of_turn_id)
    if not _adds_bos(tokenizer):
        config |= {"add_bos_token": False, "add_eos_token": False}
    files = {"tokenizer.json": said, "tokenizer_config.json": config}
    for file in folder.iterdir():
        if file.name not in files:
            (stage / file.name).symlink_to(file.resolve())
    for name, content in files.items():
        (stage / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _adds_bos(tokenizer: "PreTrainedTokenizerFast") -> bool:
    ids: Any = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def check_file(file: Path, folder: Path, tokenizer: "PreTrainedTokenizerFast", end_of_turn_id: int) -> None:
    """GgufError where `file` can't be read, or does not say the same of tokens and template as the export `folder`."""
    try:
        problems = list(_differences(file, folder, tokenizer, end_of_turn_id))
    except (ValueError, LookupError, OSError) as error:  # what GGUFReader raises of a damaged file
        raise GgufError(f"{file.name} cannot be read ({error}); convert it again") from error
    if problems:
        more = f"\n… and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise GgufError(f"{file.name} differs from the exported model:\n" + "\n".join(problems[:5]) + more)


def _differences(file: Path, folder: Path, tokenizer: "PreTrainedTokenizerFast", end_of_turn_id: int) -> Iterator[str]:
    from gguf import GGUFReader  # an extra of ours

    reader = GGUFReader(file)

    def read(name: str) -> Any:
        field = reader.get_field(f"tokenizer.{name}")
        return None if field is None else field.contents()

    tokens, types = read("ggml.tokens") or [], read("ggml.token_type") or []
    rows = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vocab_size")
    if rows is None:  # a model of text and more keeps it in a part of its config
        raise GgufError(
            "config.json has no vocab_size, so the file can't be checked; serve the model with vLLM instead"
        )
    tables = [
        int(tensor.shape[1]) for tensor in reader.tensors if tensor.name in ("token_embd.weight", "output.weight")
    ]
    if not tables or {len(tokens), len(types), *tables} != {rows}:
        yield f"the model has {rows} rows; the file {len(tokens)} tokens, {len(types)} types and {tables} rows"
        return
    yield from _token_differences(tokenizer, tokens, types)
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    bos = tokenizer.bos_token_id
    said = {
        "the chat template": (template, read("chat_template")),
        "the id that ends a turn": (end_of_turn_id, read("ggml.eos_token_id")),
        "the id that begins a text": (bos, read("ggml.bos_token_id") if bos is not None else None),
        "whether it is put before a prompt": (_adds_bos(tokenizer), bool(read("ggml.add_bos_token"))),
    }
    for what, (ours, theirs) in said.items():
        if ours != theirs:
            yield f"{what}: {ours!s:.80}, in the file {theirs!s:.80}"


def _token_differences(tokenizer: "PreTrainedTokenizerFast", tokens: list[str], types: list[int]) -> Iterator[str]:
    added = tokenizer.get_added_vocab()
    own, texts = written(added), {id_: text for text, id_ in tokenizer.get_vocab().items()}
    for id_, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        text = texts.get(id_)
        if text is None:
            fits = kind == UNUSED
        elif text in added:  # one token wherever it stands; CONTROL is not printed
            fits = token == text and kind in ((USER_DEFINED,) if text in own else (USER_DEFINED, CONTROL))
        else:
            fits = token == text and kind == NORMAL
        if not fits:
            yield f"token {id_} is {text!r}, in the file {token!r} of type {kind}"
