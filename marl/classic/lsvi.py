"""Optimistic least-squares value iteration by M agents who share what they know when a trigger says so.

The part that CoopLSVI's Algorithms 1 and 3 have in common. Agents that know of each other's processes (Algorithm 3)
plan on the states of all *blocks*, ``(n, x)`` numbered ``n S + x``; in Algorithm 1 there is one block.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.random import Generator
from numpy.typing import NDArray

from marl.classic.communication import Communication, sums_size
from marl.classic.mdp import Array, LinearMDP, start_distribution
from marl.classic.planning import evaluate_policy, optimal_values, start_value
from marl.classic.ridge import LogDetTrigger, RidgeStatistics, add_row, ridge_weights, square_bonus
from marl.types import State, UserError

TIE = 1e-9
"""Actions whose values differ by less are equally good, and one of them is drawn."""

ROUNDING = 1e-9
"""Growth of log det beyond ``replan`` that is needed to plan anew: with one-hot features it often equals it."""

LINEAR_FROM = 1024
"""Episodes, a power of two, from which on regret that still grows linearly is worth a warning."""


@dataclass(frozen=True)
class Bonus:
    """The width ``beta`` of the confidence intervals.

    ``scale d H sqrt(log(2 d M H t / failure)) + heterogeneity sqrt(d M t)`` at episode t, or ``beta`` itself where it
    is given. The first term is that of the paper's proofs (its theorems print ``H sqrt(d log)``). The second is that
    of Theorem 2, whose proof needs ``2 H`` times as much: with it values need not be optimistic.

    Attributes:
        beta: None: by the formula. Useful in practice: 1 to 4.
        scale: ``c``; 1 is the theory.
        heterogeneity: ``xi``, how far the agents' transitions and rewards may lie apart (Assumption 1); only without
            ``beta``.
        failure: probability with which the intervals may fail.
    """

    beta: float | None = None
    scale: float = 1.0
    heterogeneity: float = 0.0
    failure: float = 0.1

    def __post_init__(self) -> None:
        for name in ("beta", "scale", "heterogeneity", "failure"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name}: expected a number of 0 or more, got {value}")
        if not 0 < self.failure < 1:
            raise UserError(f"failure: expected a probability between 0 and 1, got {self.failure}")
        if self.beta is not None and self.heterogeneity:
            raise UserError(f"heterogeneity: it widens theory's beta alone, expected 0 with beta = {self.beta:g}")

    def at(self, episode: int, dim: int, horizon: int, agents: int) -> float:
        """``beta`` of that episode, counted from 1."""
        if self.beta is not None:
            return self.beta
        width = dim * horizon * math.sqrt(math.log(2 * dim * agents * horizon * episode / self.failure))
        return self.scale * width + self.heterogeneity * math.sqrt(dim * agents * episode)


@njit(cache=True)
def draw(cumulative: Array, rng: Generator) -> int:
    """A state with the distribution whose cumulative sums are given, the last one above 1."""
    uniform = rng.random()
    state = 0
    while cumulative[state] <= uniform:
        state += 1
    return state


@njit(cache=True)
def draw_tied(tied: NDArray[np.bool_], rng: Generator) -> int:
    """One of the True entries, all alike."""
    skip = 0
    number = tied.sum()
    if number > 1:
        skip = int(rng.random() * number)
    for action in range(tied.shape[0]):
        if tied[action]:
            if skip == 0:
                return action
            skip -= 1
    return 0


@njit(cache=True)
def run_episodes(
    limit: int,
    since: int,
    threshold: float,
    replan: float,
    worlds: Generator,
    ties: Generator,
    start: Array,
    transition: Array,
    reward: Array,
    process: NDArray[np.int64],
    features: Array,
    block: NDArray[np.int64],
    tied: NDArray[np.bool_],
    planned: Array,
    shared_log_det: Array,
    gram: Array,
    inverse: Array,
    reward_sum: Array,
    next_sum: Array,
    count: NDArray[np.int64],
    log_det: Array,
) -> tuple[int, bool]:
    """Episodes of all agents under one plan: to ``limit``, or to the end of the one after which something is due.

    Args:
        since: episodes since the last synchronisation.
        threshold: of the trigger (``LogDetTrigger``).
        replan: growth of log det since the plan, above which its agent plans anew.
        start, transition: ``[S]``, ``[K, H, S, A, S]``, cumulative.
        reward: ``[K, H, S, A]``.
        process, block: ``[M]``, where each agent lives, and which block of ``features`` is its own.
        features: ``[G S, A, d]``.
        tied: ``[M, H, S, A]``, the best actions.
        planned: ``[M, H]``, log det when the agent planned; ``shared_log_det`` ``[H]``: of what all know.
        gram, ..., log_det: the agents' ``RidgeStatistics``; they grow in place.

    Returns:
        How many episodes, and whether a synchronisation is due.
    """
    agents, horizon = log_det.shape
    states = start.shape[0]
    for episode in range(limit):
        since += 1
        due = stale = False
        for m in range(agents):
            world, offset = process[m], block[m] * states
            x = draw(start, worlds)
            for h in range(horizon):
                a = draw_tied(tied[m, h, x], ties)
                y = draw(transition[world, h, x, a], worlds)
                log_det[m, h] += add_row(
                    gram[m, h], inverse[m, h], reward_sum[m, h], next_sum[m, h],
                    features[offset + x, a], reward[world, h, x, a], offset + y,
                )  # fmt: skip
                count[m, h] += 1
                due |= log_det[m, h] - shared_log_det[h] > threshold / since
                stale |= log_det[m, h] - planned[m, h] > replan
                x = y
        if due or stale:
            return episode + 1, due
    return limit, False


@njit(cache=True)
def plan_backwards(
    which: NDArray[np.int64],
    inverse: Array,
    reward_sum: Array,
    next_sum: Array,
    features: Array,
    beta: float,
    q: Array,
    v: Array,
) -> None:
    """Optimistic values of the agents in ``which``, in place (equations 1, 2, 5, 6; or 8 and 10).

    ``q`` ``[M, H, G S, A]``; ``v`` ``[M, H + 1, G S]``, whose last step stays 0; ``features`` ``[G S, A, d]``; the
    statistics ``[M, H, ...]``. Step h (from 0) is clipped at ``H - h``.
    """
    states, actions, dim = features.shape
    rows = features.reshape(states * actions, dim)
    horizon = q.shape[1]
    for m in which:
        for h in range(horizon - 1, -1, -1):
            w = ridge_weights(inverse[m, h], reward_sum[m, h], next_sum[m, h], v[m, h + 1])
            width = beta * np.sqrt(np.maximum(square_bonus(inverse[m, h], rows), 0.0))
            q[m, h] = np.minimum(np.dot(rows, w) + width, horizon - h).reshape(states, actions)
            for x in range(states):
                v[m, h, x] = q[m, h, x].max()


class CooperativeLSVI:
    """The engine; made by ``CoopLSVI`` and ``HeterogeneousCoopLSVI``.

    Attributes:
        episodes: played so far by every agent.
        communication: the account.
        optimum: ``[M]``, exact, of each agent's process.
        gap: ``[M]``, regret of one episode under the present plan, in expectation over the first state and over ties.
        statistics: ``[M, H]``, what each agent knows.
        q: ``[M, H, G S, A]``, v: ``[M, H + 1, G S]``: the optimistic values of the present plan.
        tied: ``[M, H, S, A]``, the present policies: the actions between which an agent draws.
        plans: number of times that some agent planned.
    """

    def __init__(
        self,
        processes: Sequence[LinearMDP],
        features: Array,
        block: NDArray[np.int64],
        trigger: LogDetTrigger,
        bonus: Bonus,
        regulariser: float,
        replan: float,
        seed: int | np.random.SeedSequence,
    ) -> None:
        """``processes``: each agent's own; ``features`` ``[G, S, A, d]``; ``block`` ``[M]``: which of G is the own."""
        if not replan >= 1:
            raise UserError(f"replan: expected a factor of 1 or more, got {replan}")
        first = processes[0]
        self.agents, self.horizon = len(processes), first.horizon
        self.states, self.actions = first.states, first.actions
        self.trigger, self.bonus, self._replan = trigger, bonus, math.log(replan) + ROUNDING
        self._block = block
        self._features = np.ascontiguousarray(features.reshape(-1, self.actions, features.shape[-1]))
        number: dict[bytes, int] = {}
        tables = {id(process): process.tabular for process in processes}
        names = {key: table.transition.tobytes() + table.reward.tobytes() for key, table in tables.items()}
        self._process = np.array([number.setdefault(names[id(process)], len(number)) for process in processes])
        self._tables = [next(tables[key] for key, n in names.items() if n == name) for name in number]
        self._first = start_distribution(first.start, first.states)
        self._start = _cumulative(self._first)
        self._transition = _cumulative(np.stack([table.transition for table in self._tables]))
        self._reward = np.stack([table.reward for table in self._tables])
        self.optimum = np.array([start_value(t, optimal_values(t).v) for t in self._tables])[self._process]

        dim, planned_states = self._features.shape[2], self._features.shape[0]
        self.statistics = RidgeStatistics((self.agents, self.horizon), dim, planned_states, regulariser)
        self._shared = RidgeStatistics((self.horizon,), dim, planned_states, regulariser)
        sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        self._worlds, self._ties = (np.random.default_rng(s) for s in sequence.spawn(2))
        self.communication = Communication()
        self.episodes = self.plans = self._since = 0
        self._milestone = 0.0
        self.q = np.zeros((self.agents, self.horizon, planned_states, self.actions))
        self.v = np.zeros((self.agents, self.horizon + 1, planned_states))
        self.tied = np.zeros((self.agents, self.horizon, self.states, self.actions), np.bool_)
        self._planned = np.zeros((self.agents, self.horizon))
        self.gap, self._paid, self._from = np.zeros((3, self.agents))
        self._plan_alike()

    @property
    def dim(self) -> int:
        """d of the features that the agents regress on."""
        return self.statistics.dim

    @property
    def regret(self) -> Array:
        """``[M]``, exact: ``sum_t V*_1 - V^pi_1`` of each agent; its bits do not depend on the pieces of ``fit``."""
        return self._paid + (self.episodes - self._from) * self.gap

    @property
    def upper(self) -> Array:
        """``[M]``, what each agent believes its first state is worth at most.

        With theory's beta it is V* or more, unless processes that differ share their features (Assumption 1).
        """
        own = self._block[:, None] * self.states + np.arange(self.states)
        return np.take_along_axis(self.v[:, 0], own, axis=1) @ self._first

    def fit(self, n_episodes: int) -> None:
        """Every agent plays that many episodes more."""
        if n_episodes < 0:
            raise UserError(f"n_episodes: expected 0 or more, got {n_episodes}")
        end = self.episodes + n_episodes
        while self.episodes < end:
            milestone = 1 << self.episodes.bit_length()
            known = self.statistics
            ran, due = run_episodes(
                min(end, milestone) - self.episodes, self._since, self.trigger.threshold, self._replan,
                self._worlds, self._ties, self._start, self._transition, self._reward, self._process,
                self._features, self._block, self.tied, self._planned, self._shared.log_det,
                known.gram, known.inverse, known.reward_sum, known.next_sum, known.count, known.log_det,
            )  # fmt: skip
            self.episodes += ran
            self._since += ran
            if due:
                self._synchronise()
            else:
                grown = (known.log_det - self._planned > self._replan).any(axis=1)
                self._plan(np.flatnonzero(grown))
            if self.episodes == milestone:
                self._look_back()

    def _synchronise(self) -> None:
        """All that the agents learned since the last time becomes common, and everyone plans on the same."""
        transitions = self.statistics.pool(self._shared)
        self._since = 0
        own, all_states = (self.horizon * sums_size(self.dim, n) for n in (self.states, self.statistics.states))
        self.communication.record(self.agents, transitions, own, all_states)
        self._plan_alike()

    def _plan_alike(self) -> None:
        """Where all agents know the same, one plans and the others copy."""
        self._solve(np.arange(1))
        self.q[1:], self.v[1:] = self.q[0], self.v[0]
        self._adopt(np.arange(self.agents))

    def _plan(self, which: NDArray[np.int64]) -> None:
        if which.size:
            self._solve(which)
            self._adopt(which)

    def _solve(self, which: NDArray[np.int64]) -> None:
        known = self.statistics
        beta = self.bonus.at(self.episodes + 1, self.dim, self.horizon, self.agents)
        plan_backwards(which, known.inverse, known.reward_sum, known.next_sum, self._features, beta, self.q, self.v)
        self.plans += 1

    def _adopt(self, which: NDArray[np.int64]) -> None:
        """Greedy policies from the values, and their exact regret where the policy is another one than before."""
        self._planned[which] = self.statistics.log_det[which]
        own = self._block[which, None] * self.states + np.arange(self.states)
        q = np.take_along_axis(self.q[which], own[:, None, :, None], axis=2)
        tied = q >= q.max(axis=-1, keepdims=True) - TIE
        changed = (tied != self.tied[which]).any(axis=(1, 2, 3))
        self.tied[which] = tied
        evaluated: dict[tuple[int, bytes], float] = {}
        for m in which[changed]:
            key = int(self._process[m]), self.tied[m].tobytes()
            if key not in evaluated:
                table = self._tables[key[0]]
                policy = self.tied[m] / self.tied[m].sum(axis=-1, keepdims=True)
                evaluated[key] = start_value(table, evaluate_policy(table, policy))
            self._paid[m] += (self.episodes - self._from[m]) * self.gap[m]
            self._from[m] = self.episodes
            self.gap[m] = self.optimum[m] - evaluated[key]

    def _look_back(self) -> None:
        """At every power of two: has the second half cost as much as the first?

        Where processes differ and features do not say so, linear regret is what theory expects, and no surprise.
        """
        total, half = float(self.regret.sum()), self._milestone
        self._milestone = total
        late = (total - half) / (self.agents * (self.episodes / 2))
        surprising = len(self._tables) == 1 or self._block.any()
        linear = total - half > 0.9 * half and late > 0.05 * self.optimum.mean()
        if self.episodes == LINEAR_FROM and linear and surprising:
            beta = self.bonus.at(self.episodes, self.dim, self.horizon, self.agents)
            logging.getLogger("marl").warning(
                f"after {self.episodes} episodes regret still grows linearly ({late:.3g} an episode and agent) with "
                f"beta = {beta:.3g}: exploration failed or is not over; try another beta (1 to 4 are useful)"
            )

    def state_dict(self) -> State:
        """Everything that changes; going on from it gives the same bits."""
        return {
            "statistics": self.statistics.state_dict(),
            "shared": self._shared.state_dict(),
            "communication": self.communication.state_dict(),
            "worlds": self._worlds.bit_generator.state,
            "ties": self._ties.bit_generator.state,
            "counters": [self.episodes, self.plans, self._since, self._milestone],
            **{name: getattr(self, name).copy() for name in _ARRAYS},
        }

    def load_state_dict(self, state: State) -> None:
        """Of the same processes, agents and features."""
        self.statistics.load_state_dict(state["statistics"])
        self._shared.load_state_dict(state["shared"])
        self.communication.load_state_dict(state["communication"])
        self._worlds.bit_generator.state = state["worlds"]
        self._ties.bit_generator.state = state["ties"]
        self.episodes, self.plans, self._since = map(int, state["counters"][:3])
        self._milestone = float(state["counters"][3])
        for name in _ARRAYS:
            getattr(self, name)[...] = state[name]


_ARRAYS = ("q", "v", "tied", "_planned", "gap", "_paid", "_from")


def _cumulative(probabilities: Array) -> Array:
    """Sums along the last axis; from the last state that can be reached on they are 2, above every uniform number."""
    sums = np.cumsum(probabilities, axis=-1)
    return np.where(sums >= sums[..., -1:], 2.0, sums)
