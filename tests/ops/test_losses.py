"""A mean over the batch, a sum over networks; the clipped losses by hand."""

from __future__ import annotations

import pytest
import torch

from marl import registry
from marl.config import check_ranges, replace
from marl.ops.losses import clipped_surrogate, clipped_value_loss, huber, masked_mean, sum_of_means
from marl.types import UserError


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


def test_rows_that_do_not_count_change_nothing_whatever_they_hold():
    x = torch.tensor([[[1.0, 3.0, torch.nan], [10.0, 5.0, 5.0]]], requires_grad=True)
    mask = torch.tensor([[[True, True, False], [True, False, False]]])
    loss = sum_of_means(x, mask)
    assert loss.item() == 12.0  # (1 + 3) / 2 + 10
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.tolist() == [[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]]


def test_a_mask_of_all_agents_spreads_and_rows_may_have_two_dimensions():
    x = torch.arange(8.0).view(1, 2, 2, 2)
    mask = torch.tensor([[True, True], [True, False]])  # rows 0, 1, 2 of 0 .. 3 and of 4 .. 7: means 1 and 5
    assert masked_mean(x, mask).tolist() == [[1.0, 5.0]]
    assert masked_mean(x, torch.zeros(1, 1, 2, 2, dtype=torch.bool)).tolist() == [[0.0, 0.0]]


def surrogate(ratio: float, advantage: float) -> tuple[float, float]:
    """Loss and its slope in the ratio for clip = .2."""
    logp = torch.tensor([[[ratio]]]).log().requires_grad_()
    loss = clipped_surrogate(logp, torch.zeros(1, 1, 1), torch.tensor([[[advantage]]]), torch.full((1, 1, 1), 0.2))
    (slope,) = torch.autograd.grad(loss.sum(), logp)
    return round(loss.item(), 5), round(slope.item() / ratio, 5)


def test_the_surrogate_stops_paying_beyond_the_clip_but_never_for_amends():
    assert surrogate(1.1, 2.0) == (-2.2, -2.0)  # inside
    assert surrogate(1.5, 2.0) == (-2.4, 0.0)  # 1.2 * 2, flat
    assert surrogate(0.5, -2.0) == (1.6, 0.0)  # .8 * 2, flat
    assert surrogate(0.5, 2.0) == (-1.0, -2.0)  # a good action become rare: not clipped
    assert surrogate(1.5, -2.0) == (3.0, 2.0)  # a bad one become frequent: not clipped


def test_members_clip_at_their_own_width():
    clip = torch.tensor([0.1, 0.5]).view(2, 1, 1)
    loss = clipped_surrogate(torch.ones(2, 3, 4), torch.zeros(2, 3, 4), torch.ones(2, 3, 4), clip)
    torch.testing.assert_close(loss[:, 0, 0], torch.tensor([-1.1, -1.5]))  # the ratio e is beyond both


def test_the_value_loss_takes_the_worse_of_clipped_and_free():
    def loss(value: float, target: float) -> float:
        number = [torch.tensor([[[x]]]) for x in (value, 0.0, target, 0.5)]
        return clipped_value_loss(*number, delta=None).item()

    assert loss(0.25, 1.0) == 0.28125  # within the clip: (.75)^2 / 2
    assert loss(1.0, 1.0) == 0.125  # there already, but no farther than .5 is believed: (.5)^2 / 2
    assert loss(-1.0, 1.0) == 2.0  # the wrong way: the free error, 2^2 / 2, is the larger


def test_huber_is_a_parabola_and_then_a_line():
    error = torch.tensor([0.0, 1.0, -2.0, 5.0, -5.0])
    # up to 2: 0, .5, 2; beyond: 2 (5 - 1) = 8
    assert huber(error, 2.0).tolist() == [0.0, 0.5, 2.0, 8.0, 8.0]
    assert huber(error, None).tolist() == [0.0, 0.5, 2.0, 12.5, 12.5]


@pytest.mark.parametrize("algorithm", ["dqn", "mappo", "maptf-mappo"])
def test_a_delta_of_zero_is_refused_in_one_line(algorithm):
    """The line would be flat, and torch knows no such loss."""
    config = registry.algorithm(algorithm).Config()
    with pytest.raises(UserError, match=r"^huber_delta: expected 1e-06 or more, got 0.0$"):
        check_ranges(replace(config, "huber_delta", 0.0))
    for delta in (1e-6, None):
        check_ranges(replace(config, "huber_delta", delta))


def test_the_value_loss_uses_huber_where_asked():
    number = [torch.tensor([[[x]]]) for x in (5.0, 0.0, 0.0, 9.0)]
    assert clipped_value_loss(*number, delta=2.0).item() == 8.0
