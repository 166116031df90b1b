import math

import torch
from torch import nn

from tirkit.losses.entropy import entropy, token_stats


def test_entropy_by_hand():
    # p = (1/2, 1/4, 1/4): 1/2 ln 2 + 2 * 1/4 ln 4 = 1.5 ln 2; uniform over 3: ln 3; one certain: 0
    logits = torch.tensor([[0.0, -math.log(2), -math.log(2)], [5.0, 5.0, 5.0], [1e4, 0.0, 0.0]])
    want = torch.tensor([1.5 * math.log(2), math.log(3), 0.0])
    torch.testing.assert_close(entropy(logits), want, atol=1e-6, rtol=0)


def test_log_prob_of_the_target_at_a_temperature():
    # logits (2 ln 2, 0) at temperature 2 are (ln 2, 0): p = 2/3, 1/3; at temperature 1: 4/5, 1/5
    hidden = torch.tensor([[2 * math.log(2), 0.0]] * 2)
    for temperature, want in ((2.0, (2 / 3, 1 / 3)), (1.0, (4 / 5, 1 / 5))):
        logps, entropies = token_stats(nn.Identity(), hidden, torch.tensor([0, 1]), temperature)
        torch.testing.assert_close(logps.exp(), torch.tensor(want), atol=1e-6, rtol=0)
        by_hand = -sum(p * math.log(p) for p in want)
        torch.testing.assert_close(entropies, torch.tensor([by_hand] * 2), atol=1e-6, rtol=0)


def test_chunks_change_neither_values_nor_gradients():
    torch.manual_seed(0)
    head, targets, states = nn.Linear(8, 50), torch.randint(50, (23,)), torch.randn(23, 8)
    results = []
    for chunk in (100, 5):
        head.zero_grad()
        hidden = states.clone().requires_grad_()
        logps, entropies = token_stats(head, hidden, targets, 0.7, entropy_gradient=True, chunk=chunk)
        (logps.sum() + 0.3 * entropies.sum()).backward()
        results.append((logps, entropies, hidden.grad, head.weight.grad.clone(), head.bias.grad.clone()))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_entropy_is_a_constant_unless_its_gradient_is_wanted():
    hidden = torch.randn(3, 5, requires_grad=True)
    assert not token_stats(nn.Identity(), hidden, torch.tensor([0, 1, 2]))[1].requires_grad
    assert token_stats(nn.Identity(), hidden, torch.tensor([0, 1, 2]), entropy_gradient=True)[1].requires_grad
    assert token_stats(nn.Identity(), hidden, torch.tensor([0, 1, 2]), with_entropy=False)[1].tolist() == [0, 0, 0]


def test_several_targets_of_one_state_add_up():
    """One state scored by three entries, two of them of one target, is the same as three equal states."""
    torch.manual_seed(0)
    head, state, target = nn.Linear(8, 50), torch.tensor([1, 0, 1, 1]), torch.tensor([7, 9, 7, 8])
    weights, states, results = torch.tensor([1.0, 2.0, -3.0, 5.0]), torch.randn(2, 8), []
    for chunk in (100, 1, None):
        head.zero_grad()
        hidden = states.clone().requires_grad_()
        if chunk is None:
            logps, entropies = token_stats(head, hidden[state], target, entropy_gradient=True)
        else:
            logps, entropies = token_stats(head, hidden, target, entropy_gradient=True, state_N=state, chunk=chunk)
        (weights * (logps + 0.3 * entropies)).sum().backward()
        results.append((logps, entropies, hidden.grad, head.weight.grad.clone()))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_gradients_are_those_of_autograd():
    torch.manual_seed(0)
    states, target, weights = torch.randn(6, 30), torch.randint(30, (6,)), torch.randn(2, 6)
    gradients = []
    for ours in (True, False):
        hidden = states.clone().requires_grad_()
        if ours:
            logps, entropies = token_stats(nn.Identity(), hidden, target, 0.7, entropy_gradient=True)
        else:
            all_logps = (hidden / 0.7).log_softmax(-1)
            logps = all_logps.gather(1, target[:, None]).squeeze(1)
            entropies = -(all_logps.exp() * all_logps).sum(-1)
        ((weights[0] * logps).sum() + (weights[1] * entropies).sum()).backward()
        gradients.append(hidden.grad)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)


def test_low_precision_logits_are_worked_on_in_fp32():
    torch.manual_seed(0)
    states, target = torch.randn(6, 30).bfloat16().requires_grad_(), torch.randint(30, (6,))
    logps, entropies = token_stats(nn.Identity(), states, target)
    want = states.detach().float().log_softmax(-1)
    torch.testing.assert_close(logps, want.gather(1, target[:, None]).squeeze(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(entropies, -(want.exp() * want).sum(-1), atol=1e-6, rtol=0)
    logps.sum().backward()
    assert states.grad.dtype == torch.bfloat16


def test_spared_tokens_take_no_part_in_the_softmax_and_get_no_gradient():
    # logits (0, ln 3, 7): without the last token p = (1/4, 3/4); d log p_1 / dz = (-1/4, 1/4, 0)
    logits = torch.tensor([[0.0, math.log(3), 7.0]] * 4, requires_grad=True)
    flags, ids = torch.tensor([True, False, True, True]), torch.tensor([2])
    for chunk in (4, 1):
        logits.grad = None
        targets = torch.ones(4, dtype=torch.long)
        logps, _ = token_stats(nn.Identity(), logits, targets, spared_S=flags, spared_ids=ids, chunk=chunk)
        logps[0].backward()
        torch.testing.assert_close(logps[[0, 2, 3]].exp(), torch.tensor([0.75] * 3), atol=1e-6, rtol=0)
        torch.testing.assert_close(logps[1], logits[1].log_softmax(-1)[1], atol=1e-6, rtol=0)
        torch.testing.assert_close(logits.grad[0], torch.tensor([-0.25, 0.25, 0.0]), atol=1e-6, rtol=0)
