"""Stacked convolutions against a loop of ``torch.nn.Conv2d``, and the action values built on them."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from marl.envs.base import EnvSpec
from marl.modules.conv import STACKS, ConvStack, Filters, StackedConv, sides, stack_for
from marl.modules.q_values import ActionValues, QNetwork
from marl.streams import Streams
from marl.types import UserError

P, N, B = 2, 3, 5
SEEDS = [7, 8]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def separate(stack: ConvStack, p: int, n: int) -> nn.Sequential:
    """Network (p, n) of a stack as ``torch.nn`` has it."""
    parts: list[nn.Module] = []
    for layer in stack.layers:
        assert isinstance(layer, StackedConv)
        _, _, n_out, n_in, size, _ = layer.weight.shape
        conv = nn.Conv2d(n_in, n_out, size, layer.stride)
        conv.weight.data, conv.bias.data = layer.weight[p, n].detach().clone(), layer.bias[p, n].detach().clone()
        parts += [conv, nn.ReLU()]
    return nn.Sequential(*parts, nn.Flatten())


@pytest.mark.parametrize(
    "pixels, layers",
    [
        ((4, 10, 10), STACKS["small"]),
        ((1, 40, 36), STACKS["nature"]),
        ((2, 7, 9), (Filters(3, 2, 2), Filters(5, 3, 1))),
        ((1, 1, 1), (Filters(1, 1, 1),)),
    ],
    ids=["small", "nature", "oblong", "one pixel"],
)
def test_a_stack_equals_a_loop_of_networks_in_values_and_in_gradients(pixels, layers):
    stack = ConvStack(Streams(SEEDS, "init"), N, pixels, layers)
    x = torch.randn(P, N, B, math.prod(pixels), generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = stack(x)
    assert y.shape == (P, N, B, stack.width)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((y * weight).sum(), [x, *stack.parameters()])
    for p in range(P):
        for n in range(N):
            alone, seen = separate(stack, p, n), x[p, n].detach().view(B, *pixels).requires_grad_()
            found = alone(seen)
            torch.testing.assert_close(y[p, n], found, **CLOSE)
            expected = torch.autograd.grad((found * weight[p, n]).sum(), [seen, *alone.parameters()])
            torch.testing.assert_close(gradients[0][p, n], expected[0].flatten(1), **CLOSE)
            for ours, theirs in zip(gradients[1:], expected[1:], strict=True):
                torch.testing.assert_close(ours[p, n], theirs, **CLOSE)


def test_the_comparison_tells_networks_apart_that_are_exchanged():
    stack = ConvStack(Streams(SEEDS, "init"), N, (4, 10, 10), STACKS["small"])
    x = torch.randn(P, N, B, 400, generator=torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(stack(x)[0, 1], separate(stack, 0, 2)(x[0, 1].view(B, 4, 10, 10)), **CLOSE)


def test_weights_start_uniform_within_one_over_the_root_of_the_fan_in_and_a_member_alone_starts_alike():
    conv = StackedConv(Streams(SEEDS, "init"), N, 4, Filters(50, 5, 1))
    for x in (conv.weight, conv.bias):  # fan in 4 * 5 * 5 = 100: within +-.1
        assert 0.09 < x.max() <= 0.1 and -0.1 <= x.min() < -0.09
    alone = StackedConv(Streams(SEEDS[1:], "init"), N, 4, Filters(50, 5, 1))
    assert torch.equal(alone.weight[0], conv.weight[1]) and torch.equal(alone.bias[0], conv.bias[1])


def test_the_layers_are_chosen_by_the_pictures_size():
    # 36: (36 - 8) / 4 + 1 = 8, (8 - 4) / 2 + 1 = 3, 3 - 3 + 1 = 1; 35: 7, 2, 0
    assert sides((1, 36, 84), STACKS["nature"]) == (1, 7)
    assert stack_for((4, 84, 84), "auto") == stack_for((4, 36, 36), "auto") == STACKS["nature"]
    assert stack_for((4, 10, 10), "auto") == stack_for((4, 84, 35), "auto") == STACKS["small"]
    assert stack_for((4, 84, 84), "small") == STACKS["small"]
    assert stack_for((4, 84, 84), "none") == ()
    assert ConvStack(Streams([0], "init"), 1, (4, 84, 84), STACKS["nature"]).width == 64 * 7 * 7
    assert ConvStack(Streams([0], "init"), 1, (4, 10, 10), STACKS["small"]).width == 16 * 8 * 8


@pytest.mark.parametrize(
    "pixels, conv, line",
    [
        ((1, 10, 40), "nature", "conv: nature needs pictures of 36 x 36 pixels or more, got 10 x 40; choose small"),
        ((1, 2, 40), "auto", "conv: small needs pictures of 3 x 3 pixels or more, got 2 x 40"),
    ],
)
def test_a_picture_that_is_too_small_is_refused_in_one_line(pixels, conv, line):
    with pytest.raises(UserError) as caught:
        stack_for(pixels, conv)
    assert str(caught.value) == line


# ---- action values ------------------------------------------------------------------------------------------------


def make(pixels: tuple[int, int, int] | None = None, actions: tuple[int, ...] = (2, 3), **settings: bool) -> QNetwork:
    width = math.prod(pixels or (3,))
    spec = EnvSpec("test/any", ("a", "b"), (width, width), actions, True, pixels=pixels, bytes=pixels is not None)
    return QNetwork(Streams(SEEDS, "init"), spec, (4,), **settings)


def test_without_convolutions_pictures_are_plain_numbers_bit_for_bit():
    spec = EnvSpec("test/any", ("a", "b"), (48, 48), (3, 3), True, pixels=(3, 4, 4), bytes=True)
    flat = dataclasses.replace(spec, pixels=None)
    one, other = (QNetwork(Streams(SEEDS, "init"), kind, (4,), "none") for kind in (spec, flat))
    x = torch.randint(256, (P, 2, B, 48), generator=torch.Generator().manual_seed(0)).float()
    assert one.pictures is None and torch.equal(one.flat.data, other.flat.data) and torch.equal(one(x), other(x))
    assert QNetwork(Streams(SEEDS, "init"), spec, (4,), "small").pictures is not None


def test_bytes_are_seen_divided_by_255():
    network = make((1, 3, 3))
    x = torch.randint(256, (P, 2, B, 9), generator=torch.Generator().manual_seed(0)).float()
    values = network(x)
    network.bytes = False
    torch.testing.assert_close(network(x / 255), values)
    assert not torch.allclose(network(x), values)


def test_all_parameters_of_a_picture_network_lie_in_its_one_tensor_and_its_target_follows():
    network = make((1, 3, 3))
    # 16 filters of 3 x 3 and as many biases: 160; 16 features to 4: 68; 4 to 3: 15
    assert network.flat.data.shape == (P, 2, 160 + 68 + 15)
    assert sum(p.numel() for p in network.parameters()) == network.flat.data.numel()
    target, x = network.target_copy(), torch.randn(P, 2, B, 9, generator=torch.Generator().manual_seed(0))
    network.flat.data.add_(0.1)
    assert not torch.allclose(target(x), network(x))
    target.follow(network, torch.ones(P, 1, 1))
    assert torch.equal(target(x), network(x)) and not target(x).requires_grad


def test_a_duelling_head_is_the_value_and_the_advantage_less_its_mean_over_the_agents_own_actions():
    spec = EnvSpec("test/any", ("a", "b"), (1, 1), (2, 3), True)
    network = QNetwork(Streams([0], "init"), spec, (), duelling=True)
    network.flat.data.zero_()
    network.layers[0].get_parameter("bias").data.copy_(torch.tensor([10.0, 1.0, 3.0, 8.0]).expand(1, 2, 1, 4))
    found = network(torch.zeros(1, 2, 1, 1))[0, :, 0]
    # agent 0: the mean of 1 and 3 is 2: 10 - 1, 10 + 1; agent 1: the mean of 1, 3, 8 is 4: 10 - 3, 10 - 1, 10 + 4
    assert found[0, :2].tolist() == [9.0, 11.0] and found[1].tolist() == [7.0, 9.0, 14.0]


class Table:
    """Q_j(s, a) = 100 j + 10 s + a."""

    def __call__(self, states: Tensor) -> Tensor:
        return 100 * torch.arange(states.shape[1]).view(-1, 1, 1) + 10 * states + torch.arange(3)


def test_reciprocity_asks_each_network_for_my_action_at_my_state_and_who_lacks_the_action_agrees_with_me():
    action = torch.tensor([[[1], [2]]])  # agent 0 has two actions, agent 1 three
    mask = torch.tensor([[True, True, False], [True, True, True]])
    states = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    heard = ActionValues(Table(), action, mask)
    assert heard.own(states).flatten().tolist() == [31.0, 142.0]
    peers = heard.peers(states)[0, :, :, 0]
    assert peers[0, 1] == 131 and peers[1, 0] == 142  # Q_1(3, 1); Q_0 has no action 2
    assert heard.views(states).flatten().tolist() == [31.0, 142.0]
    assert ActionValues(Table(), action, mask | True).peers(states)[0, 1, 0, 0] == 42  # Q_0(4, 2)
