"""The Digital world (PR paper, section V.A; after Kar, Moura and Poor 2013): a random process watched by N agents.

All agents see the one state and the one action that is carried out, and each has rewards of its own. Entries of the
transition matrix are drawn from U[0, 1] and rows normalised, mean rewards from U[0, 4]; a reward is its mean plus
U[-1/2, 1/2]. What the team is to learn is the value of the *mean* reward.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from marl.classic.checks import Array, check_fits, generator
from marl.classic.mdp import TabularMDP
from marl.classic.planning import discounted_values
from marl.classic.worlds.world import HORIZON, Outcome, chosen, positive
from marl.types import UserError

HIGHEST = 4.0
"""Mean rewards are from 0 to here."""


class Walk(NamedTuple):
    """T steps of the process under a random action, as ``TabularQ.update_many`` takes them; all ``[T, N]``."""

    state: NDArray[np.int64]
    action: NDArray[np.int64]
    reward: Array
    next_state: NDArray[np.int64]
    terminated: NDArray[np.bool_]


class Digital:
    """One draw of the process; a ``World`` for the PettingZoo face too.

    Attributes:
        transition: ``[S, A, S]``.
        reward: ``[N, S, A]``, each agent's mean rewards.
        gamma: discount.
        noise: half the width of the reward noise.
        horizon: where the PettingZoo face truncates; the process itself never ends.
    """

    name = "digital"
    coordinates = ("state",)

    def __init__(
        self,
        agents: int = 20,
        states: int = 20,
        actions: int = 2,
        gamma: float = 0.8,
        noise: float = 0.5,
        shared_rewards: bool = False,
        seed: int | np.random.SeedSequence = 0,
        horizon: int = HORIZON,
    ) -> None:
        """``shared_rewards``: one draw of mean rewards for all agents, so that averaging does not flatten them.

        Raises:
            UserError: counts that are not positive or too large, noise below 0.
        """
        shape = (positive("agents", agents), positive("states", states), positive("actions", actions))
        if not 0 <= noise < np.inf:
            raise UserError(f"noise: expected 0 or more, got {noise:g}")
        check_fits("transition", states, actions, states)
        check_fits("tables", *shape)
        rng = generator(seed)
        raw = rng.random((states, actions, states))
        self.transition: Array = raw / raw.sum(-1, keepdims=True)
        self.reward: Array = HIGHEST * rng.random(shape)
        if shared_rewards:
            self.reward[:] = self.reward[0]
        self.gamma = gamma
        self.noise = noise
        self.horizon = positive("horizon", horizon)
        self._cumulative = self.transition.cumsum(-1)

    @property
    def agents(self) -> int:
        return self.reward.shape[0]

    @property
    def states(self) -> int:
        return self.reward.shape[1]

    @property
    def actions(self) -> int:
        return self.reward.shape[2]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the one coordinate of every agent's view."""
        return (self.states,)

    @cached_property
    def mean(self) -> TabularMDP:
        """The process of the agents' mean reward."""
        return TabularMDP(self.transition, self.reward.mean(0))

    @cached_property
    def optimum(self) -> Array:
        """Q* ``[S, A]`` of the mean reward, by value iteration to 1e-10."""
        return discounted_values(self.mean, self.gamma).q

    def bellman_residual(self, q: Array) -> float:
        """``max |r + gamma P max q - q|`` on the mean reward, for a table ``[S, A]``."""
        return float(np.abs(self.mean.reward + self.gamma * self.transition @ q.max(-1) - q).max())

    def walk(self, rng: np.random.Generator, state: int, steps: int) -> Walk:
        """So many steps from ``state``, all agents together, the action uniformly random."""
        action = rng.integers(0, self.actions, steps)
        path = _path(self._cumulative, state, action, rng.random(steps))
        noise = rng.uniform(-self.noise, self.noise, (steps, self.agents))
        reward = self.reward[:, path[:-1], action].T + noise
        shape = (steps, self.agents)
        each = (np.broadcast_to(numbers[:, None], shape) for numbers in (path[:-1], action, path[1:]))
        states, actions, successors = each
        return Walk(states, actions, reward, successors, np.zeros(shape, np.bool_))

    def start(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """``[1]``: a state, all equally likely."""
        return rng.integers(0, self.states, 1)

    def step(self, state: NDArray[np.int64], action: NDArray[np.int64], rng: np.random.Generator) -> Outcome:
        """One step; of the agents' actions ``[N]``, that of an agent drawn at random is carried out."""
        carried_out = chosen(action, self.agents, self.actions)[rng.integers(0, self.agents)][None]
        after = _path(self._cumulative, state[0], carried_out, rng.random(1))[1:]
        noise = rng.uniform(-self.noise, self.noise, self.agents)
        reward = self.reward[:, state[0], carried_out[0]] + noise
        return Outcome(after, reward, np.zeros(self.agents, np.bool_))

    def view(self, state: NDArray[np.int64]) -> NDArray[np.int64]:
        """``[N, 1]``: all agents see the state."""
        return np.broadcast_to(state, (self.agents, 1))


def parallel_env(**options: Any) -> Any:
    """Digital as a PettingZoo parallel environment: ``pettingzoo/marl.classic.digital``; ``options`` of ``Digital``."""
    from marl.classic.worlds.parallel import ParallelWorld

    return ParallelWorld(Digital(**options))


@njit(cache=True)
def _path(cumulative, state, action, uniform):  # type: ignore[no-untyped-def]
    """``[T + 1]`` states, from cumulative probabilities ``[S, A, S]``, actions and uniform numbers ``[T]``."""
    path = np.empty(len(action) + 1, np.int64)
    path[0] = state
    for t in range(len(action)):
        row = cumulative[path[t], action[t]]
        path[t + 1] = min(np.searchsorted(row, uniform[t], side="right"), len(row) - 1)
    return path
