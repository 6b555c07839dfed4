"""DDPG, TD3 and MADDPG as most people write them: one ``torch.nn`` network and one Adam per agent, in Python lists.

Twice useful: the stacked learners of ``marl.algos`` are tested to take the same step as these, and timed against them.
Nothing of ``marl`` is used here. Each learner is one training (no population); random numbers are handed in.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot, softmax

Tensors = Sequence[Tensor]
"""One tensor per agent."""


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def adams(networks: Iterable[nn.Module], lr: float) -> list[torch.optim.Adam]:
    return [torch.optim.Adam(network.parameters(), lr=lr) for network in networks]


def descend(optimizer: torch.optim.Adam, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def follow(targets: Iterable[nn.Module], networks: Iterable[nn.Module], tau: float) -> None:
    """Polyak averaging, network by network and parameter by parameter."""
    for target, network in zip(targets, networks, strict=True):
        for slow, fast in zip(target.parameters(), network.parameters(), strict=True):
            slow.mul_(1 - tau).add_(fast, alpha=tau)


class LoopDDPG:
    """N independent DDPG learners.

    Args:
        obs_sizes: each agent's width of observation.
        action_sizes: each agent's number of action components.
        hidden: widths of the hidden layers.
    """

    def __init__(
        self,
        obs_sizes: Sequence[int],
        action_sizes: Sequence[int],
        hidden: Sequence[int],
        gamma: float,
        tau: float,
        actor_lr: float,
        critic_lr: float,
    ) -> None:
        self.gamma, self.tau = gamma, tau
        sizes = list(zip(obs_sizes, action_sizes, strict=True))
        self.actors = [mlp(n_obs, *hidden, n_action) for n_obs, n_action in sizes]
        self.critics = [mlp(n_obs + n_action, *hidden, 1) for n_obs, n_action in sizes]
        self.target_actors, self.target_critics = copy.deepcopy(self.actors), copy.deepcopy(self.critics)
        self.actor_adams, self.critic_adams = adams(self.actors, actor_lr), adams(self.critics, critic_lr)

    def update(self, obs: Tensors, action: Tensors, reward: Tensors, next_obs: Tensors, terminated: Tensors) -> None:
        """One step; per agent ``[B, D_i]``, ``[B, A_i]``, ``[B]``, ``[B, D_i]`` and bool ``[B]``."""
        for i in range(len(self.actors)):
            with torch.no_grad():
                next_action = torch.tanh(self.target_actors[i](next_obs[i]))
                next_q = self.target_critics[i](torch.cat([next_obs[i], next_action], 1)).squeeze(1)
                y = reward[i] + self.gamma * (1 - terminated[i].float()) * next_q
            q = self.critics[i](torch.cat([obs[i], action[i]], 1)).squeeze(1)
            descend(self.critic_adams[i], mse_loss(q, y))
            mu = torch.tanh(self.actors[i](obs[i]))
            descend(self.actor_adams[i], -self.critics[i](torch.cat([obs[i], mu], 1)).mean())
        follow(self.target_critics, self.critics, self.tau)
        follow(self.target_actors, self.actors, self.tau)


class LoopTD3:
    """N independent TD3 learners; actors and targets move at every second update. Arguments as for ``LoopDDPG``."""

    def __init__(
        self,
        obs_sizes: Sequence[int],
        action_sizes: Sequence[int],
        hidden: Sequence[int],
        gamma: float,
        tau: float,
        actor_lr: float,
        critic_lr: float,
    ) -> None:
        self.gamma, self.tau, self.updates = gamma, tau, 0
        sizes = list(zip(obs_sizes, action_sizes, strict=True))
        self.actors = [mlp(n_obs, *hidden, n_action) for n_obs, n_action in sizes]
        self.critics = [
            nn.ModuleList([mlp(n_obs + n_action, *hidden, 1) for _ in range(2)]) for n_obs, n_action in sizes
        ]
        self.target_actors, self.target_critics = copy.deepcopy(self.actors), copy.deepcopy(self.critics)
        self.actor_adams, self.critic_adams = adams(self.actors, actor_lr), adams(self.critics, critic_lr)

    def update(
        self,
        obs: Tensors,
        action: Tensors,
        reward: Tensors,
        next_obs: Tensors,
        terminated: Tensors,
        noise: Tensors,
    ) -> None:
        """One step; ``noise`` is standard normal, per agent ``[B, A_i]``."""
        self.updates += 1
        for i in range(len(self.actors)):
            with torch.no_grad():
                smooth = (0.2 * noise[i]).clamp(-0.5, 0.5)
                next_action = (torch.tanh(self.target_actors[i](next_obs[i])) + smooth).clamp(-1, 1)
                next_input = torch.cat([next_obs[i], next_action], 1)
                first, second = (critic(next_input).squeeze(1) for critic in self.target_critics[i])
                y = reward[i] + self.gamma * (1 - terminated[i].float()) * torch.minimum(first, second)
            taken = torch.cat([obs[i], action[i]], 1)
            first, second = (critic(taken).squeeze(1) for critic in self.critics[i])
            descend(self.critic_adams[i], mse_loss(first, y) + mse_loss(second, y))
        if self.updates % 2 == 0:
            for i in range(len(self.actors)):
                mu = torch.tanh(self.actors[i](obs[i]))
                descend(self.actor_adams[i], -self.critics[i][0](torch.cat([obs[i], mu], 1)).mean())
            follow(self.target_critics, self.critics, self.tau)
            follow(self.target_actors, self.actors, self.tau)


class LoopMADDPG:
    """N actors, and N critics that see all observations and all actions.

    Args:
        discrete: actions are int64 ``[B]`` and actors give logits of a Gumbel-softmax; else vectors in [-1, 1].
        action_l2: weight of the mean square of an actor's raw output.
    """

    def __init__(
        self,
        obs_sizes: Sequence[int],
        action_sizes: Sequence[int],
        hidden: Sequence[int],
        gamma: float,
        tau: float,
        actor_lr: float,
        critic_lr: float,
        discrete: bool = False,
        action_l2: float = 1e-3,
    ) -> None:
        self.gamma, self.tau, self.discrete, self.action_l2 = gamma, tau, discrete, action_l2
        self.action_sizes = action_sizes
        everything = sum(obs_sizes) + sum(action_sizes)
        self.actors = [mlp(o, *hidden, a) for o, a in zip(obs_sizes, action_sizes, strict=True)]
        self.critics = [mlp(everything, *hidden, 1) for _ in obs_sizes]
        self.target_actors, self.target_critics = copy.deepcopy(self.actors), copy.deepcopy(self.critics)
        self.actor_adams, self.critic_adams = adams(self.actors, actor_lr), adams(self.critics, critic_lr)

    def target_action(self, i: int, obs: Tensor) -> Tensor:
        """``[B, A_i]``: the target actor's action, one-hot where actions are discrete."""
        output = self.target_actors[i](obs)
        if self.discrete:
            return one_hot(output.argmax(1), self.action_sizes[i]).float()
        return torch.tanh(output)

    def own_action(self, output: Tensor, noise: Tensor | None) -> Tensor:
        """``[B, A_i]`` from the actor's output; with ``noise`` a one-hot sample that passes the soft gradient."""
        if noise is None:
            return torch.tanh(output)
        soft = softmax(output + noise, dim=1)
        hard = one_hot(soft.argmax(1), soft.shape[1]).float()
        return hard + soft - soft.detach()

    def update(
        self,
        obs: Tensors,
        action: Tensors,
        reward: Tensors,
        next_obs: Tensors,
        terminated: Tensors,
        noise: Tensors | None = None,
    ) -> None:
        """One step; ``noise`` is standard Gumbel, per agent ``[B, A_i]``, for discrete actions only."""
        agents = range(len(self.actors))
        if self.discrete:
            action = [one_hot(action[i], self.action_sizes[i]).float() for i in agents]
        with torch.no_grad():
            next_action = [self.target_action(i, next_obs[i]) for i in agents]
            next_input = torch.cat([*next_obs, *next_action], 1)
        taken = torch.cat([*obs, *action], 1)
        for i in agents:
            with torch.no_grad():
                next_q = self.target_critics[i](next_input).squeeze(1)
                y = reward[i] + self.gamma * (1 - terminated[i].float()) * next_q
            descend(self.critic_adams[i], mse_loss(self.critics[i](taken).squeeze(1), y))
        for i in agents:
            output = self.actors[i](obs[i])
            mine = self.own_action(output, noise[i] if noise is not None else None)
            joint = torch.cat([*obs, *action[:i], mine, *action[i + 1 :]], 1)
            loss = -self.critics[i](joint).mean() + self.action_l2 * output.square().mean()
            descend(self.actor_adams[i], loss)
        follow(self.target_critics, self.critics, self.tau)
        follow(self.target_actors, self.actors, self.tau)
