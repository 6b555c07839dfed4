"""CoopLSVI where states are not finitely many: Algorithm 1 with its history.

No sums of fixed size know the value of every successor that was seen, so all transitions are kept (as features), and
what an agent plans with is a pass over them. An episode without planning still costs the same at any time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from marl.classic.communication import Communication
from marl.classic.continuous import ContinuousLinearMDP
from marl.classic.lsvi import ROUNDING, TIE, Bonus
from marl.classic.mdp import Array
from marl.classic.ridge import LogDetTrigger, RidgeStatistics
from marl.types import State, UserError

NODES = 64
"""States in each cell at which a policy is looked at to evaluate it."""


class ContinuousCoopLSVI:
    """Agents in copies of one process whose states are continuous.

    Ties between actions are broken by an order that each agent draws for each step when it plans.

    Args:
        process: every agent has a copy of its own.
        agents: M.
        trigger, bonus, regulariser, replan, seed: as of ``CoopLSVI``.

    Attributes:
        episodes, regret, gap, communication, statistics, plans: as of ``CooperativeLSVI``; messages are
            transitions.
        optimum: of an episode, exact.
    """

    def __init__(
        self,
        process: ContinuousLinearMDP,
        agents: int,
        *,
        trigger: LogDetTrigger,
        bonus: Bonus = Bonus(),  # noqa: B008  (frozen)
        regulariser: float = 1.0,
        replan: float = 1.2,
        seed: int | np.random.SeedSequence = 0,
    ) -> None:
        if agents < 1:
            raise UserError(f"agents: expected 1 or more, got {agents}")
        if not replan >= 1:
            raise UserError(f"replan: expected a factor of 1 or more, got {replan}")
        self.process, self.agents, self.horizon = process, agents, process.horizon
        self.trigger, self.bonus, self._replan = trigger, bonus, math.log(replan) + ROUNDING
        self.optimum = float(process.optimum[0, 0])
        self.statistics = RidgeStatistics((agents, self.horizon), process.dim, 1, regulariser)
        self._shared = RidgeStatistics((self.horizon,), process.dim, 1, regulariser)
        sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        self._worlds, self._ties = (np.random.default_rng(s) for s in sequence.spawn(2))
        self.communication = Communication()
        self.episodes = self.plans = self._common = 0
        self.regret, self.gap = np.zeros(agents), np.zeros(agents)
        self._phi = np.empty((agents, 0, self.horizon, process.dim))
        self._after = np.empty((agents, 0, self.horizon, process.actions, process.dim))
        self._inverse = self.statistics.inverse.copy()
        self._weights = np.zeros((agents, self.horizon, process.dim))
        self._order = np.zeros((agents, self.horizon, process.actions))
        self._beta = np.zeros(agents)
        self._planned = np.zeros((agents, self.horizon))
        self._plan(range(agents))

    def values(self, agent: int, h: int, features: Array) -> Array:
        """The agent's present optimistic ``Q_h`` ``[...]`` at features ``[..., d]``, clipped at ``H - h``."""
        square = ((features @ self._inverse[agent, h]) * features).sum(-1)
        width = self._beta[agent] * np.sqrt(np.maximum(square, 0.0))
        return np.minimum(features @ self._weights[agent, h] + width, self.horizon - h)

    @property
    def upper(self) -> Array:
        """``[M]``, what each agent believes an episode is worth at most: the mean over first states, in cell 0."""
        features = self.process.features((np.arange(NODES) + 0.5) / (NODES * self.process.dim))
        return np.array([self.values(m, 0, features).max(-1).mean() for m in range(self.agents)])

    def act(self, agent: int, h: int, features: Array) -> NDArray[np.int64]:
        """Greedy actions ``[...]`` at the features ``[..., A, d]`` of states."""
        q = self.values(agent, h, features)
        best = q >= q.max(-1, keepdims=True) - TIE
        actions: NDArray[np.int64] = np.argmax(np.where(best, 1.0 + self._order[agent, h], 0.0), axis=-1)
        return actions

    def fit(self, n_episodes: int) -> None:
        """Every agent plays that many episodes more."""
        if n_episodes < 0:
            raise UserError(f"n_episodes: expected 0 or more, got {n_episodes}")
        for _ in range(n_episodes):
            self._make_room()
            self.regret += self.gap
            self._play()
            self.episodes += 1
            growth = (self.statistics.log_det - self._shared.log_det).max()
            if self.trigger.due(float(growth), self.episodes - self._common):
                transitions = self.statistics.pool(self._shared)
                self._common = self.episodes
                self.communication.record(self.agents, transitions)
                self._plan(range(self.agents))
            else:
                grown = (self.statistics.log_det - self._planned > self._replan).any(axis=1)
                self._plan(np.flatnonzero(grown).tolist())

    def _play(self) -> None:
        x = self.process.reset(self._worlds, self.agents)
        features, each = self.process.features(x), range(self.agents)
        for h in range(self.horizon):
            action = np.array([self.act(m, h, features[m]) for m in each])
            reward, x = self.process.step(self._worlds, x, action)
            phi, features = features[each, action], self.process.features(x)
            now = self.episodes
            self._phi[:, now, h], self._after[:, now, h] = phi, features
            for m in each:
                self.statistics.rank1_update((m, h), phi[m], reward[m], 0)

    def _plan(self, which: Sequence[int]) -> None:
        """Backwards through the steps, all known successors at once."""
        for m in which:
            self.plans += 1
            self._beta[m] = self.bonus.at(self.episodes + 1, self.process.dim, self.horizon, self.agents)
            self._inverse[m] = self.statistics.inverse[m]
            self._planned[m] = self.statistics.log_det[m]
            self._order[m] = self._ties.random(self._order[m].shape)
            for h in reversed(range(self.horizon)):
                target = self.statistics.reward_sum[m, h].copy()
                if h + 1 < self.horizon:
                    for phi, after in self._known(m, h):
                        target += self.values(m, h + 1, after).max(-1) @ phi
                self._weights[m, h] = self._inverse[m, h] @ target
            self.gap[m] = self.optimum - self.process.evaluate(partial(self._policy, m), NODES)[0, 0]

    def _policy(self, agent: int, h: int, x: Array) -> NDArray[np.int64]:
        return self.act(agent, h, self.process.features(x))

    def _known(self, agent: int, h: int) -> list[tuple[Array, Array]]:
        """``phi`` ``[n, d]`` and successors' features ``[n, A, d]``: what is common, and the agent's own news."""
        common, fresh = (slice(None), slice(self._common)), (agent, slice(self._common, self.episodes))
        d, actions = self.process.dim, self.process.actions
        return [
            (self._phi[(*rows, h)].reshape(-1, d), self._after[(*rows, h)].reshape(-1, actions, d))
            for rows in (common, fresh)
        ]

    def _make_room(self) -> None:
        """Twice the room when it is full."""
        if self.episodes == self._phi.shape[1]:
            more = max(16, self.episodes)
            for name in _HISTORY:
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.empty((self.agents, more, *old.shape[2:]))], axis=1))

    def state_dict(self) -> State:
        """Everything that changes, the history included; going on from it gives the same bits."""
        return {
            "statistics": self.statistics.state_dict(),
            "shared": self._shared.state_dict(),
            "communication": self.communication.state_dict(),
            "worlds": self._worlds.bit_generator.state,
            "ties": self._ties.bit_generator.state,
            "counters": [self.episodes, self.plans, self._common],
            **{name: getattr(self, name)[:, : self.episodes].copy() for name in _HISTORY},
            **{name: getattr(self, name).copy() for name in _ARRAYS},
        }

    def load_state_dict(self, state: State) -> None:
        """Of the same process and agents."""
        self.statistics.load_state_dict(state["statistics"])
        self._shared.load_state_dict(state["shared"])
        self.communication.load_state_dict(state["communication"])
        self._worlds.bit_generator.state = state["worlds"]
        self._ties.bit_generator.state = state["ties"]
        self.episodes, self.plans, self._common = map(int, state["counters"])
        for name in (*_HISTORY, *_ARRAYS):
            setattr(self, name, np.array(state[name]))


_HISTORY = ("_phi", "_after")
_ARRAYS = ("regret", "gap", "_inverse", "_weights", "_order", "_beta", "_planned")
