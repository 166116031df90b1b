"""GGUF files: what the converter is given and told, and that a file which means something else is refused."""

import contextlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, normalizers, pre_tokenizers

from tirkit.embedded.model import build_tokenizer
from tirkit.serving.export import Exportable, export_folder
from tirkit.serving.gguf_file import Converter, GgufError, check_file, pre_tokenizer, stage_folder
from tirkit.serving.gguf_runner import told
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer
from tirkit.types import ToolSchema

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
pytest.importorskip("sentencepiece", reason="the package sentencepiece is not installed")
FAKE = Path(__file__).with_name("fake_converter.py")
FAULTS = "    # The tests put their faults here.\n"


@pytest.fixture(scope="module")
def tiny(make_tiny: Callable[..., SimpleNamespace], tmp_path_factory: pytest.TempPathFactory) -> Exportable:
    """A model with the token `<<mul_é_>>`, whose base has <think> for a special token."""
    tiny = make_tiny((ToolSchema(name="add"), ToolSchema(name='mul"é"')))
    tiny.tokenizer.add_tokens([AddedToken("<think>", special=True, normalized=False)], special_tokens=True)
    folder = tmp_path_factory.mktemp("model")
    tiny.model.save_pretrained(folder)
    renderer = Renderer(tiny.tokenizer, tiny.index)
    return Exportable(folder, tiny.tokenizer, renderer, Dialect(tiny.index), tiny.tools, 16, "my model")


def converter(folder: Path) -> Converter:
    """The converter of a checkout in `folder`."""
    shutil.copyfile(FAKE, folder / "convert_hf_to_gguf.py")
    return Converter.find(folder, "f32")


def test_every_token_is_in_the_file_as_llama_cpp_must_see_it(tiny: Exportable, tmp_path: Path) -> None:
    export_folder(tiny, tmp_path / "out", {}, converter(tmp_path))
    reader = gguf.GGUFReader(tmp_path / "out" / "my_model-f32.gguf")

    def read(name: str) -> Any:
        return reader.get_field(f"tokenizer.{name}").contents()

    tokens, types = read("ggml.tokens"), read("ggml.token_type")
    for text, id_ in tiny.tokenizer.get_added_vocab().items():
        assert tokens[id_] == text
        # What the model writes is printed (4, user-defined); turn marks and padding are not (3, control).
        assert types[id_] == (3 if text in ("<|im_start|>", "<|im_end|>", "<|pad|>") else 4), text
    assert "<<mul_é_>>" in tokens
    assert len(tokens) == json.loads((tiny.model / "config.json").read_text())["vocab_size"] > len(tiny.tokenizer)
    assert set(types[len(tiny.tokenizer) :]) == {5}  # unused
    assert read("ggml.pre") == "smollm"
    assert read("ggml.eos_token_id") == tiny.renderer.end_of_turn_id
    assert read("chat_template") == (tmp_path / "out" / "chat_template.jinja").read_text()
    kept = json.loads((tmp_path / "out" / "tokenizer.json").read_text())["added_tokens"]
    assert [token["special"] for token in kept if token["content"] == "<think>"] == [True]  # only the copy was changed


