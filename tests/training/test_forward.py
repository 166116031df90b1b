import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tirkit.training.forward import _TreeAttention, blocks_of, flex_mask, scoring, why_no_trees
from tirkit.training.prefix import plain_batch, tree_batch

ARCHITECTURES = [
    (Qwen3Config, Qwen3ForCausalLM, {}),
    (Qwen3Config, Qwen3ForCausalLM, {"tie_word_embeddings": True}),
    (Qwen2Config, Qwen2ForCausalLM, {}),
    (LlamaConfig, LlamaForCausalLM, {}),
    (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    (GemmaConfig, GemmaForCausalLM, {}),
]


@pytest.fixture
def rows(make_row, make_branching):
    """Ragged rows of two prompts, with masked turns; and rows that part late, some of them equal."""
    return [
        make_row(1, 7, 5, masked=2),
        make_row(2, 7, 9),
        make_row(6, 12, 8, masked=4, prompt_seed=1),
        make_row(7, 12, 3, prompt_seed=1),
        make_row(3, 7, 1),
        *make_branching(0, num_rows=8),
    ]


def reference(model, rows):
    """Log p of the trained tokens, one row at a time, by the library's own forward."""
    out = []
    for row in rows:
        logps = model(torch.tensor([[*row.prompt_ids, *row.completion_ids]])).logits[0].float().log_softmax(-1)
        start = len(row.prompt_ids) - 1
        out += [logps[start + t, row.completion_ids[t]] for t, on in enumerate(row.tool_mask) if on]
    return torch.stack(out)


def assert_same(got, want, **tolerance):
    assert got.keys() == want.keys()
    for name, value in got.items():
        torch.testing.assert_close(value, want[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.mark.parametrize(("config", "architecture", "changes"), ARCHITECTURES)
def test_both_layouts_give_the_librarys_log_probs_and_gradients(
    make_model, rows, gradients, config, architecture, changes
):
    model = make_model(config, architecture, **changes)
    want = reference(model, rows)
    weights = torch.linspace(-1, 1, len(want))  # equal tokens of different rows weigh differently
    want_gradients = gradients(model, (want * weights).sum())
    assert why_no_trees(model) is None
    for batch in (plain_batch(rows, 0), tree_batch(rows)):
        with scoring(model, shared_prefix=True):
            logps, _ = model(scored=batch)
            got = gradients(model, (logps * weights).sum())
        torch.testing.assert_close(logps, want, atol=1e-5, rtol=0)
        assert_same(got, want_gradients, atol=2e-5, rtol=1e-5)


def test_merging_changes_neither_loss_nor_gradients(make_model, rows, gradients):
    model = make_model(initializer_range=0.05)
    results = []
    with scoring(model, shared_prefix=True):
        for batch in (plain_batch(rows, 0), tree_batch(rows)):
            logps, entropies = model(scored=batch, temperature=0.7, entropy_gradient=True)
            weights = torch.linspace(-1, 1, len(logps)) / len(logps)
            loss = (weights * logps).sum() + 0.1 * entropies.mean()
            results.append({"loss": loss.detach(), "entropies": entropies.detach()} | gradients(model, loss))
    assert_same(*results, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("seed", range(3))
def test_attention_over_a_tree_by_blocks_by_flex_and_by_mask(make_branching, seed):
    """Four query heads, two of keys and values."""
    end = tree_batch(make_branching(seed, num_rows=9)).end_L
    torch.manual_seed(seed)
    query, key, value = (torch.randn(1, heads, len(end), 16, requires_grad=True) for heads in (4, 2, 2))
    place = torch.arange(len(end))
    dense = (place <= place[:, None]) & (place[:, None] < end)

    def of(attend):
        out = attend()
        return out, *torch.autograd.grad((out * torch.arange(16)).sum(), (query, key, value))

    want = of(lambda: scaled_dot_product_attention(query, key, value, dense, scale=0.3, enable_gqa=True))
    got = of(lambda: _TreeAttention.apply(query, key, value, blocks_of(end.tolist()), 0.3))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=1e-5)
    query, key, value = query.detach(), key.detach(), value.detach()
    flexible = flex_attention(query, key, value, block_mask=flex_mask(end), scale=0.3, enable_gqa=True)
    torch.testing.assert_close(flexible, want[0], atol=1e-5, rtol=0)
    # No block holds what is not seen: together they are as large as the mask.
    sizes = [
        (n := rows.stop - rows.start) * (n + 1) // 2 if causal else (rows.stop - rows.start) * (keys.stop - keys.start)
        for rows, keys, causal in blocks_of(end.tolist())
    ]
    assert sum(sizes) == dense.sum()


def test_bf16_is_as_close_as_the_librarys_own(make_model, rows):
    model = make_model(initializer_range=0.1)
    want = reference(model, rows).detach()
    low = copy.deepcopy(model).to(torch.bfloat16)
    plain_gap = (reference(low, rows).detach() - want).abs().max()
    with scoring(low, shared_prefix=True):
        logps, _ = low(scored=tree_batch(rows))
        logps.sum().backward()
    assert logps.dtype == torch.float32
    assert (logps - want).abs().max() < 2 * plain_gap
    assert all(p.grad.isfinite().all() for p in low.parameters())
    with scoring(model, shared_prefix=True), torch.autocast("cpu", torch.bfloat16):
        logps, _ = model(scored=tree_batch(rows))
        logps.sum().backward()
    assert (logps - want).abs().max() < 2 * plain_gap


def test_padding_and_company_change_nothing(make_model, make_row):
    model = make_model()
    row, long = make_row(1, 4, 5), make_row(2, 30, 40, prompt_seed=3)
    with scoring(model), torch.no_grad():
        alone = model(scored=plain_batch([row], 0))[0]
        together = model(scored=plain_batch([long, row], 0))[0][-5:]
        other_pad = model(scored=plain_batch([long, row], 17))[0][-5:]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert torch.equal(other_pad, together)


@pytest.mark.parametrize("tied", [False, True])
def test_lora_with_tool_tokens_and_gradient_checkpointing(make_model, rows, gradients, tied):
    torch.manual_seed(0)
    adapter = LoraConfig(
        target_modules=["q_proj", "down_proj"], r=2, trainable_token_indices={"embed_tokens": [3, 17, 40]}
    )
    model = get_peft_model(make_model(tie_word_embeddings=tied), adapter)
    for name, p in model.named_parameters():
        if "lora_B" in name or "trainable_tokens_delta" in name:
            torch.nn.init.normal_(p, std=0.1)
    want = gradients(model, reference(model, rows).sum())
    assert any("trainable_tokens" in name for name in want)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    with scoring(model, shared_prefix=True):
        got = gradients(model, model(scored=tree_batch(rows))[0].sum())
    assert_same(got, want, atol=2e-5, rtol=1e-5)


def test_models_that_cannot_share_say_why_and_still_score(make_model, rows):
    gemma = make_model(Gemma2Config, Gemma2ForCausalLM, attn_implementation="eager")
    assert "logits" in why_no_trees(gemma)
    assert "logits" in why_no_trees(make_model(CohereConfig, CohereForCausalLM))
    assert "sliding window" in why_no_trees(make_model(MistralConfig, MistralForCausalLM, sliding_window=4))
    mixed = make_model(layer_types=["full_attention", "sliding_attention"], use_sliding_window=True, sliding_window=4)
    assert "full attention" in why_no_trees(mixed)
    assert "'eager'" in why_no_trees(make_model(attn_implementation="eager"))
    assert "dropout" in why_no_trees(make_model(attention_dropout=0.1))
    assert "mps" in why_no_trees(make_model(), "mps")
    for model in (gemma.eval(), make_model(MistralConfig, MistralForCausalLM, sliding_window=4), mixed):
        with scoring(model), torch.no_grad():
            got = model(scored=plain_batch(rows, 0))[0]
        torch.testing.assert_close(got, reference(model, rows).detach(), atol=1e-5, rtol=0)


def test_a_window_nobody_announced_is_refused(make_model, rows):
    mixed = make_model(layer_types=["full_attention", "sliding_attention"], use_sliding_window=True, sliding_window=4)
    with scoring(mixed, shared_prefix=True), pytest.raises(NotImplementedError, match="sliding_window"):
        mixed(scored=tree_batch(rows))


def test_the_model_is_left_as_it_was(make_model):
    model = make_model()
    ids = torch.tensor([[1, 2, 3]])
    before = model(ids).logits
    with scoring(model, shared_prefix=True):
        assert torch.equal(model(ids).logits, before)
        clone = copy.deepcopy(model)
        with torch.no_grad():
            model.lm_head.weight.zero_()
        assert torch.equal(clone(ids).logits, before)  # a copy has its own weights
    assert "forward" not in vars(model)
    assert model.config._attn_implementation == "sdpa"
