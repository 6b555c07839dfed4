"""Stacked Adam against ``torch.optim.Adam`` on each network alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from marl.modules.optim import StackedAdam
from marl.modules.stacked import StackedMLP
from marl.streams import Streams

P, N = 2, 3


def rates(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)


def stack(networks: int = N, sizes: tuple[int, ...] = (4, 8, 1)) -> StackedMLP:
    return StackedMLP(Streams([1, 2], "init"), networks, sizes)


def data(step: int) -> Tensor:
    return torch.randn(P, N, 16, 4, generator=torch.Generator().manual_seed(step))


def loss_of(module: StackedMLP, step: int) -> Tensor:
    x = data(step)
    return (module(x).squeeze(-1) - x.sum(-1)).square().mean(-1).sum()


def alone(module: StackedMLP, p: int, n: int) -> list[Tensor]:
    """Copies of network (p, n)'s weights and biases."""
    return [q[p, n].detach().clone().requires_grad_() for q in module.parameters()]


def alone_loss(parameters: list[Tensor], x: Tensor) -> Tensor:
    w1, b1, w2, b2 = parameters
    return ((torch.relu(x @ w1 + b1) @ w2 + b2).squeeze(-1) - x.sum(-1)).square().mean()


@pytest.mark.parametrize("lr", [(1e-2, 1e-2), (1e-2, 3e-3)], ids=["one rate", "a rate per member"])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_five_steps_equal_adam_on_each_network_alone(lr, max_norm):
    module = stack()
    copies = {(p, n): alone(module, p, n) for p in range(P) for n in range(N)}
    adams = {(p, n): torch.optim.Adam(q, lr=lr[p]) for (p, n), q in copies.items()}
    optimizer = StackedAdam(module, rates(*lr), max_norm)
    for step in range(5):
        norm = optimizer.step(loss_of(module, step))
        for (p, n), adam in adams.items():
            adam.zero_grad()
            alone_loss(copies[p, n], data(step)[p, n]).backward()
            limit = float("inf") if max_norm is None else max_norm
            before = torch.nn.utils.clip_grad_norm_(copies[p, n], limit)
            torch.testing.assert_close(norm[p, n], before, rtol=1e-4, atol=1e-6)
            adam.step()
    for (p, n), q in copies.items():
        for have, want in zip(module.parameters(), q, strict=True):
            torch.testing.assert_close(have[p, n], want, rtol=1e-5, atol=1e-5)


def test_the_first_step_moves_every_weight_by_its_members_rate():
    """m / sqrt(v) = g / |g| at Adam's first step: the move is the rate, against the gradient's sign."""
    module = stack(sizes=(4, 1))
    before = module.flat.data.clone()
    optimizer = StackedAdam(module, rates(0.5, 0.125))
    optimizer.step(sum(p.sum() for p in module.parameters()))  # every gradient is 1
    moved = before - module.flat.data
    torch.testing.assert_close(moved[0], torch.full_like(moved[0], 0.5), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moved[1], torch.full_like(moved[1], 0.125), rtol=1e-5, atol=1e-6)


def test_clipping_is_per_network_and_the_norm_is_the_one_before():
    """Gradients (3, 4), norm 5, and (.3, .4), norm .5. At max_norm 1 the first becomes (.6, .8), the other stays.

    One norm for both, sqrt(25.25) = 5.02, would shrink the second network's gradient five times for nothing.
    """
    module = StackedMLP(Streams([1], "init"), 2, (1, 1))  # one weight and one bias each
    weight, bias = module.parameters()
    optimizer = StackedAdam(module, rates(1e-3), max_norm=1.0)
    slopes = torch.tensor([3.0, 0.3]), torch.tensor([4.0, 0.4])
    norm = optimizer.step((weight.flatten() * slopes[0]).sum() + (bias.flatten() * slopes[1]).sum())
    torch.testing.assert_close(norm, torch.tensor([[5.0, 0.5]]))
    used = optimizer.flat.grad
    torch.testing.assert_close(used, torch.tensor([[[0.6, 0.8], [0.3, 0.4]]]), rtol=1e-5, atol=0)


def test_one_networks_explosion_leaves_the_others_alone():
    quiet, loud = stack(), stack()
    for module, factor in ((quiet, 1.0), (loud, 1e6)):
        optimizer = StackedAdam(module, rates(1e-2, 1e-2), max_norm=0.5)
        for step in range(2):
            x = data(step)
            each = (module(x).squeeze(-1) - x.sum(-1)).square().mean(-1)
            optimizer.step(each.sum() + (factor - 1) * each[0, 0])
    assert torch.equal(quiet.flat.data.flatten(0, 1)[1:], loud.flat.data.flatten(0, 1)[1:])
    assert not torch.equal(quiet.flat.data[0, 0], loud.flat.data[0, 0])


def test_a_step_differentiates_its_own_module_only():
    """The actor's loss runs through the critic, whose parameters and gradients must stay as they are."""
    actor, critic = stack(sizes=(4, 4)), stack()
    optimizer = StackedAdam(actor, rates(1e-2, 1e-2))
    before, actor_before = critic.flat.data.clone(), actor.flat.data.clone()
    optimizer.step(-critic(actor(data(0))).mean(-2).sum())
    assert torch.equal(critic.flat.data, before) and (critic.flat.grad == 0).all()
    assert all(p.grad is None for p in critic.parameters())
    assert not torch.equal(actor.flat.data, actor_before)


@pytest.mark.parametrize("lr", [(1e-2, 1e-2), (1e-2, 3e-3)], ids=["one rate", "a rate per member"])
def test_a_restored_optimiser_takes_the_same_next_steps_bit_for_bit(lr):
    module = stack()
    optimizer = StackedAdam(module, rates(*lr))
    assert optimizer.state_dict() == {}
    for step in range(3):
        optimizer.step(loss_of(module, step))
    saved = {k: {name: t.clone() for name, t in s.items()} for k, s in optimizer.state_dict().items()}
    weights = {k: v.clone() for k, v in module.state_dict().items()}

    other = stack()
    restored = StackedAdam(other, rates(*lr))
    for step in (7, 8):  # a past of its own, to be forgotten
        restored.step(loss_of(other, step))
    other.load_state_dict(weights)
    restored.load_state_dict(saved)
    for step in range(3, 6):
        optimizer.step(loss_of(module, step))
        restored.step(loss_of(other, step))
    assert torch.equal(module.flat.data, other.flat.data)
    assert not torch.equal(saved["0"]["exp_avg"], optimizer.state_dict()["0"]["exp_avg"])  # loaded by value


def test_an_optimiser_restored_to_before_its_first_step_has_no_past():
    module, fresh = stack(), stack()
    optimizer = StackedAdam(module, rates(1e-2, 1e-2))
    start = {k: v.clone() for k, v in module.state_dict().items()}
    optimizer.step(loss_of(module, 0))
    optimizer.load_state_dict({})
    module.load_state_dict(start)
    optimizer.step(loss_of(module, 1))
    StackedAdam(fresh, rates(1e-2, 1e-2)).step(loss_of(fresh, 1))
    assert torch.equal(module.flat.data, fresh.flat.data)
