"""Exploration without rewards and planning from what it gathered (DistMT paper, Algorithms 2 and 3).

The data set of a phase is its sums (``RidgeStatistics`` of shape ``(H,)``, regulariser 1): with finitely many states
the regressions of both algorithms need nothing else, and neither time nor memory grows with the history.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from marl.classic.mdp import Array, LinearMDP
from marl.classic.planning import greedy
from marl.classic.ridge import RidgeStatistics, add_row, ridge_weights, square_bonus
from marl.types import UserError

Integers = NDArray[np.int64]


class World(NamedTuple):
    """A task as the compiled loops walk it.

    Attributes:
        features: ``[S, A, d]``.
        cumulative: ``[H, S, A, S]``, sums of the transition probabilities, the last exactly 1.
        reward: ``[H, S, A]``.
        start: ``s_0``, the state in which every episode begins.
    """

    features: Array
    cumulative: Array
    reward: Array
    start: int

    @classmethod
    def of(cls, task: LinearMDP) -> World:
        """Raises ``UserError`` where the first state is random: the paper has one fixed ``s_0``."""
        assert task.start is not None  # a process fills it in when it is made
        possible = np.flatnonzero(task.start)
        if len(possible) > 1:
            raise UserError(f"start: expected one fixed state s_0 for all episodes, got {len(possible)} possible ones")
        cumulative = task.tabular.transition.cumsum(-1)
        cumulative[..., -1] = 1.0
        features, reward = (np.ascontiguousarray(array) for array in (task.features, task.tabular.reward))
        return cls(features, cumulative, reward, int(possible[0]))

    def empty(self) -> RidgeStatistics:
        """The data set of no episode."""
        horizon, states, _ = self.reward.shape
        return RidgeStatistics((horizon,), self.features.shape[-1], states)


def check_replan_growth(replan_growth: float) -> None:
    """Raises ``UserError`` for a growth of a determinant below 1."""
    if not replan_growth >= 1:
        raise UserError(f"replan_growth: expected 1 (plan before every episode) or more, got {replan_growth}")


def exp_ph(
    world: World, beta: float, episodes: int, rng: np.random.Generator, replan_growth: float = 1.2
) -> RidgeStatistics:
    """ExpPh (Algorithm 2): ``episodes`` episodes, greedy for a reward that is nothing but uncertainty.

    ``Q_h = min(theta_h phi + u_h + u_h / H, H)`` with ``u_h = min(beta |phi|_{Lambda^-1}, H)`` and ``theta_h`` the
    regression of ``V_{h+1}`` alone, the rewards left out. Ties go to the lowest action.

    Args:
        replan_growth: plan anew when some ``det Lambda_h`` has grown by this factor since the last plan; 1: before
            every episode, as printed.

    Raises:
        UserError: ``replan_growth`` below 1, a negative ``beta``, or no episode.
    """
    _check_beta(beta)
    check_replan_growth(replan_growth)
    draws = rng.random((_counted(episodes), len(world.reward)))
    data = world.empty()
    sums = data.gram, data.inverse, data.reward_sum, data.next_sum
    _explore(*world, float(beta), math.log(replan_growth), draws, *sums)
    return _finished(data, episodes)


def uniform_exploration(world: World, episodes: int, rng: np.random.Generator) -> RidgeStatistics:
    """``episodes`` episodes of uniformly random actions, to be compared with ExpPh."""
    size = _counted(episodes), len(world.reward)
    actions = rng.integers(world.reward.shape[-1], size=size)
    data = world.empty()
    _wander(*world, actions, rng.random(size), data.gram, data.inverse, data.reward_sum, data.next_sum)
    return _finished(data, episodes)


class Plan(NamedTuple):
    """What ``planning`` finds.

    Attributes:
        theta: ``[H, d]``.
        value: ``[H, S]``, optimistic.
        policy: ``[H, S]``, greedy; ties go to the lowest action.
    """

    theta: Array
    value: Array
    policy: Integers


def planning(data: RidgeStatistics, features: Array, beta: float) -> Plan:
    """Planning (Algorithm 3): optimistic values with the rewards that were observed, by backward regression.

    ``theta_h = Lambda_h^-1 sum phi (r + V_{h+1}(s'))`` and ``Q_h = min(theta_h phi + u_h, H)``.
    Raises ``UserError`` for a negative ``beta``.
    """
    _check_beta(beta)
    (horizon,), states = data.shape, data.states
    theta = np.zeros((horizon, data.dim))
    value = np.zeros((horizon + 1, states))
    policy = np.zeros((horizon, states), np.int64)
    for h in reversed(range(horizon)):
        theta[h] = ridge_weights(data.inverse[h], data.reward_sum[h], data.next_sum[h], value[h + 1])
        q = _optimistic(theta[h], data.inverse[h], features, beta, horizon)
        policy[h], value[h] = greedy(q), q.max(-1)
    return Plan(theta, value[:-1], policy)


def greedy_policy(theta: Array, inverse: Array, features: Array, beta: float) -> Integers:
    """``[H, S]``: the policy that ``theta`` ``[H, d]`` and ``Lambda`` stand for (Algorithm 1, lines 9 and 14).

    inverse: ``[H, d, d]``, of ``Lambda``.
    """
    q = [_optimistic(t, i, features, beta, len(theta)) for t, i in zip(theta, inverse, strict=True)]
    return greedy(np.stack(q))


def _optimistic(theta: Array, inverse: Array, features: Array, beta: float, horizon: int) -> Array:
    """``Q_h`` ``[S, A]`` of one step."""
    flat = features.reshape(-1, features.shape[-1])
    bonus = np.minimum(beta * np.sqrt(square_bonus(inverse, flat)), horizon)
    q: Array = np.minimum(flat @ theta + bonus, horizon).reshape(features.shape[:2])
    return q


def _check_beta(beta: float) -> None:
    if not (math.isfinite(beta) and beta >= 0):
        raise UserError(f"beta: expected a number of 0 or more, got {beta}")


def _counted(episodes: int) -> int:
    if episodes < 1:
        raise UserError(f"episodes: expected 1 or more, got {episodes}")
    return episodes


def _finished(data: RidgeStatistics, episodes: int) -> RidgeStatistics:
    """Every step saw every episode; the inverses anew, without the rounding of all the updates."""
    data.count[:] = episodes
    data.factor()
    return data


@njit(cache=True)
def _explore(
    features: Array, cumulative: Array, reward: Array, start: int,
    beta: float, growth: float, draws: Array,
    gram: Array, inverse: Array, reward_sum: Array, next_sum: Array,
) -> int:  # fmt: skip
    """The episodes of ``exp_ph``, into the last four arrays; returns how often it planned.

    draws ``[K, H]``: uniform numbers that choose the next states; growth: of log det, that asks for a new plan.
    """
    horizon = len(reward)
    policy = np.zeros((horizon, features.shape[0]), np.int64)
    grown = np.full(horizon, np.inf)
    plans = 0
    for k in range(len(draws)):
        if grown.max() >= growth:
            _plan_exploration(features, inverse, next_sum, beta, policy)
            grown[:] = 0.0
            plans += 1
        state = start
        for h in range(horizon):
            action = policy[h, state]
            after = _successor(cumulative[h, state, action], draws[k, h])
            grown[h] += add_row(
                gram[h], inverse[h], reward_sum[h], next_sum[h],
                features[state, action], reward[h, state, action], after,
            )  # fmt: skip
            state = after
    return plans


@njit(cache=True)
def _plan_exploration(features: Array, inverse: Array, next_sum: Array, beta: float, policy: Integers) -> None:
    """Lines 5 to 11 of Algorithm 2, into ``policy`` ``[H, S]``."""
    horizon, dim, states = next_sum.shape
    actions = features.shape[1]
    flat = features.reshape(states * actions, dim)
    value = np.zeros(states)
    for h in range(horizon - 1, -1, -1):
        mean = np.dot(flat, ridge_weights(inverse[h], np.zeros(dim), next_sum[h], value))
        bonus = np.minimum(beta * np.sqrt(square_bonus(inverse[h], flat)), horizon)
        q = np.minimum(mean + bonus + bonus / horizon, horizon).reshape(states, actions)
        for x in range(states):
            policy[h, x] = q[x].argmax()
            value[x] = q[x].max()


@njit(cache=True)
def _wander(
    features: Array, cumulative: Array, reward: Array, start: int,
    actions: Integers, draws: Array,
    gram: Array, inverse: Array, reward_sum: Array, next_sum: Array,
) -> None:  # fmt: skip
    """The episodes of ``uniform_exploration``; actions, draws: ``[K, H]``."""
    for k in range(len(draws)):
        state = start
        for h in range(len(reward)):
            action = actions[k, h]
            after = _successor(cumulative[h, state, action], draws[k, h])
            add_row(
                gram[h], inverse[h], reward_sum[h], next_sum[h],
                features[state, action], reward[h, state, action], after,
            )  # fmt: skip
            state = after


@njit(cache=True)
def _successor(cumulative: Array, draw: float) -> int:
    """The first state whose cumulative probability exceeds ``draw``, a number in [0, 1)."""
    state = 0
    while cumulative[state] <= draw:
        state += 1
    return state
