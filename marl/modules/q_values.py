"""Action values: what each discrete action is worth to an agent, given what it sees now."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from marl.envs.base import EnvSpec
from marl.modules.conv import ConvName, ConvStack, stack_for
from marl.modules.stacked import StackedMLP
from marl.ops.discrete import pick
from marl.streams import Streams


class QNetwork(StackedMLP):
    """P x N networks from an observation to one value per action (Mnih et al. 2015).

    Pictures (``spec.pixels``) pass through convolutions first; bytes (``spec.bytes``) are divided by 255. A network
    has weight 0 where its agent's observation is padding, so that one which is shown a wider agent's reads the leading
    part.

    Args:
        init: the members' random streams.
        spec: the environment's; its actions are discrete.
        hidden: widths of the hidden layers, behind the convolutions if there are any.
        conv: which convolutions; see ``stack_for``.
        duelling: the end is a value V and an advantage A for each action, and Q = V + A - mean of A over the agent's
            own actions (Wang et al. 2016, equation 9; here V and A share all hidden layers).
    """

    def __init__(
        self, init: Streams, spec: EnvSpec, hidden: Sequence[int], conv: ConvName = "auto", duelling: bool = False
    ) -> None:
        n, pixels = spec.n_agents, spec.pixels
        filters = () if pixels is None else stack_for(pixels, conv)
        pictures = ConvStack(init, n, pixels, filters) if pixels is not None and filters else None
        width = spec.obs_size if pictures is None else pictures.width
        super().__init__(init, n, [width, *hidden, spec.action_size + duelling])
        self.pictures, self.bytes, self.duelling = pictures, spec.bytes, duelling
        own = spec.action_mask.unsqueeze(1).float()
        self.shares = own / own.sum(-1, keepdim=True)  # [N, 1, A]
        if pictures is None:
            self.layers[0].get_parameter("weight").data.mul_(spec.obs_mask.unsqueeze(-1))
        else:
            self.flatten()  # the convolutions too

    def forward(self, x: Tensor) -> Tensor:
        """``[P, N, B, D]`` -> ``[P, N, B, A]``; arbitrary for actions that an agent does not have."""
        if self.bytes:
            x = x / 255
        values = super().forward(x if self.pictures is None else self.pictures(x))
        if not self.duelling:
            return values
        advantage = values[..., 1:]
        return values[..., :1] + advantage - (advantage * self.shares).sum(-1, keepdim=True)


class ActionValues:
    """How action values answer the questions of reciprocity.

    Args:
        network: the target networks.
        action: ``[P, N, B]`` int64, each agent's next action at its true next state.
        action_mask: ``[N, A]`` bool, False where an action is not the agent's. A neighbour that does not have the
            action in question agrees with the agent that asks.
    """

    def __init__(self, network: QNetwork, action: Tensor, action_mask: Tensor) -> None:
        self.network, self.action = network, action
        self.action_mask = None if action_mask.all() else action_mask

    def own(self, states: Tensor) -> Tensor:
        """Agent i at its own state: ``[P, N, B, D]`` -> ``[P, N, B]``."""
        return worth(self.network, states, self.action)

    def peers(self, states: Tensor) -> Tensor:
        """Agent j's network at agent i's state and action: ``[P, N_i, N_j, B]``; where i = j not computed."""
        members, agents, rows, _ = states.shape
        j = torch.arange(agents)[:, None]
        i = (j + torch.arange(1, agents)) % agents  # [N_j, N - 1]: everybody but j
        heard = worth(self.network, states[:, i].flatten(2, 3), self.action[:, i].flatten(2))
        values = heard.new_zeros(members, agents, agents, rows)
        values[:, i, j] = heard.unflatten(2, (agents - 1, rows))
        if self.action_mask is not None:
            has = self.action_mask[:, self.action].permute(1, 2, 0, 3)  # [P, N_i, N_j, B]
            values = torch.where(has, values, self.own(states).unsqueeze(2))
        return values

    def views(self, states: Tensor) -> Tensor:
        """Agent j at its own state of the same moment: ``[P, 1, N_j, B]``."""
        return self.own(states).unsqueeze(1)


def worth(network: QNetwork, states: Tensor, action: Tensor) -> Tensor:
    """Q(s, a): ``[P, N, B, D]`` and int64 ``[P, N, B]`` -> ``[P, N, B]``."""
    return pick(network(states), action)
