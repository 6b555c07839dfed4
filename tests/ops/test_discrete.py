"""Discrete actions: hard forward, soft gradient, and no way to an action that an agent does not have."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from marl.ops.discrete import entropy, greedy, gumbel, gumbel_softmax, log_prob, mask_logits, sample

MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_a_masked_action_has_probability_zero_however_the_other_logits_lie():
    logits = torch.tensor([[-50.0, -80.0, 30.0], [1.0, 2.0, 3.0]]).view(1, 2, 1, 3)
    probability = torch.softmax(mask_logits(logits, MASK), dim=-1)
    assert probability[0, 0, 0, 2] == 0.0
    torch.testing.assert_close(probability.sum(-1), torch.ones(1, 2, 1))
    assert torch.equal(mask_logits(logits, MASK)[0, 1], logits[0, 1])


def test_a_masked_action_is_never_drawn_and_gets_no_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([[0.0, 0.0, 9.0], [0.0, 0.0, 9.0]]).view(1, 2, 1, 3).expand(1, 2, 500, 3).clone()
    logits.requires_grad_()
    noise = gumbel(torch.rand(logits.shape, generator=generator))
    sample = gumbel_softmax(mask_logits(logits, MASK), noise)
    assert sample[0, 0, :, 2].sum() == 0 and sample[0, 1, :, 2].sum() > 400
    (gradient,) = torch.autograd.grad((sample * torch.tensor([1.0, 2.0, 5.0])).sum(), logits)
    assert (gradient[0, 0, :, 2] == 0).all() and (gradient[0, 0, :, 0] != 0).all() and (gradient[0, 1] != 0).any()


def test_gumbel_noise_is_minus_log_of_minus_log():
    u = torch.tensor([math.exp(-1), math.exp(-math.e), 0.5], dtype=torch.float64)
    # -log(1) = 0; -log(e) = -1; -log(log 2) = .36651
    torch.testing.assert_close(gumbel(u), torch.tensor([0.0, -1.0, 0.366513], dtype=torch.float64), atol=1e-6, rtol=0)


def test_gumbel_noise_is_finite_at_both_ends_of_a_generator():
    """A generator gives numbers in [0, 1): the smallest is 0, the largest float32 1 - 2^-24."""
    assert gumbel(torch.tensor([0.0, 1 - 2**-24])).isfinite().all()


def test_the_largest_noisy_logit_is_a_sample_of_the_softmax():
    """Probabilities .5, .3, .2; 40 000 draws have a standard error of .0025 or less."""
    p = torch.tensor([0.5, 0.3, 0.2])
    noise = gumbel(torch.rand(40_000, 3, generator=torch.Generator().manual_seed(1)))
    frequency = greedy(p.log() + noise).mean(0)
    torch.testing.assert_close(frequency, p, atol=0.01, rtol=0)


def test_greedy_is_one_hot_and_ties_go_to_the_lowest_index():
    assert greedy(torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 4.0]])).tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]


def test_forward_is_hard_and_the_gradient_is_the_soft_ones():
    logits = torch.tensor([0.0, math.log(3.0)], requires_grad=True)
    sample = gumbel_softmax(logits, torch.zeros(2))
    assert sample.tolist() == [0.0, 1.0]
    # softmax = (1/4, 3/4); d(2 s_0 + 6 s_1)/dl_1 = 2 * (-3/16) + 6 * (3/16) = .75, and d/dl_0 is its negative
    (gradient,) = torch.autograd.grad((sample * torch.tensor([2.0, 6.0])).sum(), logits)
    torch.testing.assert_close(gradient, torch.tensor([-0.75, 0.75]))
    (hard,) = torch.autograd.grad(greedy(logits).sum() + 0 * logits.sum(), logits)
    assert (hard == 0).all()  # without the straight-through term nothing is learnt


def test_temperature_scales_the_gradient_and_leaves_the_sample():
    logits, noise = torch.tensor([0.0, 0.0], requires_grad=True), torch.tensor([0.0, 1.0])
    # softmax((0, 1) / T): at T = 1, s = .73106, s (1 - s) = .19661; at T = 2, s = .62246, s (1 - s) / 2 = .11750
    for temperature, slope in ((1.0, 0.19661), (2.0, 0.11750)):
        sample = gumbel_softmax(logits, noise, temperature)
        assert sample.tolist() == [0.0, 1.0]
        (gradient,) = torch.autograd.grad(sample[1], logits)
        torch.testing.assert_close(gradient, torch.tensor([-slope, slope]), atol=1e-5, rtol=0)


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=6), st.integers(0, 1000))
def test_a_relaxed_sample_is_one_hot_to_the_last_bit(numbers: list[float], seed: int):
    logits = torch.tensor(numbers)
    noise = gumbel(torch.rand(len(numbers), generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(gumbel_softmax(logits, noise), greedy(logits + noise))


def test_a_mask_of_the_moment_has_the_logits_shape_and_one_of_the_agents_spreads_over_all_rows():
    logits = torch.zeros(1, 2, 4, 5, 3)
    spread = mask_logits(logits, MASK)
    assert torch.equal(spread == 0, MASK[:, None, None].expand_as(logits))
    assert torch.equal(mask_logits(torch.zeros(1, 2, 3), MASK) == 0, MASK[None])
    now = torch.rand(logits.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(mask_logits(logits, now) == 0, now)


def test_log_probability_of_an_action():
    logits = torch.tensor([[1.0, 1.0, 2.0]]).log()  # probabilities 1/4, 1/4, 1/2
    for action, probability in ((0, 0.25), (2, 0.5)):
        torch.testing.assert_close(log_prob(logits, torch.tensor([action])).exp().item(), probability)


def test_entropy_of_two_open_actions_is_log_two_with_a_finite_gradient():
    logits = torch.zeros(1, 2, 1, 3, requires_grad=True)
    value = entropy(mask_logits(logits, MASK))
    torch.testing.assert_close(value.flatten(), torch.tensor([math.log(2), math.log(3)]))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert gradient.isfinite().all()
    infinite = torch.zeros(3).masked_fill(~MASK[0], -torch.inf)  # what MASKED is finite for
    assert entropy(infinite).isnan()


def test_samples_come_as_often_as_their_probability_says_and_never_from_behind_the_mask():
    logits = torch.tensor([1.0, 3.0, 9.0]).log().expand(1, 2, 4000, 3)
    drawn = sample(mask_logits(logits, MASK), torch.rand(1, 2, 4000, 3, generator=torch.Generator().manual_seed(0)))
    assert drawn.dtype == torch.int64 and drawn[0, 0].max() == 1
    # 1/4 within four standard errors, sqrt(.25 * .75 / 4000) = .0068; 9/13 likewise
    assert abs((drawn[0, 0] == 0).float().mean().item() - 0.25) < 0.028
    assert abs((drawn[0, 1] == 2).float().mean().item() - 9 / 13) < 0.03
