import math

import torch

from tirkit.losses.advantage import group_advantages


def test_mean_of_the_group_is_taken_off():
    # group 0: rewards 1, 3 (mean 2); group 7: 0, 0, 6 (mean 2); standing mixed
    got = group_advantages(torch.tensor([1.0, 0.0, 3.0, 0.0, 6.0]), torch.tensor([0, 7, 0, 7, 7]))
    torch.testing.assert_close(got, torch.tensor([-1.0, -2.0, 1.0, -2.0, 4.0]), atol=1e-6, rtol=0)


def test_std_is_the_sample_standard_deviation_of_the_group():
    # group 0: deviations -1, 1: variance 2 / 1; group 1: -2, -2, 4: variance 24 / 2
    rewards, groups = torch.tensor([1.0, 3.0, 0.0, 0.0, 6.0]), torch.tensor([0, 0, 1, 1, 1])
    a, b = math.sqrt(2) + 1e-4, math.sqrt(12) + 1e-4
    want = torch.tensor([-1 / a, 1 / a, -2 / b, -2 / b, 4 / b])
    torch.testing.assert_close(group_advantages(rewards, groups, std=True), want, atol=1e-6, rtol=0)


def test_nothing_is_learnt_from_one_alone_or_from_equal_rewards():
    for std in (False, True):
        got = group_advantages(torch.tensor([5.0, 2.0, 2.0]), torch.tensor([0, 1, 1]), std=std)
        assert got.tolist() == [0.0, 0.0, 0.0]
        assert group_advantages(torch.tensor([]), torch.tensor([], dtype=torch.long), std=std).shape == (0,)


def test_equal_rewards_have_exactly_no_advantage():
    # The mean of three times 0.7 is not 0.7 in fp32.
    for std in (False, True):
        assert group_advantages(torch.full((3,), 0.7), torch.zeros(3, dtype=torch.long), std).tolist() == [0, 0, 0]
    assert group_advantages(torch.tensor([]), torch.tensor([], dtype=torch.long)).tolist() == []
