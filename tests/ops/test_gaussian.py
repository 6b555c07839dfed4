"""Diagonal normal distributions: densities by hand, padding left out."""

from __future__ import annotations

import math

import torch

from marl.ops.gaussian import entropy, log_prob, sample

MASK = torch.tensor([[True, True], [True, False]])
ROOT = math.log(2 * math.pi) / 2  # .919, minus the log-density of a standard normal at 0


def test_log_density_is_the_sum_over_an_agents_own_components():
    mean, log_std = torch.zeros(1, 2, 1, 2), torch.tensor([0.0, math.log(2)]).expand(1, 2, 1, 2)
    action = torch.tensor([1.0, 2.0]).expand(1, 2, 1, 2)
    # first: -1/2 - ROOT; second, one deviation of 2 away: -1/2 - log 2 - ROOT; agent 1 has the first only
    want = torch.tensor([-1 - math.log(2) - 2 * ROOT, -0.5 - ROOT])
    torch.testing.assert_close(log_prob(action, mean, log_std, MASK).flatten(), want)


def test_densities_are_those_of_torch_over_any_rows():
    g = torch.Generator().manual_seed(0)
    action, mean = torch.randn(2, 3, 2, 4, 5, 2, generator=g)
    log_std, every = torch.randn(3, 2, 1, 1, 2, generator=g), torch.ones(2, 2, dtype=torch.bool)
    normal = torch.distributions.Normal(mean, log_std.exp().expand_as(mean))
    torch.testing.assert_close(log_prob(action, mean, log_std, every), normal.log_prob(action).sum(-1))
    torch.testing.assert_close(entropy(log_std, every).expand(3, 2, 4, 5), normal.entropy().sum(-1))


def test_entropy_is_the_sum_over_an_agents_own_components():
    log_std = torch.tensor([0.0, 1.0]).expand(1, 1, 1, 2)  # one for both agents
    # a component has log_std + 1/2 + ROOT
    want = torch.tensor([2 + 2 * ROOT, 0.5 + ROOT])
    torch.testing.assert_close(entropy(log_std, MASK).flatten(), want)


def test_padding_gets_no_gradient_whatever_it_holds():
    mean = torch.zeros(1, 2, 1, 2, requires_grad=True)
    log_std = torch.zeros(1, 2, 1, 2, requires_grad=True)
    value = log_prob(torch.full((1, 2, 1, 2), 3.0), mean, log_std, MASK).sum() + entropy(log_std, MASK).sum()
    for gradient in torch.autograd.grad(value, [mean, log_std]):
        assert (gradient[0, :, 0] != 0).tolist() == MASK.tolist()


def test_a_sample_is_the_mean_and_as_many_deviations_as_the_noise_says():
    drawn = sample(torch.tensor([1.0]), torch.tensor([math.log(2)]), torch.tensor([-1.5]))
    torch.testing.assert_close(drawn, torch.tensor([-2.0]))  # 1 - 1.5 * 2
