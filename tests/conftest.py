"""Fixtures shared by all tests."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen3ForCausalLM

from tirkit.embedded.model import build_tokenizer, tiny_config
from tirkit.text.index import build_index
from tirkit.text.render import Renderer
from tirkit.types import ToolSchema


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real tool-use data: $TIRKIT_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("TIRKIT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real tool-use data not found at {folder}; set TIRKIT_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def make_tiny() -> Callable[..., SimpleNamespace]:
    """A function from tools to: a random model of two layers, tokenizer, renderer, index, tools by name."""

    def make(tools: Sequence[ToolSchema], tied: bool = True) -> SimpleNamespace:
        torch.set_num_threads(1)
        texts = ["user assistant tool system add multiply two integers what is the sum of product 0123456789"]
        tokenizer = build_tokenizer(texts, size=400)
        index = build_index(tools)
        tokenizer.add_tokens(list(index.tokens))
        torch.manual_seed(0)
        config = tiny_config(-(-len(tokenizer) // 64) * 64)
        config.hidden_size, config.intermediate_size, config.num_hidden_layers = 64, 96, 2
        config.layer_types, config.tie_word_embeddings = config.layer_types[:2], tied
        return SimpleNamespace(
            model=Qwen3ForCausalLM(config).eval(),
            tokenizer=tokenizer,
            renderer=Renderer(tokenizer, index),
            index=index,
            tools={tool.name: tool for tool in tools},
        )

    return make
