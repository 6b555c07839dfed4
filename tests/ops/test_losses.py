"""A mean over the batch, a sum over networks."""

from __future__ import annotations

import torch

from marl.ops.losses import sum_of_means


def test_mean_over_rows_sum_over_members_and_agents():
    # rows 1, 3: mean 2; rows 10, 20: mean 15; rows 0, 4: mean 2; rows -2, 0: mean -1; sum 18
    x = torch.tensor([[[1.0, 3.0], [10.0, 20.0]], [[0.0, 4.0], [-2.0, 0.0]]])
    assert sum_of_means(x).item() == 18.0


def test_each_network_sees_the_gradient_it_would_see_alone():
    """Loss w * x, rows 1 and 3: d/dw = 2 whether the network is alone or one of 2 x 3; a plain mean gives 2 / 6."""
    x = torch.tensor([1.0, 3.0])
    w = torch.ones(2, 3, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(sum_of_means(w * x), w)
    assert torch.equal(gradient, torch.full((2, 3, 1), 2.0))
    (diluted,) = torch.autograd.grad((w * x).mean(), w)
    torch.testing.assert_close(diluted, torch.full((2, 3, 1), 1 / 3))
