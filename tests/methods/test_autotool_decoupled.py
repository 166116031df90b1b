"""The entropy controller: gates, coefficients, special cases; and what pushes the mode token, and how hard."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from tirkit.losses.advantage import group_advantages
from tirkit.losses.policy import clipped_surrogate
from tirkit.methods.autotool.decoupled import (
    EntropyControl,
    EntropyState,
    EntropyTerm,
    bonus,
    decoupled,
    entropy_bonus,
    mode_floor,
    skywork,
    trajectory_entropies,
    unified,
)
from tirkit.types import Mode

MODES: tuple[Mode, ...] = ("think", "no_think", "think", "no_think")
CONTROL = decoupled(short=0.01, long=0.02, short_target=0.1, long_target=0.2, rate=0.002)


def covered(control: EntropyControl, modes: tuple[Mode | None, ...] = MODES) -> Tensor:
    return torch.tensor([[term.covers(mode, True, True) for mode in modes] for term in control.terms])


def gradient(control: EntropyControl, means: list[float], firsts: list[float] | None = None) -> list[list[float]]:
    """Of the bonus by each trajectory's mean entropy, and by that of its mode token."""
    mean_R = torch.tensor(means, requires_grad=True)
    first_R = torch.tensor(firsts or [0.0] * len(means), requires_grad=True)
    value, _ = entropy_bonus(control, control.start(), mean_R=mean_R, first_R=first_R, covered_KR=covered(control))
    value.backward()
    return [[0.0] * len(means) if x.grad is None else x.grad.tolist() for x in (mean_R, first_R)]


def test_entropies_of_trajectories_by_hand() -> None:
    entropy_N = torch.tensor([0.2, 0.4, 0.9, 0.3, 0.3, 0.6])
    mean_R, first_R = trajectory_entropies(entropy_N, torch.tensor([0, 0, 1, 3, 3, 3]), 4)  # row 2 has no token
    torch.testing.assert_close(mean_R, torch.tensor([0.3, 0.9, 0.0, 0.4]), atol=1e-6, rtol=0)
    torch.testing.assert_close(first_R, torch.tensor([0.2, 0.9, 0.0, 0.3]), atol=1e-6, rtol=0)
    nothing = trajectory_entropies(torch.tensor([]), torch.tensor([], dtype=torch.long), 1)
    assert [x.tolist() for x in nothing] == [[0.0], [0.0]]


def test_the_gate_is_open_up_to_the_target_and_is_itself_no_function_of_the_entropy() -> None:
    # think, target 0.2: just below and at it 0.02, just above 0; no-think, target 0.1: 0.01 and 0
    assert gradient(CONTROL, [0.1999, 0.0999, 0.2, 0.1001])[0] == pytest.approx([0.02, 0.01, 0.02, 0])
    assert gradient(CONTROL, [0.2001, 0.0, 0.0, 0.3])[0] == pytest.approx([0, 0.01, 0.02, 0])


def test_the_bonus_and_its_sums_by_hand() -> None:
    mean_R = torch.tensor([0.1, 0.05, 0.5, 0.3])
    value, sums = entropy_bonus(
        CONTROL, CONTROL.start(), mean_R=mean_R, first_R=torch.zeros(4), covered_KR=covered(CONTROL)
    )
    # only the first two gates are open: 0.02 * 0.1 + 0.01 * 0.05
    assert value.item() == pytest.approx(0.0025)
    # terms in order: no_think (0.05, 0.3), think (0.1, 0.5)
    assert sums["entropy"].tolist() == pytest.approx([0.35, 0.6])
    assert sums["covered"].tolist() == [2, 2]
    assert sums["open"].tolist() == [1, 1]


def test_a_step_below_the_gate_raises_entropy_and_none_above_moves_it() -> None:
    for target, moves in ((0.7, True), (0.6, False)):  # p = (0.7, 0.3): 0.611 nats
        control = EntropyControl((EntropyTerm(coefficient=1.0, target=target),))
        logits = torch.tensor([0.7, 0.3]).log().requires_grad_()
        entropy = -(logits.softmax(0) * logits.log_softmax(0)).sum()[None]
        value, _ = entropy_bonus(
            control, control.start(), mean_R=entropy, first_R=entropy, covered_KR=torch.tensor([[True]])
        )
        (-value).backward()
        assert logits.grad is not None
        assert (logits.grad.abs().max().item() > 0) is moves
        stepped = (logits - 0.1 * logits.grad).softmax(0)
        rise = -(stepped * stepped.log()).sum().item() - entropy.item()
        assert rise > 1e-3 if moves else rise == pytest.approx(0, abs=1e-6)


