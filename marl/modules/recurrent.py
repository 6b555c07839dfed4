"""P x N recurrent networks as one module: over T steps only what needs the hidden state before is a loop."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from marl.modules.stacked import Stacked, StackedLinear
from marl.streams import Streams


class StackedGRU(nn.Module):
    """P x N gated recurrent units, with the arithmetic and the initialisation of ``torch.nn.GRU`` (Cho et al. 2014).

    Args:
        init: the members' random streams.
        networks: N, networks per member.
        n_in: input width.
        hidden: H, width of the hidden state.
    """

    def __init__(self, init: Streams, networks: int, n_in: int, hidden: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(hidden)

        def uniform(rows: int) -> nn.Parameter:
            return nn.Parameter((2 * init.uniform(networks, rows, 3 * hidden) - 1) * bound)

        self.weight_x, self.weight_h = uniform(n_in), uniform(hidden)  # columns: reset, update, new
        self.bias_x, self.bias_h = uniform(1), uniform(1)

    def forward(self, x: Tensor, hidden: Tensor, keep: Tensor | None) -> Tensor:
        """The hidden states after each step.

        Args:
            x: ``[P * N, T, B, in]``.
            hidden: ``[P * N, B, H]`` before the first step.
            keep: ``[P * N, T, B, 1]``, what the hidden state is multiplied by before each step; None: 1.

        Returns ``[P * N, T, B, H]``.
        """
        parameters = (self.weight_x, self.bias_x, self.weight_h, self.bias_h)
        return Recurrence.apply(x, hidden, keep, *(p.flatten(0, 1) for p in parameters))


class Recurrence(torch.autograd.Function):
    """All T steps of ``StackedGRU`` with a backward pass of its own: autograd would record a dozen operations a step.

    With h the hidden state before a step, x W_x + b_x = (x_r, x_z, x_n) and h W_h + b_h = (h_r, h_z, h_n):
    r = sigmoid(x_r + h_r), z = sigmoid(x_z + h_z), n = tanh(x_n + r h_n), and the state after it is n + z (h - n).
    Products that need no earlier step, forward and backward, are one for all steps; the rest of a step stays in cache.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, hidden: Tensor, keep: Tensor | None, *parameters: Tensor) -> Tensor:
        weight_x, bias_x, weight_h, bias_h = parameters
        (groups, steps, rows, _), size = x.shape, hidden.shape[-1]
        bias = torch.cat([bias_x[..., : 2 * size] + bias_h[..., : 2 * size], bias_x[..., 2 * size :]], dim=-1)
        gates = torch.baddbmm(bias, x.flatten(1, 2), weight_x).unflatten(1, (steps, rows))  # become (r, z, n)
        inner = x.new_empty(groups, steps, rows, size)  # h_n
        states = x.new_empty(groups, steps + 1, rows, size)
        states[:, 0] = hidden
        product = x.new_empty(groups, rows, 3 * size)
        for t in range(steps):
            h = states[:, t] if keep is None else states[:, t] * keep[:, t]
            torch.bmm(h, weight_h, out=product)
            torch.add(product[..., 2 * size :], bias_h[..., 2 * size :], out=inner[:, t])
            rz = gates[:, t, :, : 2 * size].add_(product[..., : 2 * size]).sigmoid_()
            n = gates[:, t, :, 2 * size :].addcmul_(rz[..., :size], inner[:, t]).tanh_()
            torch.lerp(n, h, rz[..., size:], out=states[:, t + 1])
        ctx.save_for_backward(x, gates, inner, states, keep, weight_x, weight_h)
        return states[:, 1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gates, inner, states, keep, weight_x, weight_h = ctx.saved_tensors
        before = states[:, :-1] if keep is None else states[:, :-1] * keep
        size = inner.shape[-1]
        by_h = torch.empty_like(gates)  # the loss's gradient by (h_r, h_z, h_n); by x_r and x_z it is the same
        by_n = torch.empty_like(inner)  # by x_n
        carried = torch.zeros_like(inner[:, 0])  # by the state after the step, from later steps
        for t in range(gates.shape[1] - 1, -1, -1):
            r, z, n = gates[:, t].split(size, dim=-1)
            grad = grads[0][:, t] + carried
            through = grad * z
            by_rz = by_h[:, t, :, : 2 * size]
            torch.ops.aten.tanh_backward(grad - through, n, grad_input=by_n[:, t])
            torch.mul(by_n[:, t], inner[:, t], out=by_rz[..., :size])
            torch.mul(grad, before[:, t] - n, out=by_rz[..., size:])
            torch.ops.aten.sigmoid_backward(by_rz, gates[:, t, :, : 2 * size], grad_input=by_rz)
            torch.mul(by_n[:, t], r, out=by_h[:, t, :, 2 * size :])
            carried = torch.baddbmm(through, by_h[:, t], weight_h.mT)
            if keep is not None:
                carried.mul_(keep[:, t])
        by_h, by_n, before, x_rows = (part.flatten(1, 2) for part in (by_h, by_n, before, x))
        bias_h = by_h.sum(1, keepdim=True)
        bias_n = by_n.sum(1, keepdim=True)
        by_rz, rows = by_h[..., : 2 * size], x_rows.mT
        by_x = torch.bmm(by_rz, weight_x[..., : 2 * size].mT).baddbmm_(by_n, weight_x[..., 2 * size :].mT)
        by_weight_x = torch.cat([rows @ by_rz, rows @ by_n], dim=-1)
        by_bias_x = torch.cat([bias_h[..., : 2 * size], bias_n], dim=-1)
        return by_x.view_as(x), carried, None, by_weight_x, by_bias_x, before.mT @ by_h, bias_h


class StackedRNN(Stacked):
    """P x N networks with a memory: linear, ReLU, GRU, linear, as the agents of QMIX and of recurrent MAPPO.

    With ``networks = 1`` the agents of the input share the network: they are folded into the rows.

    Args:
        init: the members' random streams.
        networks: N, or 1 to share.
        n_in: input width.
        hidden: H, width of the first layer and of the hidden state.
        n_out: output width.
        gains: of the first and the last layer, for orthogonal initialisation (see ``StackedLinear``).
    """

    def __init__(
        self,
        init: Streams,
        networks: int,
        n_in: int,
        hidden: int,
        n_out: int,
        gains: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.networks = networks
        first, last = gains if gains is not None else (None, None)
        self.enter = StackedLinear(init, networks, n_in, hidden, first)
        self.gru = StackedGRU(init, networks, hidden, hidden)
        self.leave = StackedLinear(init, networks, hidden, n_out, last)
        self.flatten()

    def step(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """One step: ``[P, N, B, in]`` and ``[P, N, B, H]`` -> output ``[P, N, B, out]`` and the new memory."""
        y, hidden = self.unroll(x.unsqueeze(2), memory)
        return y.squeeze(2), hidden.squeeze(2)

    def unroll(self, x: Tensor, memory: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """T steps.

        Args:
            x: ``[P, N, T, B, in]``.
            memory: ``[P, N, B, H]``, the hidden state before the first step.
            start: ``[P, N, T, B]`` bool, True where an episode starts: the hidden state is 0 before that step. None:
                nowhere.

        Returns the outputs ``[P, N, T, B, out]`` and the hidden states after each step ``[P, N, T, B, H]``.
        """
        keep = None if start is None else self._fold((~start).to(x.dtype).unsqueeze(-1))
        inputs = self._fold(x)
        steps, rows = inputs.shape[1:3]
        entered = torch.relu_(self.enter(inputs.flatten(1, 2))).unflatten(1, (steps, rows))
        hidden = self.gru(entered, self._fold(memory.unsqueeze(2)).squeeze(1), keep)
        y = self.leave(hidden.flatten(1, 2)).unflatten(1, (steps, rows))
        return self._unfold(y, x.shape[:2]), self._unfold(hidden, x.shape[:2])

    def _fold(self, x: Tensor) -> Tensor:
        """``[P, N, T, B, *]`` -> ``[P * networks, T, rows, *]``: agents that share a network go into its rows."""
        return x.unflatten(1, (self.networks, -1)).transpose(2, 3).flatten(3, 4).flatten(0, 1)

    def _unfold(self, x: Tensor, members_agents: torch.Size) -> Tensor:
        """The inverse of ``_fold``."""
        members, agents = members_agents
        shared = agents // self.networks
        return x.unflatten(0, (members, self.networks)).unflatten(3, (shared, -1)).transpose(2, 3).flatten(1, 2)
