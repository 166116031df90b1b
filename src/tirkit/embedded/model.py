"""The embedded model: a Qwen3 of 0.8M parameters, its tokenizer, and the shipped base model."""

import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tirkit.text.control import CONTROL_STRINGS, TURN_END, TURN_START

PAD = "<|pad|>"
MAX_POSITIONS = 16384  # rotary positions cost nothing; long enough for hundreds of documents in one prompt
BASE_MODEL = Path(str(files("tirkit"))) / "data" / "base_model"


def build_tokenizer(texts: Iterable[str], size: int = 1300) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `size` entries plus control strings, trained on `texts`.

    Digits stay apart, so that numbers are copied and added digit by digit. Only the turn marks and padding are special
    tokens: the other control strings must survive `skip_special_tokens=True`.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    specials = (TURN_START, TURN_END, PAD)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    plain = [token for token in CONTROL_STRINGS if token not in specials]
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=TURN_END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = (Path(str(files("tirkit"))) / "text" / "template.jinja").read_text()
    return tokenizer


def tiny_config(vocab_size: int, eos_token_id: int | None = None, pad_token_id: int | None = None) -> Qwen3Config:
    """The embedded model's shape: 4 layers of width 128, tied embeddings, 0.8M parameters at a vocabulary of 1300."""
    return Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=320,
        tie_word_embeddings=True,
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Qwen3ForCausalLM:
    """An untrained embedded model in float32."""
    torch.manual_seed(seed)
    vocabulary = tokenizer.get_vocab()
    return Qwen3ForCausalLM(tiny_config(len(tokenizer), vocabulary[TURN_END], vocabulary[PAD]))


def load_base(folder: Path = BASE_MODEL) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """The base model and its tokenizer; half precision on disk, float32 in memory.

    Raises FileNotFoundError that names the remedy where the folder holds no model.
    """
    if not (folder / "model.safetensors").is_file():
        remedy = f"make one with `python -m tirkit.embedded.base --out {folder}`"
        raise FileNotFoundError(f"no base model in {folder}: {remedy}")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer


def save_half(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes the model in float16 and its tokenizer; the model itself stays float32."""
    state = {name: tensor.half() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}  # tied
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)


def read_record(folder: Path = BASE_MODEL) -> dict[str, object]:
    """What `tirkit.embedded.base` recorded about the model: command, hash of the weights, evaluation."""
    return json.loads((folder / "record.json").read_text())
