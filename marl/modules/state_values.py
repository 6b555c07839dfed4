"""Values of states: what critics without actions see, and how they answer the questions of reciprocity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from marl.envs.base import EnvSpec
from marl.modules.actors import make_net, unroll
from marl.modules.critics import joint, side_by_side, swaps
from marl.modules.normal import RunningNorm
from marl.modules.recurrent import StackedRNN
from marl.streams import Streams


def with_id(x: Tensor, shared: bool) -> Tensor:
    """``[P, N, B, in]``, the agent's number one-hot behind it if agents share a network: ``[P, N, B, in + N]``."""
    if not shared:
        return x
    members, agents, rows, _ = x.shape
    return torch.cat([x, torch.eye(agents)[:, None].expand(members, -1, rows, -1)], dim=-1)


class StateCritic:
    """P teams of N critics of states, answering with normalised values.

    - Central critics see the environment's own global state, or all observations side by side. If agents share one, it
      has a head for each of them.
    - Critics that see their agent's observation alone are one network each, or a shared one that is told whose it is.

    Args:
        init: the members' random streams.
        spec: the environment's.
        central, shared: which of these.
        hidden, activation, recurrent: see ``make_net``.

    Attributes:
        net: the networks.
        mask: ``[G, C]`` bool: which numbers of ``see`` are no padding.
    """

    def __init__(
        self,
        init: Streams,
        spec: EnvSpec,
        central: bool,
        shared: bool,
        hidden: Sequence[int],
        activation: Literal["relu", "tanh"],
        recurrent: bool,
    ) -> None:
        self.agents, self.central, self.shared = spec.n_agents, central, shared
        self.obs_size = spec.obs_size
        if central:
            size = spec.state_size
            self.mask = torch.ones(1, size, dtype=torch.bool) if size else spec.obs_mask.view(1, -1)
        else:
            self.mask = spec.obs_mask
        self.heads = central and shared
        n_in = self.mask.shape[1] + (self.agents if shared and not central else 0)
        networks, n_out = (1 if shared else self.agents), (self.agents if self.heads else 1)
        reads = None if shared else self.mask
        self.net = make_net(init, networks, n_in, n_out, hidden, activation, recurrent, gain=1.0, reads=reads)

    def see(self, obs: Tensor, state: Tensor | None) -> Tensor:
        """What the critics see: ``[P, G, B, C]``, G = 1 where all see the same, else N.

        Args:
            obs: ``[P, N, B, D]``.
            state: ``[P, B, S]``, the environment's own global state; None: it has none.
        """
        if not self.central:
            return obs
        return joint(obs) if state is None else state.unsqueeze(1)

    def __call__(
        self, states: Tensor, memory: Tensor | None = None, start: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Values ``[P, N, T, B]`` of states ``[P, G or N, T, B, C]``, and hidden states ``[P, N, T, B, H]``, if any.

        Args:
            memory, start: see ``unroll``; with a head for each agent those of the first agent count.
        """
        if self.heads:
            first = slice(0, 1)
            memory, start = (None if x is None else x[:, first] for x in (memory, start))
            value, hidden = unroll(self.net, states, memory, start)
            return value.squeeze(1).movedim(-1, 1), None if hidden is None else hidden.expand(
                -1, self.agents, *[-1] * 3
            )
        steps = states.shape[2:4]
        x = with_id(states.flatten(2, 3).expand(-1, self.agents, -1, -1), self.shared).unflatten(2, steps)
        value, hidden = unroll(self.net, x, memory, start)
        return value.squeeze(-1), hidden

    @torch.no_grad()
    def rescale(self, scale: Tensor, shift: Tensor) -> None:
        """Answer from now on ``v scale + shift``, ``[P, N or 1]`` each, where the answer was v."""
        last = self.net.leave if isinstance(self.net, StackedRNN) else self.net.layers[-1]
        last.get_parameter("weight").mul_(scale[..., None, None])
        last.get_parameter("bias").mul_(scale[..., None, None]).add_(shift[..., None, None])


class StateValues:
    """The values that reciprocity asks for, in units of reward.

    Args:
        critic: P x N critics.
        norm: of their values.
        joint: they see all observations side by side, rather than a state of the environment's own.
        memory: ``[P, N, B, H]``, each critic's hidden state before the states in question; None: they have none.
    """

    def __init__(self, critic: StateCritic, norm: RunningNorm, joint: bool, memory: Tensor | None) -> None:
        self.critic, self.norm, self.joint, self.memory = critic, norm, joint, memory

    def own(self, states: Tensor) -> Tensor:
        """Critic i at agent i's state: ``[P, G, B, C]`` -> ``[P, N, B]``."""
        return self._ask(states.unsqueeze(2)).squeeze(2)

    def peers(self, states: Tensor) -> Tensor:
        """Critic j at agent i's state: ``[P, G, B, C]`` -> ``[P, N_i or 1, N_j, B]``.

        A shared critic is shown agent i's state as if it were agent j's. A critic with a memory goes on from its own.
        """
        if self.critic.central:
            return self.own(states).unsqueeze(1)
        return self._ask(states.unsqueeze(1).expand(-1, self.critic.agents, -1, -1, -1)).transpose(1, 2)

    def views(self, states: Tensor) -> Tensor:
        """Critic j at agent j's state of the same moment: ``[P, 1, N_j, B]``.

        Critics of their own that see all observations are shown agents i and j exchanged: ``[P, N_i, N_j, B]``. A
        global state of the environment's own cannot be seen from elsewhere, and the heads of a shared critic see what
        they see: these are asked at the state itself.
        """
        agents = self.critic.agents
        if not (self.critic.central and self.joint) or self.critic.shared:
            return self.own(states).unsqueeze(1)
        obs = states.squeeze(1).unflatten(-1, (agents, self.critic.obs_size)).transpose(1, 2)
        exchanged = side_by_side(obs[:, swaps(agents).flatten(0, 1)])  # [P, N_i N_j, B, C]
        return self._ask(exchanged.unflatten(1, (agents, -1)).transpose(1, 2)).transpose(1, 2)

    def _ask(self, states: Tensor) -> Tensor:
        """Critic j at K states for each row: ``[P, N_j or 1, K, B, C]`` -> ``[P, N_j, K, B]``."""
        asked = states.shape[2]
        memory = None
        if self.memory is not None:
            memory = self.memory.unsqueeze(2).expand(-1, -1, asked, -1, -1).flatten(2, 3)
        value, _ = self.critic(states.flatten(2, 3).unsqueeze(2), memory)
        return self.norm.denormalize(value.flatten(2)).unflatten(2, (asked, -1))
