"""Landmarks: each of N agents walks to a landmark of its own on a 5 x 5 grid.

At an episode's start the landmarks are dealt out: N different cells, one for each agent, which begins in any other
cell; all such starts are equally likely. An agent earns -1 a step, and +1 at the step at which it reaches its landmark,
where it stays: it has terminated, and earns nothing more. A move off the grid is none; agents may share a cell. The
paper says no more than that agents reach landmarks, so all of this is this project's choice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from marl.classic.worlds.world import (
    COLUMN_OF,
    GRID,
    HORIZON,
    ROW_OF,
    Array,
    Flags,
    Integers,
    Rule,
    TabularWorld,
    positive,
)
from marl.types import UserError

SIDE = 5
CELLS = SIDE * SIDE


def make_landmarks(agents: int = 2, horizon: int = HORIZON) -> TabularWorld:
    """Landmarks with up to 25 agents.

    The state is ``(row, column, landmark)`` of agent 0, 1, ..: L = 3N, the landmark the number of its cell, row by row.
    An agent's view is its own three numbers. Raises ``UserError`` for more agents than cells.
    """
    return make_grid("landmarks", positive("agents", agents, CELLS), horizon, shared=False)


def parallel_env(agents: int = 2, horizon: int = HORIZON) -> Any:
    """Landmarks as a PettingZoo parallel environment: ``pettingzoo/marl.classic.worlds.landmarks``."""
    from marl.classic.worlds.parallel import ParallelWorld

    return ParallelWorld(make_landmarks(agents, horizon))


def make_grid(name: str, agents: int, horizon: int, shared: bool) -> TabularWorld:
    """The 5 x 5 grid with a landmark for each agent, or one that all share.

    No agent disturbs another, so that the mean over ``starts`` is exact although in each of them all agents begin in
    one cell: the 600 pairs of a cell and a landmark elsewhere are what each agent meets equally often.
    """

    def list_starts() -> Integers:
        pairs = [(*divmod(cell, SIDE), mark) for mark in range(CELLS) for cell in range(CELLS) if cell != mark]
        return np.tile(np.array(pairs, np.int64), (1, agents))

    return TabularWorld(
        name=name,
        agents=agents,
        coordinates=("row", "column", "landmark"),
        sizes=(SIDE, SIDE, CELLS),
        rule=Rule(grid_start, grid_look, grid_step),
        rules=np.array([GRID, agents, shared], np.int64),
        width=3 * agents,
        list_starts=list_starts,
        horizon=positive("horizon", horizon),
    )


def best_returns(world: TabularWorld) -> Array:
    """``[K]``: the largest mean return (not discounted) of the agents from each of ``world.starts``.

    An agent ``D`` moves (Manhattan) from its landmark earns -(D - 1) + 1 if D steps fit into the horizon.
    """
    if world.rules[0] != GRID:
        raise UserError(f"best_returns: expected Landmarks or Navigation, got {world.name}")
    row, column, landmark = world.starts.reshape(len(world.starts), world.agents, 3).transpose(2, 0, 1)
    distance = np.abs(row - landmark // SIDE) + np.abs(column - landmark % SIDE)
    return np.where(distance <= world.horizon, 2.0 - distance, -float(world.horizon)).mean(1)


@njit(cache=True)
def grid_start(rules: Integers, rng: np.random.Generator, state: Integers) -> None:
    agents, shared = rules[1], rules[2]
    order = np.arange(CELLS)
    for i in range(agents):
        if i == 0 or not shared:
            j = rng.integers(i, CELLS)
            order[i], order[j] = order[j], order[i]
        landmark = order[0] if shared else order[i]
        cell = rng.integers(0, CELLS - 1)
        cell += cell >= landmark
        state[3 * i], state[3 * i + 1], state[3 * i + 2] = cell // SIDE, cell % SIDE, landmark


@njit(cache=True)
def grid_look(rules: Integers, state: Integers, agent: int, view: Integers) -> None:
    view[:] = state[3 * agent : 3 * agent + 3]


@njit(cache=True)
def grid_step(rules: Integers, state: Integers, action: Integers, reward: Array, terminated: Flags) -> None:
    for i in range(rules[1]):
        landmark = state[3 * i + 2]
        reward[i] = 0.0
        terminated[i] = state[3 * i] * SIDE + state[3 * i + 1] == landmark
        if not terminated[i]:
            row, column = state[3 * i] + ROW_OF[action[i]], state[3 * i + 1] + COLUMN_OF[action[i]]
            if 0 <= row < SIDE and 0 <= column < SIDE:
                state[3 * i], state[3 * i + 1] = row, column
                terminated[i] = row * SIDE + column == landmark
            reward[i] = 1.0 if terminated[i] else -1.0
