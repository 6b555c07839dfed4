"""A training loop of somebody else's, with and without this project's reciprocity in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.pair import Work
from marl.reciprocity import ReciprocalCritics

AGENTS, BATCH, STATE, ACTION = 3, 256, 18, 2


def updates(**reciprocity: Any) -> Work:
    """Updates of three DDPG learners, one network after the other, two layers of 64 units; {}: without reciprocity."""
    torch.manual_seed(0)
    actors, critics = networks(STATE, ACTION), networks(STATE + ACTION, 1)
    target_actors, target_critics = networks(STATE, ACTION), networks(STATE + ACTION, 1)
    online, targets = nn.ModuleList([*actors, *critics]), nn.ModuleList([*target_actors, *target_critics])
    actor_optimiser = torch.optim.Adam(actors.parameters(), 1e-3)
    critic_optimiser = torch.optim.Adam(critics.parameters(), 1e-3)
    q, q_target = functions(critics), functions(target_critics)
    reciprocal = ReciprocalCritics(q_target, **reciprocity) if reciprocity else None
    state, following = torch.randn(2, AGENTS, BATCH, STATE)
    action, reward = torch.rand(AGENTS, BATCH, ACTION), torch.randn(AGENTS, BATCH)

    def work() -> float:
        with torch.no_grad():
            following_action = torch.stack([mu(s).tanh() for mu, s in zip(target_actors, following, strict=True)])
            if reciprocal is None:
                value = torch.stack([q_target[i](following[i], following_action[i]) for i in range(AGENTS)])
            else:
                value = reciprocal(following, following_action)
            target = reward + 0.95 * value
        step(critic_optimiser, [(q[i](state[i], action[i]) - target[i]).square().mean() for i in range(AGENTS)])
        step(actor_optimiser, [-q[i](state[i], mu(state[i]).tanh()).mean() for i, mu in enumerate(actors)])
        with torch.no_grad():
            for p, slow in zip(online.parameters(), targets.parameters(), strict=True):
                slow.lerp_(p, 0.01)
        return 1.0

    for _ in range(20):
        work()
    return work


def networks(n_in: int, n_out: int) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Sequential(nn.Linear(n_in, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, n_out))
        for _ in range(AGENTS)
    )


def functions(critics: nn.ModuleList) -> list[Callable[[Tensor, Tensor], Tensor]]:
    return [lambda s, a, q=q: q(torch.cat([s, a], -1)).squeeze(-1) for q in critics]  # type: ignore[misc]


def step(optimiser: torch.optim.Optimizer, losses: list[Tensor]) -> None:
    optimiser.zero_grad()
    torch.stack(losses).sum().backward()
    optimiser.step()
