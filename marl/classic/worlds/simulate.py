"""Whole episodes in one compiled loop: a world's rule, epsilon-greedy agents and their update; and exact tests of them.

The loop calls the very functions that ``TabularWorld`` and the PettingZoo face call.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from marl.classic.tabular import TabularQ, advance
from marl.classic.worlds.blocker import blocker_look, blocker_start, blocker_step
from marl.classic.worlds.landmarks import grid_look, grid_start, grid_step
from marl.classic.worlds.world import BLOCKER, Array, TabularWorld
from marl.types import UserError


def play(world: TabularWorld, learner: TabularQ, rng: np.random.Generator, episodes: int, epsilon: float) -> Array:
    """Let the agents learn for some episodes; ``[episodes]``, the mean return of the agents in each, not discounted.

    Each agent acts greedily by its own table (the lowest of equal actions), and with probability ``epsilon`` uniformly
    at random. At the horizon an episode is cut off and the update bootstraps; where a rule terminates an agent it does
    not, and an agent that has terminated updates nothing while the others go on.

    Args:
        learner: its tables as ``[N, world.states, world.actions]``; changed.
        rng: of the starts and the actions; changed.

    Raises:
        UserError: for tables that do not fit the world, episodes below 0, no probability.
    """
    _check(world, learner)
    if episodes < 0:
        raise UserError(f"episodes: expected 0 or more, got {episodes}")
    if not 0 <= epsilon <= 1:
        raise UserError(f"epsilon: expected a number from 0 to 1, got {epsilon:g}")
    sizes = np.array(world.sizes, np.int64)
    returns, learner.steps = _play(
        world.rules, sizes, world.width, world.horizon,
        learner.q, learner.visits, learner.steps, learner.rule,
        rng, episodes, epsilon,
    )  # fmt: skip
    return np.asarray(returns)


def greedy_returns(world: TabularWorld, learner: TabularQ) -> Array:
    """``[K]``: the mean return of the agents, all greedy, from each of ``world.starts``; not discounted.

    Worlds and policy are deterministic, so that the mean is the exact expected return of the greedy agents.
    """
    _check(world, learner)
    return np.asarray(_greedy(world.rules, np.array(world.sizes, np.int64), world.starts, world.horizon, learner.q))


def _check(world: TabularWorld, learner: TabularQ) -> None:
    wanted = (world.agents, world.states, world.actions)
    if learner.q.shape != wanted:
        raise UserError(f"{world.name} needs tables [N, S, A] = {list(wanted)}, got {list(learner.q.shape)}")


@njit(cache=True)
def _play(  # type: ignore[no-untyped-def]
    rules, sizes, length, horizon, q, visits, when, rule, rng, episodes, epsilon
):
    agents, actions = q.shape[0], q.shape[2]
    state, view = np.empty(length, np.int64), np.empty(len(sizes), np.int64)
    now, after, action = np.empty(agents, np.int64), np.empty(agents, np.int64), np.zeros(agents, np.int64)
    reward, fresh, terminated = np.empty(agents), np.empty(agents), np.empty(agents, np.bool_)
    returns = np.zeros(episodes)
    for episode in range(episodes):
        if rules[0] == BLOCKER:
            blocker_start(rules, rng, state)
        else:
            grid_start(rules, rng, state)
        for i in range(agents):
            now[i] = _index(rules, sizes, state, i, view)
        for _ in range(horizon):
            for i in range(agents):
                if now[i] >= 0:
                    if rng.random() < epsilon:
                        action[i] = rng.integers(0, actions)
                    else:
                        action[i] = _best(q[i, now[i]])
            _step(rules, state, action, reward, terminated)
            for i in range(agents):
                after[i] = _index(rules, sizes, state, i, view)
                returns[episode] += reward[i] / agents
            advance(q, visits, when, now, action, reward, after, terminated, rule, fresh)
            when += 1
            ended = True
            for i in range(agents):
                now[i] = -1 if terminated[i] else after[i]
                ended = ended and terminated[i]
            if ended:
                break
    return returns, when


@njit(cache=True)
def _greedy(rules, sizes, starts, horizon, q):  # type: ignore[no-untyped-def]
    agents = q.shape[0]
    state, view = np.empty(starts.shape[1], np.int64), np.empty(len(sizes), np.int64)
    action, reward, terminated = np.empty(agents, np.int64), np.empty(agents), np.empty(agents, np.bool_)
    returns = np.zeros(len(starts))
    for k in range(len(starts)):
        state[:] = starts[k]
        for _ in range(horizon):
            for i in range(agents):
                action[i] = _best(q[i, _index(rules, sizes, state, i, view)])
            _step(rules, state, action, reward, terminated)
            returns[k] += reward.mean()
            if terminated.all():
                break
    return returns


@njit(cache=True)
def _step(rules, state, action, reward, terminated):  # type: ignore[no-untyped-def]
    if rules[0] == BLOCKER:
        blocker_step(rules, state, action, reward, terminated)
    else:
        grid_step(rules, state, action, reward, terminated)


@njit(cache=True)
def _index(rules, sizes, state, agent, view):  # type: ignore[no-untyped-def]
    """``TabularWorld.index`` of one agent."""
    if rules[0] == BLOCKER:
        blocker_look(rules, state, agent, view)
    else:
        grid_look(rules, state, agent, view)
    index = 0
    for c in range(len(sizes)):
        index = index * sizes[c] + view[c]
    return index


@njit(cache=True)
def _best(values):  # type: ignore[no-untyped-def]
    best = 0
    for a in range(1, len(values)):
        if values[a] > values[best]:
            best = a
    return best
