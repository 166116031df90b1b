"""Grow a real-sized vocabulary by 4,076 tool tokens: a Qwen2.5-0.5B-shaped model with random weights (494M parameters).

    python examples/grow_vocabulary.py

Needs no download and no GPU, about 10 GB of memory and a minute or two. You should see the rows go from 151,936 to
155,776, one training step, `saved and loaded: rows bit-equal`, and a peak under 12 GB.
"""

import resource
import sys
import tempfile
import time

import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tirkit.embedded.model import build_tokenizer
from tirkit.methods.tinr.tokens import grow_vocabulary
from tirkit.text.index import build_index
from tirkit.types import ToolSchema

NUM_TOOLS = 4076
QWEN_05B = Qwen2Config(
    vocab_size=151_936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)


def peak_gb() -> float:
    """Peak resident memory of this process in GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def say(start: float, text: str) -> None:
    """Print `text` with the time since `start` and the peak memory so far."""
    print(f"{time.perf_counter() - start:6.1f} s  {peak_gb():5.2f} GB  {text}", flush=True)


def main() -> None:
    """Grow, train one step, save, load; fails loudly where a row changes or memory goes over 12 GB."""
    start = time.perf_counter()
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(QWEN_05B)
    # A real model brings its own tokenizer. This one is small, so it is filled up to Qwen's 151,665 entries.
    tokenizer = build_tokenizer(["get weather of a city", "search for a place"], size=400)
    tokenizer.add_tokens([f"<|filler {i}|>" for i in range(151_665 - len(tokenizer))])
    tools = [ToolSchema(name=f"tool_{i}", description=f"Does thing {i}.") for i in range(NUM_TOOLS)]
    index = build_index(tools)
    say(start, f"model of {model.num_parameters() / 1e6:.0f}M parameters, tokenizer of {len(tokenizer):,} entries")

    before = model.get_input_embeddings().weight[:1000].detach().clone()
    growth = grow_vocabulary(model, tokenizer, index, tools)
    rows = model.get_input_embeddings().weight
    assert torch.equal(rows[:1000], before), "old rows changed"
    assert rows.data_ptr() == model.get_output_embeddings().weight.data_ptr(), "no longer tied"
    say(start, f"grown by {len(growth.added):,} tokens: {growth.rows_before:,} rows → {growth.rows_after:,}")

    ids = torch.tensor([growth.ids[:64]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)  # foreach doubles the peak
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    say(start, f"one training step, loss {loss.item():.2f}")
    del optimizer, loss
    model.zero_grad(set_to_none=True)

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        trained = model.get_input_embeddings().weight.detach().clone()
        del model, rows
        loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(loaded.get_input_embeddings().weight, trained), "rows changed between save and load"
    say(start, "saved and loaded: rows bit-equal")
    assert peak_gb() < 12, f"peak memory of {peak_gb():.1f} GB is over 12 GB"


if __name__ == "__main__":
    main()
