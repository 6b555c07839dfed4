"""Values of states: what critics without actions see, and how they answer the questions of reciprocity."""

from __future__ import annotations

import torch
from torch import Tensor

from marl.envs.base import EnvSpec
from marl.modules.actors import Net, unroll
from marl.modules.critics import joint, side_by_side, swaps
from marl.modules.normal import RunningNorm


def with_id(x: Tensor, shared: bool) -> Tensor:
    """``[P, N, B, in]``, the agent's number one-hot behind it if agents share a network: ``[P, N, B, in + N]``."""
    if not shared:
        return x
    members, agents, rows, _ = x.shape
    return torch.cat([x, torch.eye(agents)[:, None].expand(members, -1, rows, -1)], dim=-1)


def critic_states(obs: Tensor, state: Tensor | None, central: bool, shared: bool) -> Tensor:
    """What critics see, before ``with_id``.

    Args:
        obs: ``[P, N, B, D]``.
        state: ``[P, B, S]``, the environment's own global state; None: all observations side by side.
        central: critics see that; else their agent's observation.
        shared: one critic serves all agents; what is central then comes behind the agent's own observation.

    Returns:
        ``[P, 1, B, C]`` where all agents' critics see the same, else ``[P, N, B, C]``.
    """
    if not central:
        return obs
    everything = joint(obs) if state is None else state.unsqueeze(1)
    return torch.cat([obs, everything.expand(-1, obs.shape[1], -1, -1)], dim=-1) if shared else everything


def critic_mask(spec: EnvSpec, central: bool, shared: bool) -> Tensor:
    """``[N or 1, C]`` bool: which numbers of ``critic_states`` are no padding."""
    own = spec.obs_mask
    if not central:
        return own
    size = spec.state_size
    everything = torch.ones(1, size, dtype=torch.bool) if size else own.view(1, -1)
    return torch.cat([own, everything.expand(len(own), -1)], dim=-1) if shared else everything


class StateValues:
    """The values that reciprocity asks for, in units of reward.

    Args:
        critic: P x N networks, or P shared ones, from states to normalised values.
        norm: the critics'.
        agents: N.
        shared: one critic serves all agents.
        obs_size: D, where critics of their own see all observations side by side; None: they see something else.
        memory: ``[P, N, B, H]``, each critic's hidden state before the states in question; None: they have none.
    """

    def __init__(
        self, critic: Net, norm: RunningNorm, agents: int, shared: bool, obs_size: int | None, memory: Tensor | None
    ) -> None:
        self.critic, self.norm, self.agents, self.shared = critic, norm, agents, shared
        self.obs_size, self.memory = obs_size, memory

    def own(self, states: Tensor) -> Tensor:
        """Critic i at agent i's state: ``[P, N or 1, B, C]`` -> ``[P, N, B]``."""
        return self._ask(states.expand(-1, self.agents, -1, -1).unsqueeze(2)).squeeze(2)

    def peers(self, states: Tensor) -> Tensor:
        """Critic j at agent i's state: ``[P, N or 1, B, C]`` -> ``[P, N_i or 1, N_j, B]``.

        A shared critic is shown agent i's state as if it were agent j's. A critic with a memory goes on from its own.
        """
        if states.shape[1] < self.agents:
            return self.own(states).unsqueeze(1)
        return self._ask(states.unsqueeze(1).expand(-1, self.agents, -1, -1, -1)).transpose(1, 2)

    def views(self, states: Tensor) -> Tensor:
        """Critic j at agent j's state of the same moment: ``[P, 1, N_j, B]``.

        Critics of their own that see all observations are shown agents i and j exchanged: ``[P, N_i, N_j, B]``. A
        global state of the environment's own cannot be seen from elsewhere: it stays.
        """
        if self.obs_size is None:
            return self.own(states).unsqueeze(1)
        obs = states.squeeze(1).unflatten(-1, (self.agents, self.obs_size)).transpose(1, 2)
        exchanged = side_by_side(obs[:, swaps(self.agents).flatten(0, 1)])  # [P, N_i N_j, B, C]
        return self._ask(exchanged.unflatten(1, (self.agents, -1)).transpose(1, 2)).transpose(1, 2)

    def _ask(self, states: Tensor) -> Tensor:
        """Critic j at K states for each row: ``[P, N_j, K, B, C]`` -> ``[P, N_j, K, B]``."""
        asked = states.shape[2]
        memory = None
        if self.memory is not None:
            memory = self.memory.unsqueeze(2).expand(-1, -1, asked, -1, -1).flatten(2, 3)
        value, _ = unroll(self.critic, with_id(states.flatten(2, 3), self.shared).unsqueeze(2), memory)
        return self.norm.denormalize(value.flatten(2)).unflatten(2, (asked, -1))
