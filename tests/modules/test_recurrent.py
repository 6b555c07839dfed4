"""Stacked recurrent networks against ``nn.Linear``, ``nn.GRU``, ``nn.Linear`` one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from marl.modules.optim import StackedAdam
from marl.modules.recurrent import StackedGRU, StackedRNN
from marl.streams import Streams

P, N, T, B, IN, H, OUT = 2, 3, 7, 4, 5, 8, 6


def rnn(networks: int = N, seeds: tuple[int, ...] = (11, 12)) -> StackedRNN:
    return StackedRNN(Streams(seeds, "init"), networks, IN, H, OUT)


class Alone(nn.Module):
    """Network (p, n) of a stack, made of torch's own modules with copies of its weights."""

    def __init__(self, stack: StackedRNN, p: int, n: int) -> None:
        super().__init__()
        self.enter, self.gru, self.leave = nn.Linear(IN, H), nn.GRU(H, H), nn.Linear(H, OUT)
        for mine, layer in ((self.enter, stack.enter), (self.leave, stack.leave)):
            mine.weight.data = layer.weight[p, n].detach().T.clone()
            mine.bias.data = layer.bias[p, n, 0].detach().clone()
        self.gru.weight_ih_l0.data = stack.gru.weight_x[p, n].detach().T.clone()
        self.gru.weight_hh_l0.data = stack.gru.weight_h[p, n].detach().T.clone()
        self.gru.bias_ih_l0.data = stack.gru.bias_x[p, n, 0].detach().clone()
        self.gru.bias_hh_l0.data = stack.gru.bias_h[p, n, 0].detach().clone()

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """``[T, B, in]`` and ``[B, H]``."""
        hidden, _ = self.gru(torch.relu(self.enter(x)), memory[None].contiguous())
        return self.leave(hidden), hidden


def inputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("networks", [N, 1])
def test_every_network_computes_what_it_computes_alone(networks):
    stack, x, memory = rnn(networks), inputs(P, N, T, B, IN), inputs(P, N, B, H)
    y, hidden = stack.unroll(x, memory)
    for p in range(P):
        for n in range(N):
            want_y, want_hidden = Alone(stack, p, n % networks)(x[p, n], memory[p, n])
            torch.testing.assert_close(y[p, n], want_y, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(hidden[p, n], want_hidden, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("networks", [N, 1])
def test_one_adam_step_moves_every_weight_as_it_would_alone(networks):
    stack, x, memory = rnn(networks), inputs(P, N, T, B, IN), inputs(P, N, B, H)
    separate = {(p, n): Alone(stack, p, n) for p in range(P) for n in range(networks)}
    y, _ = stack.unroll(x, memory)
    StackedAdam(stack, torch.full((P, 1, 1), 1e-2)).step(y.square().mean((2, 3, 4)).sum())
    for (p, n), alone in separate.items():
        agents = range(N) if networks == 1 else [n]
        optimizer = torch.optim.Adam(alone.parameters(), 1e-2)
        sum(alone(x[p, k], memory[p, k])[0].square().mean() for k in agents).backward()
        optimizer.step()
        for mine, want in zip(Alone(stack, p, n).parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("networks", [N, 1])
def test_an_episode_that_starts_inside_the_sequence_is_run_as_if_it_stood_alone(networks):
    stack, x, memory = rnn(networks), inputs(P, N, T, B, IN), inputs(P, N, B, H)
    start = torch.zeros(P, N, T, B, dtype=torch.bool)
    start[1, 2, 3, 0] = True  # steps 0 .. 2 are one episode, 3 .. 6 the next
    y, hidden = stack.unroll(x, memory, start)
    alone = Alone(stack, 1, 2 % networks)
    before, _ = alone(x[1, 2, :3, :1], memory[1, 2, :1])
    after, last = alone(x[1, 2, 3:, :1], torch.zeros(1, H))
    torch.testing.assert_close(y[1, 2, :, :1], torch.cat([before, after]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(hidden[1, 2, 3:, :1], last, rtol=1e-5, atol=1e-6)
    untouched, _ = stack.unroll(x, memory)
    start[1, 2, 3, 0] = False
    others = torch.ones(P, N, B, dtype=torch.bool)
    others[1, 2, 0] = False
    torch.testing.assert_close(y.transpose(2, 3)[others], untouched.transpose(2, 3)[others])
    assert not torch.allclose(y[1, 2, 3:, 0], untouched[1, 2, 3:, 0])  # forgetting the start is seen


def test_a_start_at_the_first_step_forgets_the_memory():
    stack, x, memory = rnn(), inputs(P, N, 1, B, IN), inputs(P, N, B, H)
    y, _ = stack.unroll(x, memory, torch.ones(P, N, 1, B, dtype=torch.bool))
    torch.testing.assert_close(y, stack.unroll(x, torch.zeros_like(memory))[0])


def test_nothing_learnt_flows_back_over_the_start_of_an_episode():
    stack, x, memory = rnn(), inputs(P, N, T, B, IN).requires_grad_(), inputs(P, N, B, H).requires_grad_()
    start = torch.zeros(P, N, T, B, dtype=torch.bool)
    start[:, :, 3] = True
    y, _ = stack.unroll(x, memory, start)
    by_x, by_memory = torch.autograd.grad(y[:, :, 4].sum(), [x, memory])
    assert not by_x[:, :, :3].any() and not by_memory.any()
    assert by_x[:, :, 3].any() and by_x[:, :, 4].any() and not by_x[:, :, 5:].any()


@pytest.mark.parametrize("networks", [N, 1])
def test_steps_one_by_one_are_the_sequence(networks):
    stack, x, memory = rnn(networks), inputs(P, N, T, B, IN), inputs(P, N, B, H)
    whole, hidden = stack.unroll(x, memory)
    for t in range(T):
        y, memory = stack.step(x[:, :, t], memory)
        torch.testing.assert_close(y, whole[:, :, t], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(memory, hidden[:, :, -1], rtol=1e-5, atol=1e-6)


def test_the_backward_pass_is_the_derivative():
    gru = StackedGRU(Streams([0, 1], "init"), 2, 3, 2).double()
    x, hidden = inputs(4, 3, 2, 3).double().requires_grad_(), inputs(4, 2, 2).double().requires_grad_()
    keep = (inputs(4, 3, 2, 1) > 0).double()
    for mask in (keep, None):
        assert torch.autograd.gradcheck(lambda x, h, *_, m=mask: gru(x, h, m), (x, hidden, *gru.parameters()))


def test_weights_start_uniform_on_one_over_the_root_of_hidden():
    gru = StackedGRU(Streams([0], "init"), 1, 30, 16)  # 1 / sqrt(16) = 1/4
    for p in gru.parameters():
        assert 0.2 < p.abs().max() <= 0.25


def test_a_member_of_a_population_is_the_run_alone_bit_for_bit():
    both, second = rnn(seeds=(11, 12)), rnn(seeds=(12,))
    x, memory = inputs(P, N, T, B, IN), inputs(P, N, B, H)
    assert torch.equal(both.flat.data[1:], second.flat.data)
    torch.testing.assert_close(both.unroll(x, memory)[0][1:], second.unroll(x[1:], memory[1:])[0])


def test_a_target_copy_follows_its_network():
    stack = rnn()
    target = stack.target_copy()
    start = target.flat.data.clone()
    stack.flat.data.add_(1.0)
    assert torch.equal(target.flat.data, start)
    target.follow(stack, torch.tensor([[[0.25]], [[1.0]]]))
    torch.testing.assert_close(target.flat.data[0], start[0] + 0.25)  # a quarter of the way to + 1
    torch.testing.assert_close(target.gru.weight_h[1], stack.gru.weight_h[1])  # the layers view what moved
    assert not any(p.requires_grad for p in target.parameters())