def test_the_coefficient_moves_against_the_mean_and_stays_in_its_bounds() -> None:
    def moved(sums: tuple[float, float], counts: tuple[float, float], beta: float = 0.02) -> tuple[float, ...]:
        return CONTROL.advance(EntropyState((0.01, beta)), sums, counts).coefficients

    # β_l <- β_l - 0.002 * (mean - 0.2); β_s is fixed
    assert moved((0.0, 0.3), (2, 3)) == pytest.approx((0.01, 0.02 + 0.002 * 0.1))
    assert moved((9.0, 3.6), (2, 3)) == pytest.approx((0.01, 0.02 - 0.002 * 1.0))
    assert moved((5.0, 0.0), (2, 0)) == (0.01, 0.02)  # no long trajectory: unchanged
    assert moved((0.0, 300.0), (0, 3))[1] == 0.0  # 0.02 - 0.002 * 99.8 < 0
    assert moved((0.0, 0.0), (0, 3), beta=0.09999)[1] == 0.1  # 0.09999 + 0.002 * 0.2 > β_max


def test_skywork_moves_by_a_fixed_step() -> None:
    control = skywork(coefficient=0.001, target=0.2, rate=0.0005, maximum=0.005)
    at = [control.advance(EntropyState((beta,)), (h,), (1.0,)).coefficients[0] for beta, h in SKYWORK]
    assert at == pytest.approx([0.0015, 0.0005, 0.001, 0.005, 0.0])


SKYWORK = [(0.001, 0.0), (0.001, 5.0), (0.001, 0.2), (0.0049, 0.1), (0.0004, 0.3)]


def test_static_and_unified_are_other_settings_of_the_same_code() -> None:
    static = decoupled(short=0.01, long=0.02, rate=0.0)
    assert not static.adapts
    assert static.advance(static.start(), (0.0, 0.0), (4, 4)) == static.start()
    assert gradient(static, [0.19, 0.09, 0.5, 0.5])[0] == pytest.approx([0.02, 0.01, 0, 0])
    # one target and one coefficient: whatever the mode, trajectories without any too
    assert gradient(unified(coefficient=0.03, target=0.2), [0.19, 0.19, 0.21, 0.21])[0] == pytest.approx(
        [0.03] * 2 + [0] * 2
    )
    assert covered(unified(), (None, "think")).tolist() == [[True, True]]
    # no gate at all
    assert gradient(bonus(0.05) or unified(), [9.0, 0.0, 1.0, 2.0])[0] == pytest.approx([0.05] * 4)
    assert bonus(0.0) is None


def test_the_floor_looks_at_the_mode_token_alone() -> None:
    control = mode_floor(coefficient=0.1, target=0.3)
    by_mean, by_first = gradient(control, [0.0] * 4, [0.29, 0.31, 0.0, 0.69])
    assert by_mean == [0] * 4
    assert by_first == pytest.approx([0.1, 0, 0.1, 0])


@pytest.mark.parametrize(
    ("term", "mode", "well_formed", "trained", "want"),
    [
        (EntropyTerm("think"), "think", True, True, True),
        (EntropyTerm("think"), "no_think", True, True, False),
        (EntropyTerm("think"), None, True, True, False),
        (EntropyTerm("all"), None, True, False, True),
        (EntropyTerm("all"), "think", False, True, False),  # malformed: β_i = 0
        (EntropyTerm("all", "mode"), "think", True, True, True),
        (EntropyTerm("all", "mode"), "think", True, False, False),  # its tag was given, not chosen
        (EntropyTerm("all", "mode"), None, True, True, False),
    ],
)
def test_what_a_term_covers(term: EntropyTerm, mode: Mode | None, well_formed: bool, trained: bool, want: bool) -> None:
    assert term.covers(mode, well_formed, trained) is want


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="finite target"):
        EntropyTerm("think", rate=0.1)
    with pytest.raises(ValueError, match="start within its maximum"):
        EntropyTerm("think", coefficient=1.0, target=0.2, rate=0.1)
    with pytest.raises(ValueError, match="negative"):
        EntropyTerm(coefficient=-0.1)
    with pytest.raises(ValueError, match="same trajectories"):
        EntropyControl((EntropyTerm("think"), EntropyTerm("think", target=1.0)))
    EntropyControl((EntropyTerm("think"), EntropyTerm("think", "mode")))


# The push on the mode token. One task; a rollout thinks with probability q and is then right with probability p_t, else
# with p_n; AutoTool's table says what that is worth. What a group of 8 does to logit(q), exactly: over all its
# compositions (k think, a of them right, b of the others right), each as often as it occurs.

G = 8
COMPOSITIONS = [(k, a, b) for k in range(G + 1) for a in range(k + 1) for b in range(G - k + 1)]


