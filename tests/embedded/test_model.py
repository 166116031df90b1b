import re
from pathlib import Path

import pytest
import torch

from tirkit.embedded.base import evaluate, file_sha256
from tirkit.embedded.model import BASE_MODEL, build_tokenizer, load_base, new_model, read_record, save_half
from tirkit.embedded.values import spell_integer
from tirkit.embedded.world import World
from tirkit.text.control import CONTROL_STRINGS
from tirkit.text.dialects import print_document
from tirkit.text.render import Renderer
from tirkit.types import Message

TOKENIZER = build_tokenizer([spell_integer(n) for n in range(100)], size=300)


def test_control_strings_are_one_token_and_survive_decoding():
    for text in CONTROL_STRINGS:
        ids = TOKENIZER(text).input_ids
        assert len(ids) == 1
        special = text.startswith("<|im_")
        assert TOKENIZER.decode(ids, skip_special_tokens=True) == ("" if special else text)
    assert TOKENIZER.eos_token == "<|im_end|>"
    assert TOKENIZER.pad_token not in (None, TOKENIZER.eos_token)


def test_digits_stay_apart_and_any_text_comes_back():
    assert [t.strip("Ġ") for t in TOKENIZER.tokenize("a 1234.5")][-6:] == ["1", "2", "3", "4", ".", "5"]
    text = 'Grüße, 東京! {"a": [1, 2.50, null]}\n\t…'
    assert TOKENIZER.decode(TOKENIZER(text).input_ids) == text


def test_the_chat_template_is_ours():
    ids = Renderer(TOKENIZER).prompt_ids([Message(role="user", content="one")])
    assert TOKENIZER.decode(ids) == "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"


def test_half_precision_on_disk_is_float32_in_memory_and_close(tmp_path: Path):
    model = new_model(TOKENIZER)
    save_half(model, TOKENIZER, tmp_path)
    loaded, tokenizer = load_base(tmp_path)
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        # a float16 has 11 significant bits: half a unit in the last place is 2^-12 of the value
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=2**-11, atol=1e-7)


def test_a_missing_base_model_says_what_to_do(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"tirkit\.embedded\.base --out"):
        load_base(tmp_path)


def test_the_shipped_model_is_the_recorded_one():
    record = read_record()
    assert record["sha256"] == file_sha256(BASE_MODEL / "model.safetensors")
    assert sum(path.stat().st_size for path in BASE_MODEL.iterdir()) < 4 * 2**20
    model, tokenizer = load_base()
    assert (record["parameters"], record["vocabulary"]) == (model.num_parameters(), len(tokenizer))


def test_the_shipped_model_does_what_is_recorded():
    model, tokenizer = load_base()
    recorded = read_record()["test_exact_match"]
    assert isinstance(recorded, dict)
    # 40 samples each: the standard error is at most .08
    for skill, score in evaluate(model, Renderer(tokenizer), n=40).items():
        assert score == pytest.approx(recorded[skill], abs=0.25), skill


def test_the_shipped_tokenizer_has_no_tool_and_keeps_documents_short():
    _, tokenizer = load_base()
    world = World()
    assert not [token for token in tokenizer.get_vocab() if re.match("<<", token)]
    lengths = [len(tokenizer(print_document(tool)).input_ids) for tool in world.catalogue]
    assert 55 <= sum(lengths) / len(lengths) <= 90
