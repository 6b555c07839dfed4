"""Networks of policy-gradient learners, with or without a memory, and the policies that they parametrise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from marl.envs.base import EnvSpec
from marl.modules.recurrent import StackedRNN
from marl.modules.stacked import Stacked, StackedMLP
from marl.ops import discrete, gaussian
from marl.streams import Streams

Net: TypeAlias = StackedMLP | StackedRNN


def make_net(
    init: Streams,
    networks: int,
    n_in: int,
    n_out: int,
    hidden: Sequence[int],
    activation: Literal["relu", "tanh"],
    recurrent: bool,
    gain: float,
    reads: Tensor | None = None,
) -> Net:
    """Networks with orthogonal weights: gain sqrt(2) (ReLU) or 5/3 (tanh) inside, ``gain`` at the end.

    Args:
        init: the members' random streams.
        networks: N, or 1 to share.
        n_in, n_out: widths of input and output.
        hidden: widths of the hidden layers; a recurrent network's is the first.
        activation: of a network without memory.
        recurrent: linear, ReLU, GRU, linear; the GRU's weights start uniformly.
        gain: of the last layer.
        reads: ``[N or 1, in]`` bool, False where the input is padding: weights there are 0, and stay so. None: all.
    """
    net: Net
    if recurrent:
        net = StackedRNN(init, networks, n_in, hidden[0], n_out, gains=(math.sqrt(2), gain))
    else:
        inner = math.sqrt(2) if activation == "relu" else 5 / 3
        net = StackedMLP(init, networks, [n_in, *hidden, n_out], activation, [inner] * len(hidden) + [gain])
    if reads is not None:
        first = net.enter if isinstance(net, StackedRNN) else net.layers[0]
        first.get_parameter("weight").data.mul_(reads.unsqueeze(-1))
    return net


def unroll(
    net: Net, x: Tensor, memory: Tensor | None = None, start: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Inputs ``[P, N, T, B, in]`` -> outputs ``[P, N, T, B, out]``, and the hidden states after each step, if any.

    Args:
        memory: ``[P, N, B, H]`` before the first step; None: ``net`` has none.
        start: ``[P, N, T, B]`` bool, where an episode starts; None: nowhere.
    """
    if isinstance(net, StackedRNN):
        assert memory is not None
        return net.unroll(x, memory, start)
    return net(x.flatten(2, 3)).unflatten(2, x.shape[2:4]), None


class Actor(Stacked):
    """P x N stochastic policies.

    Discrete: a categorical distribution over the actions that may be taken. Continuous: each component is drawn from a
    normal distribution whose standard deviation is a parameter, and clipped to [-1, 1]; the probability of what lies
    beyond an end belongs to that end, so the log-probability of a clipped action is exact (Fujita, Maeda 2018).

    Args:
        init: the members' random streams.
        networks: N, or 1 to share.
        n_in: width of the input.
        spec: the environment's.
        hidden, activation, recurrent: see ``make_net``.
        log_std: where the standard deviations' logarithms start.
    """

    def __init__(
        self,
        init: Streams,
        networks: int,
        n_in: int,
        spec: EnvSpec,
        hidden: Sequence[int],
        activation: Literal["relu", "tanh"],
        recurrent: bool,
        log_std: float = -0.5,
    ) -> None:
        super().__init__()
        self.discrete = spec.discrete
        self.net = make_net(init, networks, n_in, spec.action_size, hidden, activation, recurrent, gain=0.01)
        if not spec.discrete:
            self.log_std = nn.Parameter(torch.full((len(init), networks, 1, 1, spec.action_size), log_std))
        self.own = spec.action_mask
        self.padded = not bool(spec.action_mask.all())
        self.flatten()

    def forward(
        self, x: Tensor, avail: Tensor | None = None, memory: Tensor | None = None, start: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits, those of what may not be done out of reach, or means; and the hidden states after each step, if any.

        Args:
            x: ``[P, N, T, B, in]``.
            avail: ``[P, N, T, B, A]``; None: each agent may do all of its own.
            memory, start: see ``unroll``.

        Returns ``[P, N, T, B, A]`` and ``[P, N, T, B, H]`` or None.
        """
        output, hidden = unroll(self.net, x, memory, start)
        if self.discrete and avail is not None:
            output = discrete.mask_logits(output, avail)
        elif self.discrete and self.padded:
            output = discrete.mask_logits(output, self.own)
        return output, hidden

    def mode(self, output: Tensor) -> Tensor:
        """The likeliest actions (continuous: the clipped means)."""
        return output.argmax(-1) if self.discrete else self._in_range(output)

    def sample(self, output: Tensor, streams: Streams) -> Tensor:
        """Actions drawn from the policies: ``[P, N, T, B]`` int64, or ``[P, N, T, B, A]`` in [-1, 1]."""
        if self.discrete:
            return discrete.sample(output, streams.uniform(*output.shape[1:]))
        return self._in_range(gaussian.sample(output, self.log_std, streams.normal(*output.shape[1:])))

    def log_prob(self, output: Tensor, action: Tensor) -> Tensor:
        """Log-probability (of what lies inside the range: density) of actions, ``[P, N, T, B]``."""
        if self.discrete:
            return discrete.log_prob(output, action)
        own = discrete.per_agent(self.own, output)
        inside = action.abs() < 1
        density = gaussian.log_prob(action, output, self.log_std, own & inside)
        beyond = torch.special.log_ndtr((output * action.sign() - 1) * (-self.log_std).exp())
        return density + beyond.masked_fill(inside | ~own, 0.0).sum(-1)

    def entropy(self, output: Tensor) -> Tensor:
        """In nats, ``[P, N, T, B]`` (continuous: that of the normal distribution before it is clipped)."""
        if self.discrete:
            return discrete.entropy(output)
        return gaussian.entropy(self.log_std, self.own).expand(output.shape[:-1])

    def _in_range(self, action: Tensor) -> Tensor:
        action = action.clamp(-1, 1)
        return action * discrete.per_agent(self.own, action) if self.padded else action
