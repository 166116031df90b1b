import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tirkit.training.prefix import plain_batch, prefix_batch, scoring, why_no_prefix

ARCHITECTURES = [
    (Qwen3Config, Qwen3ForCausalLM, {}),
    (Qwen3Config, Qwen3ForCausalLM, {"tie_word_embeddings": True}),
    (Qwen2Config, Qwen2ForCausalLM, {}),
    (LlamaConfig, LlamaForCausalLM, {}),
    (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
]


@pytest.fixture
def groups(make_row):
    """Two neighbouring groups of one and the same prompt, one of another length; ragged, with masked turns."""
    return [
        [make_row(1, 7, 5, masked=2), make_row(2, 7, 9), make_row(3, 7, 1)],
        [make_row(4, 7, 6), make_row(5, 7, 2)],
        [make_row(6, 12, 8, masked=4, prompt_seed=1), make_row(7, 12, 3, prompt_seed=1)],
    ]


def reference(model, rows):
    """Log p of the trained tokens, one row at a time, by the library's own forward."""
    out = []
    for row in rows:
        logps = model(torch.tensor([[*row.prompt_ids, *row.completion_ids]])).logits[0].float().log_softmax(-1)
        start = len(row.prompt_ids) - 1
        out += [logps[start + t, row.completion_ids[t]] for t, on in enumerate(row.tool_mask) if on]
    return torch.stack(out)


@pytest.mark.parametrize(("config", "architecture", "changes"), ARCHITECTURES)
def test_both_layouts_give_the_librarys_log_probs_and_gradients(
    make_model, groups, gradients, config, architecture, changes
):
    model = make_model(config, architecture, **changes)
    rows = [row for group in groups for row in group]
    want = reference(model, rows)
    weights = torch.linspace(-1, 1, len(want))
    want_gradients = gradients(model, (want * weights).sum())
    assert why_no_prefix(model) is None
    for batch in (plain_batch(rows, 0), prefix_batch(groups, 0)):
        with scoring(model, shared_prefix=True):
            logps, _ = model(scored=batch)
            got = gradients(model, (logps * weights).sum())
        torch.testing.assert_close(logps, want, atol=1e-5, rtol=0)
        assert got.keys() == want_gradients.keys()
        for name, gradient in got.items():
            torch.testing.assert_close(
                gradient, want_gradients[name], atol=2e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_batch_points_at_what_it_says(make_row):
    # prompt of 3; completions of 2 and 3 tokens, the last one's middle token not sampled
    row = make_row(1, 3, 2)
    other = make_row(2, 3, 3, masked=1)
    plain = plain_batch([row, other], pad_id=0)  # rows of 6: the first is p p p c c pad
    assert plain.source_N.tolist() == [2, 3, 6 + 2, 6 + 4]
    assert plain.row_N.tolist() == [0, 0, 1, 1]
    assert plain.target_N.tolist() == [*row.completion_ids, other.completion_ids[0], other.completion_ids[2]]
    shared = prefix_batch([[row, other]], pad_id=0)  # p p p c c pad c c c
    assert shared.ids_RL.tolist() == [[*row.prompt_ids, *row.completion_ids, 0, *other.completion_ids]]
    assert shared.positions_RL.tolist() == [[0, 1, 2, 3, 4, 5, 3, 4, 5]]
    assert shared.source_N.tolist() == [2, 3, 2, 7]
    assert shared.target_N.tolist() == plain.target_N.tolist()


def test_padding_and_company_change_nothing(make_model, make_row):
    model = make_model()
    row, long = make_row(1, 4, 5), make_row(2, 30, 40, prompt_seed=3)
    with scoring(model), torch.no_grad():
        alone = model(scored=plain_batch([row], 0))[0]
        together = model(scored=plain_batch([long, row], 0))[0][-5:]
        other_pad = model(scored=plain_batch([long, row], 17))[0][-5:]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert torch.equal(other_pad, together)


def test_lora_and_gradient_checkpointing(make_model, groups, gradients):
    torch.manual_seed(0)
    model = get_peft_model(make_model(), LoraConfig(target_modules=["q_proj", "down_proj", "lm_head"], r=2))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    rows = [row for group in groups for row in group]
    want = gradients(model, reference(model, rows).sum())
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    with scoring(model, shared_prefix=True):
        got = gradients(model, model(scored=prefix_batch(groups, 0))[0].sum())
    assert got.keys() == want.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(
            gradient, want[name], atol=2e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_models_that_cannot_share_say_why_and_still_score(make_model, groups):
    gemma = make_model(Gemma2Config, Gemma2ForCausalLM, attn_implementation="eager")
    assert "logits" in why_no_prefix(gemma)
    assert "logits" in why_no_prefix(make_model(CohereConfig, CohereForCausalLM))
    assert "sliding window" in why_no_prefix(make_model(MistralConfig, MistralForCausalLM, sliding_window=4))
    mixed = make_model(layer_types=["full_attention", "sliding_attention"], use_sliding_window=True, sliding_window=4)
    assert "full attention" in why_no_prefix(mixed)
    assert "'eager'" in why_no_prefix(make_model(attn_implementation="eager"))
    rows = [row for group in groups for row in group]
    for model in (gemma.eval(), make_model(MistralConfig, MistralForCausalLM, sliding_window=4), mixed):
        with scoring(model), torch.no_grad():
            got = model(scored=plain_batch(rows, 0))[0]
        torch.testing.assert_close(got, reference(model, rows).detach(), atol=1e-5, rtol=0)


def test_a_window_nobody_announced_is_refused(make_model, groups):
    mixed = make_model(layer_types=["full_attention", "sliding_attention"], use_sliding_window=True, sliding_window=4)
    with scoring(mixed, shared_prefix=True), pytest.raises(NotImplementedError, match="sliding_window"):
        mixed(scored=prefix_batch(groups, 0))


def test_the_model_is_left_as_it_was(make_model, groups):
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


def test_rows_that_make_no_sense_are_refused(make_row):
    with pytest.raises(ValueError, match="different prompts"):
        prefix_batch([[make_row(1, 3, 2), make_row(2, 3, 2, prompt_seed=5)]], 0)
    with pytest.raises(ValueError, match="empty prompt"):
        plain_batch([make_row(1, 0, 2)], 0)
