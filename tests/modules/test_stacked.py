"""Stacked networks against the same networks one by one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from marl.modules.stacked import StackedLinear, StackedMLP
from marl.streams import Streams

P, N, B = 2, 3, 5
SEEDS = [11, 12]


def mlp(networks: int = N, sizes: tuple[int, ...] = (4, 8, 6, 2), seeds: list[int] = SEEDS) -> StackedMLP:
    return StackedMLP(Streams(seeds, "init"), networks, sizes)


def single(stack: StackedMLP, p: int, n: int) -> nn.Sequential:
    """Network (p, n) made of ``torch.nn.Linear`` with copies of its weights."""
    layers: list[nn.Module] = []
    for layer in stack.layers:
        linear = nn.Linear(layer.weight.shape[2], layer.weight.shape[3])
        linear.weight.data = layer.weight[p, n].detach().T.clone()
        linear.bias.data = layer.bias[p, n, 0].detach().clone()
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def inputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def test_a_linear_layer_is_x_w_plus_b():
    layer = StackedLinear(Streams([0], "init"), 1, 2, 2)
    layer.weight.data[0, 0] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    layer.bias.data[0, 0, 0] = torch.tensor([10.0, 20.0])
    # (1, 2) [[1, 2], [3, 4]] + (10, 20) = (1 + 6 + 10, 2 + 8 + 20)
    assert layer(torch.tensor([[[1.0, 2.0]]])).flatten().tolist() == [17.0, 30.0]


def test_every_network_computes_what_it_computes_alone():
    stack, x = mlp(), inputs(P, N, B, 4)
    y = stack(x)
    for p in range(P):
        for n in range(N):
            torch.testing.assert_close(y[p, n], single(stack, p, n)(x[p, n]))


def test_one_network_serves_all_agents_when_shared():
    stack, x = mlp(networks=1), inputs(P, N, B, 4)
    y = stack(x)
    for p in range(P):
        for n in range(N):
            torch.testing.assert_close(y[p, n], single(stack, p, 0)(x[p, n]))


def test_a_part_of_the_networks_can_be_run():
    stack, x = mlp(networks=4), inputs(P, 2, B, 4)
    y = stack.run(x, slice(None, None, 2))
    for p in range(P):
        for k, n in enumerate((0, 2)):
            torch.testing.assert_close(y[p, k], single(stack, p, n)(x[p, k]))


def test_the_gradient_of_each_network_is_the_one_alone_and_never_reaches_another():
    stack, x = mlp(), inputs(P, N, B, 4)
    loss = stack(x).square().sum(-1).mean(-1)
    gradients = torch.autograd.grad(loss.sum(), list(stack.parameters()), retain_graph=True)
    for p in range(P):
        for n in range(N):
            alone = single(stack, p, n)
            alone(x[p, n]).square().sum(-1).mean().backward()
            expected = [g.grad.T if g.dim() == 2 else g.grad[None] for g in alone.parameters()]
            for gradient, want in zip(gradients, expected, strict=True):
                torch.testing.assert_close(gradient[p, n], want, rtol=1e-5, atol=1e-6)
    first_only = torch.autograd.grad(loss[0, 0], list(stack.parameters()))
    for gradient in first_only:
        assert (gradient[0, 0] != 0).any()
        assert (gradient.flatten(0, 1)[1:] == 0).all()


def test_weights_start_uniform_within_one_over_the_root_of_the_inputs():
    stack = mlp(sizes=(16, 64, 1))
    for layer, bound in zip(stack.layers, (1 / 4, 1 / 8), strict=True):  # 1 / sqrt(16), 1 / sqrt(64)
        weights = layer.weight.detach().flatten()
        assert weights.abs().max() <= bound and weights.abs().max() > 0.9 * bound
        assert layer.bias.abs().max() <= bound
        assert abs(weights.square().mean() / (bound**2 / 3) - 1) < 0.2  # variance of the uniform law: bound^2 / 3


def test_a_member_starts_alike_alone_and_in_a_population():
    together, alone = mlp(seeds=[1, 2, 3]), mlp(seeds=[2])
    assert torch.equal(together.flat.data[1:2], alone.flat.data)
    assert not torch.equal(together.flat.data[0], together.flat.data[1])


def test_targets_follow_by_each_members_own_fraction():
    online, target = mlp(), mlp().target_copy()
    online.flat.data.fill_(3.0)
    target.flat.data.fill_(1.0)
    target.follow(online, torch.tensor([0.25, 1.0]).view(2, 1, 1))
    # 1 + .25 * (3 - 1) = 1.5; 1 + 1 * 2 = 3
    for parameter in target.parameters():
        assert (parameter[0] == 1.5).all() and (parameter[1] == 3.0).all()
    assert (online.flat.data == 3.0).all()


def test_a_target_is_equal_at_first_apart_afterwards_and_takes_no_gradient():
    online, x = mlp(), inputs(P, N, B, 4)
    target = online.target_copy()
    assert torch.equal(target(x), online(x))
    assert not target(x).requires_grad and not any(p.requires_grad for p in target.parameters())
    before = target(x)
    online.flat.data.add_(1.0)
    assert torch.equal(target(x), before) and not torch.equal(online(x), before)


@pytest.mark.parametrize("copied", [False, True])
def test_layers_are_views_of_one_tensor_also_after_loading_and_copying(copied):
    other = mlp(seeds=[5, 6])
    stack = mlp().target_copy() if copied else mlp()
    stack.load_state_dict(other.state_dict())
    assert torch.equal(stack.flat.data, other.flat.data)
    assert stack.flat.data.shape == (P, N, 4 * 8 + 8 + 8 * 6 + 6 + 6 * 2 + 2)
    stack.flat.data.zero_()
    assert all((p == 0).all() for p in stack.parameters())
    assert not any((p == 0).all() for p in other.parameters())


def test_a_plain_deep_copy_does_not_share_the_flat_tensor():
    stack = mlp()
    twin = copy.deepcopy(stack)
    twin.layers[0].weight.data.zero_()
    assert not (stack.layers[0].weight == 0).any()


def test_orthogonal_weights_have_orthonormal_vectors_times_the_gain_and_no_bias():
    stack = StackedMLP(Streams(SEEDS, "init"), N, (4, 6, 3), "tanh", gains=(2.0, 0.5))
    first, last = stack.layers
    # the shorter side's vectors: 4 rows of 6, then 3 columns of 6; each product with itself is gain^2
    torch.testing.assert_close(first.weight @ first.weight.mT, (4 * torch.eye(4)).expand(P, N, 4, 4))
    torch.testing.assert_close(last.weight.mT @ last.weight, (0.25 * torch.eye(3)).expand(P, N, 3, 3))
    assert not first.bias.any() and not last.bias.any()


def test_orthogonal_weights_of_a_member_do_not_depend_on_the_others():
    both = StackedMLP(Streams(SEEDS, "init"), N, (4, 6, 3), gains=(1.0, 1.0))
    second = StackedMLP(Streams(SEEDS[1:], "init"), N, (4, 6, 3), gains=(1.0, 1.0))
    assert torch.equal(both.flat.data[1:], second.flat.data)
    assert not torch.allclose(both.flat.data[0], both.flat.data[1])


def test_tanh_between_the_layers_and_none_at_the_end():
    stack = StackedMLP(Streams([0], "init"), 1, (1, 1, 1), "tanh")
    for layer, weight in zip(stack.layers, (1.0, 10.0), strict=True):
        layer.weight.data.fill_(weight)
        layer.bias.data.zero_()
    torch.testing.assert_close(stack(torch.ones(1, 1, 1, 1)).item(), 7.615942, rtol=1e-6, atol=0)  # 10 tanh 1
