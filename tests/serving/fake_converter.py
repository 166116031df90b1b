"""In the place of llama.cpp's convert_hf_to_gguf.py: writes a GGUF file with a real vocabulary and one real matrix.

Like the real one it knows tokenizers by the ids of one text (this one knows none), sends added tokens that are not
normalised through the decoder, and takes special ones for CONTROL.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import AutoTokenizer


class ModelBase:
    pass


class TextModel(ModelBase):
    def get_vocab_base_pre(self, tokenizer: Any) -> str:
        raise NotImplementedError("BPE pre-tokenizer was not recognized")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    for name in ("--outfile", "--outtype", "--model-name"):
        parser.add_argument(name, required=True)
    asked = parser.parse_args()
    tokenizer: Any = AutoTokenizer.from_pretrained(asked.model)
    rows = json.loads((asked.model / "config.json").read_text())["vocab_size"]
    said = json.loads((asked.model / "tokenizer_config.json").read_text())
    names, added = {id_: token for token, id_ in tokenizer.get_vocab().items()}, tokenizer.added_tokens_decoder
    tokens, types = [], []
    for id_ in range(rows):
        token, kind = names.get(id_, f"[PAD{id_}]"), gguf.TokenType.NORMAL if id_ in names else gguf.TokenType.UNUSED
        if id_ in added:
            kind = gguf.TokenType.CONTROL if added[id_].special else gguf.TokenType.USER_DEFINED
            token = token if added[id_].normalized else tokenizer.decode([id_])
        tokens.append(token)
        types.append(kind)
    template = (asked.model / "chat_template.jinja").read_text()
    eos, add_bos = tokenizer.convert_tokens_to_ids(said["eos_token"]), said["add_bos_token"]
    # The tests put their faults here.
    writer = gguf.GGUFWriter(asked.outfile, "qwen3")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(TextModel().get_vocab_base_pre(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_eos_token_id(eos)
    writer.add_add_bos_token(add_bos)
    writer.add_chat_template(template)
    writer.add_tensor("token_embd.weight", np.zeros((rows, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
