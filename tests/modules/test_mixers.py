"""The mixing networks: monotone, and the same as plain modules."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import elu

from marl.modules.mixers import QMixer, VDNMixer
from marl.modules.optim import StackedAdam, step_together
from marl.modules.stacked import StackedMLP
from marl.streams import Streams

P, N, B, S, EMBED, HYPER = 2, 3, 5, 4, 6, 7


def mixer(seeds: tuple[int, ...] = (1, 2)) -> QMixer:
    return QMixer(Streams(seeds, "init"), N, S, EMBED, HYPER)


def inputs(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Plain(nn.Module):
    """The mixing network of member p with a module for every hyper-network."""

    def __init__(self, stack: QMixer, p: int) -> None:
        super().__init__()
        self.w1 = nn.Sequential(nn.Linear(S, HYPER), nn.ReLU(), nn.Linear(HYPER, N * EMBED))
        self.w2 = nn.Sequential(nn.Linear(S, HYPER), nn.ReLU(), nn.Linear(HYPER, EMBED))
        self.v = nn.Sequential(nn.Linear(S, EMBED), nn.ReLU(), nn.Linear(EMBED, 1))
        self.b1 = nn.Linear(S, EMBED)
        first = [self.w1[0], self.w2[0], self.v[0], self.b1]
        weights = stack.first.weight[p, 0].detach().T.split(stack.widths)
        biases = stack.first.bias[p, 0, 0].detach().split(stack.widths)
        for layer, weight, bias in zip(first, weights, biases, strict=True):
            layer.weight.data, layer.bias.data = weight.clone(), bias.clone()
        for layer, stacked in ((self.w1[2], stack.w1), (self.w2[2], stack.w2), (self.v[2], stack.v)):
            layer.weight.data = stacked.weight[p, 0].detach().T.clone()
            layer.bias.data = stacked.bias[p, 0, 0].detach().clone()

    def forward(self, utilities: Tensor, state: Tensor) -> Tensor:
        """``[B, N]`` and ``[B, S]`` -> ``[B]``."""
        w1 = self.w1(state).abs().view(-1, N, EMBED)
        hidden = elu(torch.bmm(utilities[:, None], w1)[:, 0] + self.b1(state))
        return torch.bmm(hidden[:, None], self.w2(state).abs()[:, :, None])[:, 0, 0] + self.v(state)[:, 0]


def test_mixing_and_one_adam_step_are_those_of_separate_modules():
    stack, utilities, state = mixer(), inputs(P, N, B), inputs(P, B, S, seed=4)
    plain = [Plain(stack, p) for p in range(P)]
    total = stack(utilities, state)
    StackedAdam(stack, torch.full((P, 1, 1), 1e-2)).step(total.square().mean(-1).sum())
    for p, alone in enumerate(plain):
        want = alone(utilities[p].T, state[p])
        torch.testing.assert_close(total[p], want, rtol=1e-5, atol=1e-5)
        optimizer = torch.optim.Adam(alone.parameters(), 1e-2)
        want.square().mean().backward()
        optimizer.step()
        for mine, wanted in zip(Plain(stack, p).parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(0, N - 1), st.floats(0.01, 10.0))
def test_raising_a_utility_never_lowers_the_total(seed, agent, rise):
    stack = mixer((seed,))
    utilities, state = 3 * inputs(1, N, B, seed=seed), inputs(1, B, S, seed=seed + 1)
    raised = utilities.clone()
    raised[:, agent] += rise
    assert (stack(raised, state) - stack(utilities, state) >= -1e-5).all()
    utilities.requires_grad_()
    (slope,) = torch.autograd.grad(stack(utilities, state).sum(), utilities)
    assert (slope >= 0).all() and slope.max() > 0


def test_without_absolute_weights_a_utility_can_lower_the_total():
    class Signed(QMixer):
        def forward(self, utilities: Tensor, state: Tensor) -> Tensor:
            to_w1, to_w2, _, b1 = self.first(state).split(self.widths, dim=-1)
            w1 = self.w1(torch.relu(to_w1)).unflatten(-1, (N, -1))
            hidden = elu((utilities.transpose(1, 2).unsqueeze(-1) * w1).sum(-2) + b1)
            return (hidden * self.w2(torch.relu(to_w2))).sum(-1)

    stack, utilities = Signed(Streams([1, 2], "init"), N, S), inputs(P, N, B).requires_grad_()
    (slope,) = torch.autograd.grad(stack(utilities, inputs(P, B, S, seed=4)).sum(), utilities)
    assert (slope < 0).any()


def test_the_sum_of_the_utilities():
    utilities = torch.tensor([[[1.0, 2.0], [10.0, 20.0]]])  # two agents, two rows
    assert VDNMixer()(utilities, torch.zeros(1, 2, S)).tolist() == [[11.0, 22.0]]
    assert VDNMixer()(utilities).tolist() == [[11.0, 22.0]]
    assert not list(VDNMixer().parameters())


def test_a_target_copy_stays_until_it_follows():
    stack, utilities, state = mixer(), inputs(P, N, B), inputs(P, B, S)
    target, before = stack.target_copy(), stack(utilities, state)
    stack.flat.data.mul_(2)
    assert torch.equal(target(utilities, state), before)
    target.follow(stack, torch.ones(P, 1, 1))
    torch.testing.assert_close(target(utilities, state), stack(utilities, state))


def test_a_member_of_a_population_is_the_mixer_alone():
    assert torch.equal(mixer((1, 2)).flat.data[1:], mixer((2,)).flat.data)


@pytest.mark.parametrize("max_norm", [None, 0.1])
def test_agents_and_mixer_learn_from_one_loss_as_if_it_were_differentiated_for_each(max_norm):
    def made() -> tuple[StackedMLP, QMixer, list[StackedAdam], Tensor]:
        agents, mix = StackedMLP(Streams([1, 2], "agents"), N, (4, 1)), mixer()
        optimizers = [StackedAdam(m, torch.full((P, 1, 1), 1e-2), max_norm) for m in (agents, mix)]
        loss = mix(agents(inputs(P, N, B, 4)).squeeze(-1), inputs(P, B, S)).square().mean(-1).sum()
        return agents, mix, optimizers, loss

    agents, mix, optimizers, loss = made()
    norms = step_together(loss, optimizers)
    assert [n.shape for n in norms] == [(P, N), (P, 1)]
    for k in range(2):  # each module's own step from the same start
        *fresh, alone, loss = made()
        torch.testing.assert_close(norms[k], alone[k].step(loss))
        assert torch.equal(fresh[k].flat.data, (agents, mix)[k].flat.data)