@pytest.fixture(scope="module")
def exported(tiny: Exportable, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An exported folder, and what the converter is given of it."""
    root = tmp_path_factory.mktemp("exported")
    export_folder(tiny, root / "out", {})
    (root / "stage").mkdir()
    stage_folder(root / "out", root / "stage", tiny.tokenizer, tiny.renderer.end_of_turn_id)
    return root / "out", root / "stage"


@pytest.mark.parametrize(
    ("fault", "said"),
    {
        "pass": "",
        "tokens[tokens.index('<<add>>')] = 'add'": r"token \d+ is '<<add>>', in the file 'add' of type 4",
        "types[tokens.index('<<add>>')] = 1": r"is '<<add>>', in the file '<<add>>' of type 1",
        "types[tokens.index('</answer>')] = 3": r"'</answer>' of type 3",
        "tokens[40], tokens[41] = tokens[41], tokens[40]": r"token 40 is .*\ntoken 41 is ",
        "types[-1] = 1": r"is None, in the file '\[PAD\d+\]' of type 1",
        "types = [3] * rows": r"… and \d+ more",
        "rows -= 1": r"rows; the file",
        "tokens, types = tokens[:-1], types[:-1]": r"the model has \d+ rows; the file \d+ tokens",
        "template = 'x'": r"the chat template: [^,]*",
        "eos = 0": r"the id that ends a turn: \d+, in the file 0",
        "add_bos = True": r"whether it is put before a prompt: False, in the file True",
    }.items(),
)
def test_a_file_that_means_something_else_is_refused(
    tiny: Exportable,
    exported: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    said: str,
) -> None:
    out, stage = exported
    names: dict[str, Any] = {"__name__": "fake"}
    exec(FAKE.read_text(encoding="utf-8").replace(FAULTS, f"    {fault}\n"), names)
    names["TextModel"].get_vocab_base_pre = lambda *_: "smollm"
    file = tmp_path / "a.gguf"
    monkeypatch.setattr(
        sys, "argv", ["fake", str(stage), "--outfile", str(file), "--outtype", "f32", "--model-name", "a"]
    )
    names["main"]()
    with pytest.raises(GgufError, match=said) if said else contextlib.nullcontext():
        check_file(file, out, tiny.tokenizer, tiny.renderer.end_of_turn_id)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("Path(asked.outfile).write_bytes(b'GGUF'); return", r"my_model-f32\.gguf cannot be read"),
        ("Path(asked.outfile).write_bytes(bytes(64)); return", r"cannot be read \(GGUF magic invalid\)"),
        ("Path(asked.outfile).touch(); return", r"cannot be read"),
    ],
)
def test_a_damaged_file_is_refused_and_removed(
    tiny: Exportable, exported: tuple[Path, Path], tmp_path: Path, fault: str, said: str
) -> None:
    made, file = converter(tmp_path), tmp_path / "my_model-f32.gguf"
    made.script.write_text(FAKE.read_text(encoding="utf-8").replace(FAULTS, f"    {fault}\n"), encoding="utf-8")
    with pytest.raises(GgufError, match=said):
        made.convert(exported[0], file, tiny.tokenizer, tiny.renderer.end_of_turn_id)
    assert not file.exists()


def test_a_config_without_a_vocabulary_is_refused(
    tiny: Exportable, exported: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"text_config": {"vocab_size": 9}}')
    file = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(file, "qwen3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(GgufError, match=r"config\.json has no vocab_size"):
        check_file(file, tmp_path, tiny.tokenizer, tiny.renderer.end_of_turn_id)


def test_the_converter_is_told_the_pre_tokenizer_only_where_it_knows_none() -> None:
    def unknown(self: Any, tokenizer: Any) -> str:
        raise NotImplementedError

    assert told(unknown, "smollm")(None, None) == "smollm"
    assert told(lambda self, tokenizer: "qwen2", "smollm")(None, None) == "qwen2"
    with pytest.raises(SystemExit, match="does not know the tokenizer"):
        told(unknown, "")(None, None)


def test_a_pre_tokenizer_without_a_name_is_refused(tiny: Exportable, tmp_path: Path) -> None:
    own = tiny.tokenizer.backend_tokenizer
    before = own.pre_tokenizer
    own.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), before])
    try:
        with pytest.raises(
            GgufError, match=r"failed \(exit 1\)[^$]*does not know the tokenizer.* serve the model with vLLM"
        ):
            export_folder(tiny, tmp_path / "out", {}, converter(tmp_path))
    finally:
        own.pre_tokenizer = before
    assert not (tmp_path / "out").exists()


def test_names_of_pre_tokenizers() -> None:
    own = build_tokenizer(["a b"] * 3, size=270).backend_tokenizer

    def name() -> str:
        return pre_tokenizer(json.loads(own.to_str()))

    assert name() == "smollm"
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert name() == "gpt-2"
    own.normalizer = normalizers.NFC()  # llama.cpp has none
    assert name() == ""
    own.normalizer = None
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert name() == ""
    said = json.loads(build_tokenizer(["a b"] * 3, size=270).backend_tokenizer.to_str())
    said["model"]["ignore_merges"] = True
    assert pre_tokenizer(said) == ""


def test_what_is_missing_is_said_before_anything_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GgufError, match=r"there is no convert_hf_to_gguf\.py in"):
        Converter.find(tmp_path, "f16")
    assert converter(tmp_path).script.name == "convert_hf_to_gguf.py"
    assert Converter.find(tmp_path / "convert_hf_to_gguf.py", "q8_0").file_name("a/b") == "a_b-q8_0.gguf"
    with pytest.raises(GgufError, match="type 'q4' can't be made; choose one of f32, f16, bf16, q8_0"):
        Converter.find(tmp_path, "q4")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GgufError, match=r"needs gguf and sentencepiece: pip install 'tirkit\[gguf\]'"):
        Converter.find(tmp_path, "f16")
