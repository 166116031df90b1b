"""There and back: llama.cpp's converter and llama.cpp itself against transformers, where both are installed.

A checkout of llama.cpp on the PATH (its convert_hf_to_gguf.py) and the package llama-cpp-python.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tirkit.embedded.model import load_base
from tirkit.methods.tinr.tokens import grow_vocabulary
from tirkit.serving.export import Exportable, export_folder, template_ids
from tirkit.serving.gguf_file import SCRIPT, Converter
from tirkit.text.dialects import Dialect, print_document
from tirkit.text.index import build_index
from tirkit.text.render import Renderer
from tirkit.types import ToolCall, ToolSchema

REASON = "llama-cpp-python is not installed"
llama_cpp: Any = pytest.importorskip("llama_cpp", reason=REASON)
FOUND = shutil.which(SCRIPT)
if FOUND is None:
    pytest.skip(f"there is no {SCRIPT} on the PATH", allow_module_level=True)
CHECKOUT = Path(FOUND).resolve().parent
TOOLS = (ToolSchema(name="add", description="Add 12 and 3.5."), ToolSchema(name='mul"é"'), ToolSchema(name="天気"))
# As Qwen2's tokenizer.json has it.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = (
    "How's it  12.5\t(¾)?\n\n",
    " naïve 🚀🦙 कखग 1234567 A.B__c",
    "<tool_call> <<add>> <<mul",
    "…  \u200b  x'll I'VE",
)


def embedded() -> tuple[Any, Any]:
    return load_base()


def qwen() -> tuple[Any, Any]:
    """Qwen2's tokenizer, from the vocabulary that llama.cpp tests its own with, and a random model."""
    from gguf import GGUFReader

    reader: Any = GGUFReader(CHECKOUT / "models" / "ggml-vocab-qwen2.gguf")
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()[:151643]
    merges = [tuple(pair.split(" ")) for pair in reader.get_field("tokenizer.ggml.merges").contents()]
    backend = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(tokens)}, merges))
    backend.normalizer = normalizers.NFC()
    cut = pre_tokenizers.Split(Regex(WORDS), "isolated")
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Sequence([cut, byte]), decoders.ByteLevel()
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=specials[0], pad_token=specials[0])
    tokenizer.chat_template = load_base()[1].chat_template
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=151936, num_key_value_heads=1, tie_word_embeddings=True, **shape)  # type: ignore[arg-type]
    return Qwen2ForCausalLM(config).eval(), tokenizer


@pytest.mark.parametrize("base", [embedded, qwen], ids=lambda base: base.__name__)
def test_llama_cpp_reads_and_writes_the_tokens_of_transformers(base: Any, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model, tokenizer = base()
    index = build_index(TOOLS)
    grow_vocabulary(model, tokenizer, index, TOOLS)
    model.save_pretrained(tmp_path / "model")
    renderer, dialect = Renderer(tokenizer, index), Dialect(index)
    one = Exportable(tmp_path / "model", tokenizer, renderer, dialect, {tool.name: tool for tool in TOOLS}, 24)
    export_folder(one, tmp_path / "out", {}, Converter.find(CHECKOUT, "f32"))
    file = str(tmp_path / "out" / "model-f32.gguf")
    exported: Any = PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    llama = llama_cpp.Llama(file, n_ctx=1024, n_threads=1, type_k=0, type_v=0, logits_all=True, verbose=False)
    assert llama.n_vocab() == model.config.vocab_size
    assert llama.token_eos() == renderer.end_of_turn_id
    for token in index.tokens:
        assert llama.tokenize(f"a{token}b".encode(), add_bos=False, special=True)[1:-1] == [exported.vocab[token]]
        assert llama.detokenize([exported.vocab[token]]).decode() == token
    for text in TEXTS:
        assert llama.tokenize(text.encode(), add_bos=False, special=True) == exported(text)["input_ids"], text
    said = [
        dialect.print_selection(["add", "天気"], "I ask."),
        dialect.print_calls([ToolCall(name='mul"é"', arguments={"a": "é 12"})]),
    ]
    messages = [{"role": "user", "content": TEXTS[0] + TEXTS[2]}]
    for number in range(len(said) + 1):
        ids = template_ids(exported, messages)
        text = exported.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert llama.tokenize(text.encode(), add_bos=True, special=True) == ids  # and nothing is put before
        settings = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": renderer.end_of_turn_id}
        theirs = model.generate(torch.tensor([ids]), **settings)[0, len(ids) :].tolist()
        llama.reset()
        llama.eval(ids)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        ours = torch.from_numpy(llama.scores[len(ids) - 1].copy())
        assert torch.allclose(ours, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max()))
        written: list[int] = []
        while len(written) < len(theirs):
            written.append(int(llama.scores[llama.n_tokens - 1].argmax()))
            llama.eval(written[-1:])
        assert written == theirs
        if number < len(said):
            reply = print_document(TOOLS[0])
            messages += [{"role": "assistant", "content": said[number]}, {"role": "tool", "content": reply}]
    llama.close()
