import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tirkit.training.optim import MuonAdamW, hidden_matrices, lr_factor, make_optimizer


def few_steps(model, optimizer, num_steps, start=0):
    for step in range(start, start + num_steps):
        torch.manual_seed(step)
        ids = torch.randint(1, 50, (2, 8))
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()


def test_one_object_does_what_the_two_optimisers_do_apart(make_model):
    one, two = make_model(), make_model()
    combined = make_optimizer(one, "muon", lr=0.01, weight_decay=0.1)
    few_steps(one, combined, 4)
    matrices = hidden_matrices(two)
    rest = [p for p in two.parameters() if p not in matrices]
    adamw = torch.optim.AdamW(
        [{"params": [p for p in rest if p.ndim > 1]}, {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0}],
        lr=0.01,
        weight_decay=0.1,
    )
    muon = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        few_steps(two, muon, 1, start=step)
        adamw.step()
    for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_saved_optimiser_goes_on_exactly(make_model, name, tmp_path):
    model = make_model()
    optimizer = make_optimizer(model, name, lr=0.01)
    few_steps(model, optimizer, 3)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    other = copy.deepcopy(model)
    few_steps(model, optimizer, 3, start=3)
    loaded = make_optimizer(other, name, lr=0.5)  # the learning rate comes from the file
    loaded.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    few_steps(other, loaded, 3, start=3)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_scheduler_reaches_both_halves(make_model):
    model = make_model()
    optimizer = make_optimizer(model, "muon", lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step == 0))
    few_steps(model, optimizer, 1)
    scheduler.step()
    before = copy.deepcopy(model.state_dict())
    few_steps(model, optimizer, 1, start=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_muon_gets_the_hidden_matrices_only(make_model):
    tied = make_model(tie_word_embeddings=True)
    names = {name for name, p in tied.named_parameters() if p in hidden_matrices(tied)}
    parts = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert len(names) == 2 * len(parts)
    assert all(any(part in name for part in parts) for name in names)
    untied = make_model()
    assert untied.lm_head.weight not in hidden_matrices(untied)
    lora = get_peft_model(make_model(), LoraConfig(target_modules=["q_proj"], r=2))
    assert len(make_optimizer(lora, "muon").param_groups) == 1
    assert not make_optimizer(lora, "muon").param_groups[0]["muon"]


def test_no_weight_decay_on_vectors_and_an_error_where_nothing_is_trainable(make_model):
    model = make_model()
    decays = {p.ndim: group["weight_decay"] for group in make_optimizer(model, "muon", 1e-3, 0.1).param_groups
              for p in group["params"]}  # fmt: skip
    assert decays == {2: 0.1, 1: 0.0}
    assert isinstance(make_optimizer(model, "muon"), MuonAdamW)
    with pytest.raises(ValueError, match="no trainable parameter"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False))


def test_schedules():
    # warm-up 0.2: at 0.1 half way up; at 0.6 half of the rest is over
    for schedule, half, end in (("constant", 1.0, 1.0), ("linear", 0.5, 0.0), ("cosine", 0.5, 0.0)):
        got = [lr_factor(schedule, p, warmup=0.2) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
        assert got == pytest.approx([0.0, 0.5, 1.0, half, end], abs=1e-12)
    assert lr_factor("cosine", 0.25) == pytest.approx(0.5 + 0.5 * 0.5**0.5)  # (1 + cos(pi / 4)) / 2
