"""From the agents' utilities of their own actions to the value of the joint action."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from marl.modules.stacked import Stacked, StackedLinear
from marl.streams import Streams


class QMixer(Stacked):
    """P monotonic mixing networks (Rashid et al. 2020, section 4.1).

    Q_tot = w2 . elu(W1' q + b1) + V, where W1 = |.| and w2 = |.| and b1 and V are functions of the state: two layers
    with ReLU for W1, w2 (``hyper_hidden`` units) and V (``embed`` units), one for b1. No weight of a utility is
    negative, so raising one never lowers Q_tot.

    Args:
        init: the members' random streams.
        n_agents: N.
        state_size: S, width of the global state.
        embed: width of the mixing network.
        hyper_hidden: hidden units of the hyper-networks.
    """

    def __init__(self, init: Streams, n_agents: int, state_size: int, embed: int = 32, hyper_hidden: int = 64) -> None:
        super().__init__()
        self.widths = [hyper_hidden, hyper_hidden, embed, embed]
        self.first = StackedLinear(init, 1, state_size, sum(self.widths))  # of W1, w2, V; and b1: one product
        self.w1 = StackedLinear(init, 1, hyper_hidden, n_agents * embed)
        self.w2 = StackedLinear(init, 1, hyper_hidden, embed)
        self.v = StackedLinear(init, 1, embed, 1)
        self.flatten()

    def forward(self, utilities: Tensor, state: Tensor) -> Tensor:
        """``[P, N, B]`` and ``[P, B, S]`` -> ``[P, B]``."""
        to_w1, to_w2, to_v, b1 = self.first(state).split(self.widths, dim=-1)
        w1 = self.w1(torch.relu(to_w1)).abs().unflatten(-1, (utilities.shape[1], -1))  # [P, B, N, embed]
        hidden = elu((utilities.transpose(1, 2).unsqueeze(-1) * w1).sum(-2) + b1)
        w2 = self.w2(torch.relu(to_w2)).abs()
        return (hidden * w2).sum(-1) + self.v(torch.relu(to_v)).squeeze(-1)


class VDNMixer(nn.Module):
    """Value decomposition (Sunehag et al. 2018): the sum. Called as ``QMixer`` is; has no parameters to copy."""

    def forward(self, utilities: Tensor, state: Tensor | None = None) -> Tensor:
        """``[P, N, B]`` -> ``[P, B]``."""
        return utilities.sum(1)