def binomial(n: int, k: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def push(p_n: float, p_t: float, q: float, std: bool) -> float:
    """-dL/dlogit(q) of our own loss, in units of q (1 - q), which is what the softmax itself does to it."""
    logit = torch.tensor(math.log(q / (1 - q)), dtype=torch.float64, requires_grad=True)
    logp = torch.stack([torch.nn.functional.logsigmoid(-logit), torch.nn.functional.logsigmoid(logit)])
    thinks = torch.tensor([[int(i < k) for i in range(G)] for k, _, _ in COMPOSITIONS])
    rewards = torch.tensor([table(k, a, b) for k, a, b in COMPOSITIONS])
    odds = [binomial(G, k, q) * binomial(k, a, p_t) * binomial(G - k, b, p_n) for k, a, b in COMPOSITIONS]
    group_B = torch.arange(len(COMPOSITIONS)).repeat_interleave(G)
    loss, _ = clipped_surrogate(
        logps_N=logp[thinks.flatten()],
        old_logps_N=logp[thinks.flatten()].detach(),
        advantages_N=group_advantages(rewards.flatten(), group_B, std).double(),
        weights_N=torch.tensor(odds, dtype=torch.float64).repeat_interleave(G) / G,
        clip_low=0.2,
        clip_high=0.2,
    )
    loss.backward()
    assert logit.grad is not None
    return -logit.grad.item() / (q * (1 - q))


def table(k: int, a: int, b: int) -> list[float]:
    return [0.5 if i < a else -0.5 if i < k else 1.0 if i < k + b else -1.0 for i in range(G)]


RATES = {"easy": (1.0, 0.96), "hard": (0.34, 0.71), "hard, late": (0.40, 0.90), "C2, late": (0.5, 0.97)}


def test_without_std_the_push_is_the_threshold_rule() -> None:
    """Expected: (1 - 1/G) (E[R | think] - E[R | no-think]) = 7/8 (p_t - 0.5 - (2 p_n - 1)), whatever q is."""
    for (p_n, p_t), q in itertools.product(RATES.values(), (0.05, 0.2, 0.5, 0.8, 0.95)):
        assert push(p_n, p_t, q, std=False) == pytest.approx(7 / 8 * (p_t - 0.5 - (2 * p_n - 1)), abs=1e-5)


def test_with_std_easy_groups_weigh_several_times_as_much() -> None:
    """Tasks half easy, half hard, one shared decision at q = 1/2: the table says think, std says do not."""
    plain = {name: push(*RATES[name], q=0.5, std=False) for name in ("easy", "hard")}
    divided = {name: push(*RATES[name], q=0.5, std=True) for name in ("easy", "hard")}
    # by the rule above: 7/8 * (-0.54) = -0.4725 and 7/8 * 0.53 = 0.46375
    assert plain == pytest.approx({"easy": -0.4725, "hard": 0.46375}, abs=1e-5)
    assert 3.5 < divided["easy"] / plain["easy"] < 5
    assert divided["hard"] / plain["hard"] < 1.4
    assert sum(divided.values()) < 10 * sum(plain.values()) < 0


def test_with_std_the_rule_fails_once_thinking_dominates() -> None:
    p_n, p_t = 0.55, 0.97  # 0.97 > 2 * 0.55 - 0.5 = 0.6: thinking pays
    assert push(p_n, p_t, 0.5, std=False) == pytest.approx(push(p_n, p_t, 0.95, std=False), abs=1e-5)
    assert push(p_n, p_t, 0.5, std=True) > 0 > push(p_n, p_t, 0.95, std=True)


def test_the_published_term_reaches_the_mode_token_by_its_share_of_thoughts_and_their_length() -> None:
    """β H_i over thoughts of |o| tokens, the mode token one of them: q β / |o| dh/dlogit; the floor: β dh/dlogit."""
    q, length, beta = 0.1, 11, 0.01
    logit = torch.tensor(math.log(q / (1 - q)), requires_grad=True)
    p = torch.sigmoid(logit)
    first = -p * p.log() - (1 - p) * (1 - p).log()
    gradients = []
    # ten trajectories, one of which thinks (q = 0.1); beyond the mode token nothing depends on its logit
    modes: tuple[Mode, ...] = ("think", *["no_think"] * 9)
    for control in (decoupled(long=beta, long_target=0.5), mode_floor(beta, target=0.5)):
        value, _ = entropy_bonus(
            control,
            control.start(),
            mean_R=(first / length).expand(10),
            first_R=first.expand(10),
            covered_KR=covered(control, modes),
        )
        gradients.append(torch.autograd.grad(value / len(modes), logit, retain_graph=True)[0].item())
    # dh/dlogit = q (1 - q) ln((1 - q) / q)
    slope = q * (1 - q) * math.log((1 - q) / q)
    assert gradients == pytest.approx([q * beta / length * slope, beta * slope], rel=1e-4)
