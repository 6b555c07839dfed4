"""How critics answer the questions of reciprocity: who values which state.

A critic here is a stacked network from (state, action) to ``heads`` values (twins are two heads). Its P x N x heads
networks are stacked with the heads next to each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from marl.modules.stacked import StackedMLP
from marl.streams import Streams


class Critic(StackedMLP):
    """P x N x heads networks from (state, action) to a value.

    Args:
        init: the members' random streams.
        networks: N, or 1 to share among agents.
        n_in: width of state and action together.
        hidden: widths of the hidden layers.
        heads: independent networks per agent, 2 for twins.
        reads: ``[N or 1, in]`` bool, False where a critic's own input is padding. Its weights there are 0 and, as
            padding is 0, get no gradient: shown a wider agent's state, it reads the leading part. None: all is read.
    """

    def __init__(
        self,
        init: Streams,
        networks: int,
        n_in: int,
        hidden: Sequence[int],
        heads: int = 1,
        reads: Tensor | None = None,
    ) -> None:
        super().__init__(init, networks * heads, [n_in, *hidden, 1])
        self.heads = heads
        if reads is not None:
            self.layers[0].get_parameter("weight").data.mul_(reads.repeat_interleave(heads, 0).unsqueeze(-1))

    def forward(self, x: Tensor) -> Tensor:
        """``[P, N, B, in]`` -> ``[P, N, B]``, or ``[P, N, B, heads]`` for twins."""
        if self.heads == 1:
            return super().forward(x).squeeze(-1)
        members, agents, rows, n_in = x.shape
        groups = self.networks // self.heads  # N, or 1 shared
        each = x.reshape(members, groups, 1, -1, n_in).expand(-1, -1, self.heads, -1, -1).flatten(1, 2)
        values = super().forward(each).view(members, groups, self.heads, -1)
        return values.transpose(2, 3).reshape(members, agents, rows, self.heads)

    def first(self, x: Tensor) -> Tensor:
        """The first head's value: ``[P, N, B, in]`` -> ``[P, N, B]``."""
        return self.run(x, slice(None, None, self.heads)).squeeze(-1)


class OwnValues:
    """Target values of critics that see their own agent only (DDPG, TD3).

    Args:
        critic: P x N target critics.
        action: ``[P, N, B, A]``, each agent's next action at its true next state.
    """

    def __init__(self, critic: Critic, action: Tensor) -> None:
        self.critic, self.action = critic, action

    def own(self, states: Tensor) -> Tensor:
        """Critic i at agent i's state: ``[P, N, B, D]`` -> ``[P, N, B, *]``."""
        return self.critic(torch.cat([states, self.action], dim=-1))

    def peers(self, states: Tensor) -> Tensor:
        """Critic j at agent i's state: ``[P, N, B, D]`` -> ``[P, N_i, N_j, B, *]``; 0 where i = j, not computed."""
        members, agents, rows, _ = states.shape
        j = torch.arange(agents)[:, None]
        i = (j + torch.arange(1, agents)) % agents  # [N_j, N - 1]: everybody but j
        x = torch.cat([states, self.action], dim=-1)[:, i]
        heard = self.critic(x.flatten(2, 3)).unflatten(2, (agents - 1, rows))
        values = heard.new_zeros(members, agents, agents, *heard.shape[3:])
        values[:, i, j] = heard
        return values

    def views(self, states: Tensor) -> Tensor:
        """Critic j at agent j's state of the same moment: ``[P, 1, N_j, B, *]``."""
        return self.own(states).unsqueeze(1)


class JointValues:
    """Target values of critics that see everybody (MADDPG).

    Args:
        critic: P x N target critics on the joint observation and the joint action, or P shared ones.
        action: ``[P, N, B, A]``, the next actions of all agents at their true next states.
        obs_size: D, the width of one agent's block of the joint observation.
    """

    def __init__(self, critic: Critic, action: Tensor, obs_size: int) -> None:
        self.critic, self.action, self.obs_size = critic, action, obs_size

    def own(self, states: Tensor) -> Tensor:
        """Critic i at the joint state: ``[P, 1, B, N D]`` -> ``[P, N, B]``."""
        obs = self._blocks(states)
        return self.critic(joint_input(obs, self.action.unsqueeze(1), self.critic.networks == 1))

    def peers(self, states: Tensor) -> Tensor:
        """Critic j at the joint state, the same for every i: ``[P, 1, B, N D]`` -> ``[P, 1, N_j, B]``."""
        return self.own(states).unsqueeze(1)

    def views(self, states: Tensor) -> Tensor:
        """Critic j with agents i and j exchanged, so that j stands where i stood: ``[P, N_i, N_j, B]``.

        A shared critic in i's place is i's own; it is asked from j's place instead: ``[P, 1, N_j, B]``.
        """
        if self.critic.networks == 1:
            return self.peers(states)
        agents = self.action.shape[1]
        order = swaps(agents).flatten(0, 1)
        obs = self._blocks(states)[:, order].unflatten(1, (agents, agents)).transpose(1, 2)
        actions = self.action[:, order].unflatten(1, (agents, agents)).transpose(1, 2)
        x = torch.cat([side_by_side(obs), side_by_side(actions)], dim=-1)  # [P, N_j, N_i, B, in]
        return self.critic(x.flatten(2, 3)).unflatten(2, x.shape[2:4]).transpose(1, 2)

    def _blocks(self, states: Tensor) -> Tensor:
        return states.squeeze(1).unflatten(-1, (-1, self.obs_size)).transpose(1, 2)


def joint_input(obs: Tensor, action: Tensor, shared: bool) -> Tensor:
    """What the critic of each agent sees: all observations, then all actions.

    Args:
        obs: ``[P, N, B, D]``.
        action: ``[P, 1, N, B, A]``, or ``[P, N_i, N, B, A]`` where critic i is shown joint actions of its own.
        shared: one network serves all agents; it tells them apart by the agent whose critic it is coming first.

    Returns:
        ``[P, N, B, N (D + A)]``.
    """
    agents = obs.shape[1]
    everyone = obs.unsqueeze(1)
    if shared:
        first = swaps(agents)[0]
        everyone = take_order(everyone.expand(-1, agents, -1, -1, -1), first)
        action = take_order(action.expand(-1, agents, -1, -1, -1), first)
    parts = [side_by_side(everyone).expand(-1, agents, -1, -1), side_by_side(action).expand(-1, agents, -1, -1)]
    return torch.cat(parts, dim=-1)


def joint(x: Tensor) -> Tensor:
    """All agents' vectors side by side: ``[P, N, B, D]`` -> ``[P, 1, B, N D]``."""
    return side_by_side(x.unsqueeze(1))


def side_by_side(blocks: Tensor) -> Tensor:
    """The agents' blocks in one row: ``[..., N, B, D]`` -> ``[..., B, N D]``."""
    return blocks.transpose(-3, -2).flatten(-2)


def take_order(blocks: Tensor, order: Tensor) -> Tensor:
    """Blocks ``[P, *I, N, B, D]`` with the agents of row i put into the order ``order[i]`` (``[*I, N]``)."""
    index = order[(..., None, None)].expand(*order.shape, *blocks.shape[-2:])
    return blocks.gather(-3, index.expand(blocks.shape))


def swaps(agents: int) -> Tensor:
    """``[N, N, N]`` int64: row (i, j) is the order of agents in which i and j have changed places."""
    order = torch.arange(agents).expand(agents, agents, agents).clone()
    i, j = torch.meshgrid(torch.arange(agents), torch.arange(agents), indexing="ij")
    order[i, j, i], order[i, j, j] = j, i
    return order
