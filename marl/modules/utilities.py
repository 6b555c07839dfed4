"""Utilities: what each action is worth to an agent, given all that it has seen of the episode."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from marl.modules.recurrent import StackedRNN
from marl.modules.stacked import StackedMLP
from marl.ops.discrete import pick
from marl.streams import Streams
from marl.types import State


class Utilities:
    """P x N networks from the observations so far to one value per action.

    Args:
        init: the members' random streams.
        obs_mask: ``[N, D]`` bool, False where an observation is padding. Separate networks have weight 0 there, so that
            one which is shown a wider agent's observation reads the leading part.
        actions: A, outputs of a network.
        hidden: widths of the hidden layers; a recurrent network's is the first.
        recurrent: linear, ReLU, GRU, linear; else a network that sees the present only.
        shared: one network for all agents of a member; a one-hot vector behind the observation tells whose it is.

    Attributes:
        memory_size: H, the width of what is remembered from step to step; 0: nothing.
    """

    def __init__(
        self, init: Streams, obs_mask: Tensor, actions: int, hidden: Sequence[int], recurrent: bool, shared: bool
    ) -> None:
        agents, width = obs_mask.shape
        self.memory_size = hidden[0] if recurrent else 0
        self.names = torch.eye(agents) if shared and agents > 1 else torch.zeros(agents, 0)
        networks, n_in = (1 if shared else agents), width + self.names.shape[1]
        self.network: StackedRNN | StackedMLP
        if recurrent:
            self.network = StackedRNN(init, networks, n_in, hidden[0], actions)
        else:
            self.network = StackedMLP(init, networks, [n_in, *hidden, actions])
        if not shared:
            first = self.network.enter if isinstance(self.network, StackedRNN) else self.network.layers[0]
            first.get_parameter("weight").data.mul_(obs_mask.unsqueeze(-1))

    def step(self, obs: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One moment: ``[P, N, E, D]`` and ``[P, N, E, H]`` -> values ``[P, N, E, A]`` and what is remembered."""
        x = self._named(obs)
        if isinstance(self.network, StackedRNN):
            assert memory is not None
            return self.network.step(x, memory)
        return self.network(x), None

    def unroll(self, obs: Tensor) -> Tensor:
        """Episodes from their start: ``[P, N, T, B, D]`` -> ``[P, N, T, B, A]``."""
        x = self._named(obs)
        if isinstance(self.network, StackedRNN):
            members, agents, _, rows, _ = x.shape
            return self.network.unroll(x, x.new_zeros(members, agents, rows, self.memory_size))[0]
        return self.network(x.flatten(2, 3)).unflatten(2, x.shape[2:4])

    def _named(self, obs: Tensor) -> Tensor:
        """``[P, N, ..., D]`` with whose network is asked."""
        if not self.names.shape[1]:
            return obs
        names = self.names.view(len(self.names), *[1] * (obs.dim() - 3), -1)
        return torch.cat([obs, names.expand(*obs.shape[:-1], -1)], dim=-1)

    def target_copy(self) -> Utilities:
        """A copy with parameters of its own that takes no gradient."""
        twin = copy.copy(self)
        twin.network = self.network.target_copy()
        return twin

    def state_dict(self) -> State:
        return self.network.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.network.load_state_dict(state)


class UtilityValues:
    """How utilities answer the questions of reciprocity.

    States are whole episodes, ``[P, N, (T + 1) B, D]`` with time first; the answers are the values at their last T
    moments, ``[P, N, T B]``, each after the (adjacent) episode that led there.

    Args:
        utilities: the target utilities.
        action: ``[P, N, T, B]`` int64, each agent's next action at the true episodes.
        action_mask: ``[N, A]`` bool, False where an action is not the agent's. A neighbour that does not have the
            action in question agrees with the agent that asks.
    """

    def __init__(self, utilities: Utilities, action: Tensor, action_mask: Tensor) -> None:
        self.utilities, self.action = utilities, action
        self.action_mask = None if action_mask.all() else action_mask

    def own(self, states: Tensor) -> Tensor:
        """Agent i at its own episodes: ``[P, N, T B]``."""
        return self._worth(states, self.action)

    def peers(self, states: Tensor) -> Tensor:
        """Agent j's network at agent i's episodes and actions: ``[P, N_i, N_j, T B]``; 0 where i = j, not computed."""
        members, agents, _, _ = states.shape
        j = torch.arange(agents)[:, None]
        i = (j + torch.arange(1, agents)) % agents  # [N_j, N - 1]: everybody but j
        shown = states.unflatten(2, (-1, self.action.shape[-1]))[:, i]  # [P, N_j, N - 1, T + 1, B, D]
        action = self.action[:, i]
        heard = self._worth(shown.transpose(2, 3).flatten(2, 4), action.transpose(2, 3).flatten(3))
        heard = heard.unflatten(2, (-1, agents - 1, self.action.shape[-1])).transpose(2, 3).flatten(3)
        values = heard.new_zeros(members, agents, agents, heard.shape[-1])
        values[:, i, j] = heard
        if self.action_mask is not None:
            has = self.action_mask[:, self.action.flatten(2)].permute(1, 2, 0, 3)  # [P, N_i, N_j, T B]
            values = torch.where(has, values, self.own(states).unsqueeze(2))
        return values

    def views(self, states: Tensor) -> Tensor:
        """Agent j at its own episodes of the same moments: ``[P, 1, N_j, T B]``."""
        return self.own(states).unsqueeze(1)

    def _worth(self, states: Tensor, action: Tensor) -> Tensor:
        """The values of ``action`` ``[P, N, T, B]`` after the first moment."""
        values = self.utilities.unroll(states.unflatten(2, (-1, action.shape[-1])))[:, :, 1:]
        return pick(values, action).flatten(2)
