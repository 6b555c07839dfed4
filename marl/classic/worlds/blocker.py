"""Blocker: k + 1 agents must get past k blockers, which cover all of the bottom row but one column.

The grid has 4 rows and 3k + 1 columns; each blocker is three columns wide, so the gap is at one of the columns
0, 3, .., 3k. A step: the blockers move first. The columns of agents in the row above the blockers are attacked; where
the gap is attacked it moves to the first candidate that is not, scanning to the left by 3, then to the right by 3; if
all are attacked it stays, and whoever stands above it can enter. Then the agents move, agent 0 first; a move off the
grid, onto another agent or onto a blocker is none. All earn -1 a step, and +1 at the step at which one enters the
bottom row, which ends the episode. Agents start in different columns of the top row; every choice of columns and of the
first gap is equally likely.

Who moves when, where the gap goes and what is paid are as in public versions of the game; that the first gap is
uniformly random is this project's choice.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numba import njit

from marl.classic.worlds.world import (
    BLOCKER,
    COLUMN_OF,
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

ROWS = 4
PLANNED = 100_000_000
"""Pairs of a state and a joint action that ``best_returns`` goes through at most, in each of some ten sweeps."""


def make_blocker(blockers: int = 2, horizon: int = HORIZON) -> TabularWorld:
    """Blocker with k = ``blockers``, k + 1 agents and 3k + 1 columns.

    The state is ``(row, column)`` of agent 0, 1, .., then the gap's column: L = 2N + 1. An agent's view is its own row
    and column, then those of the others in their order, then the gap's number; the last is ``gap column / 3``.

    Raises:
        UserError: for counts that are not positive.
    """
    agents = positive("blockers", blockers) + 1
    columns = 3 * blockers + 1
    others = [f"{part}_{j}" for j in range(1, agents) for part in ("row", "column")]

    def list_starts() -> Integers:
        orders, gaps = itertools.permutations(range(columns), agents), range(0, columns, 3)
        starts = [[*itertools.chain(*((0, column) for column in order)), gap] for order in orders for gap in gaps]
        return np.array(starts, np.int64)

    return TabularWorld(
        name="blocker",
        agents=agents,
        coordinates=("row", "column", *others, "gap"),
        sizes=(ROWS, columns) * agents + (agents,),
        rule=Rule(blocker_start, blocker_look, blocker_step),
        rules=np.array([BLOCKER, agents], np.int64),
        width=2 * agents + 1,
        list_starts=list_starts,
        horizon=positive("horizon", horizon),
    )


def parallel_env(blockers: int = 2, horizon: int = HORIZON) -> Any:
    """Blocker as a PettingZoo parallel environment: ``pettingzoo/marl.classic.worlds.blocker``."""
    from marl.classic.worlds.parallel import ParallelWorld

    return ParallelWorld(make_blocker(blockers, horizon))


@njit(cache=True)
def blocker_start(rules: Integers, rng: np.random.Generator, state: Integers) -> None:
    agents = rules[1]
    order = np.arange(3 * agents - 2)
    for i in range(agents):
        j = rng.integers(i, len(order))
        order[i], order[j] = order[j], order[i]
        state[2 * i], state[2 * i + 1] = 0, order[i]
    state[2 * agents] = 3 * rng.integers(0, agents)


@njit(cache=True)
def blocker_look(rules: Integers, state: Integers, agent: int, view: Integers) -> None:
    agents = rules[1]
    view[0], view[1] = state[2 * agent], state[2 * agent + 1]
    to = 2
    for other in range(agents):
        if other != agent:
            view[to], view[to + 1] = state[2 * other], state[2 * other + 1]
            to += 2
    view[to] = state[2 * agents] // 3


@njit(cache=True)
def blocker_step(rules: Integers, state: Integers, action: Integers, reward: Array, terminated: Flags) -> None:
    agents = rules[1]
    columns = 3 * agents - 2
    state[2 * agents] = moved_gap(state, agents)
    entered = False
    for i in range(agents):
        row, column = state[2 * i] + ROW_OF[action[i]], state[2 * i + 1] + COLUMN_OF[action[i]]
        inside = 0 <= row < ROWS and 0 <= column < columns
        if inside and (row < ROWS - 1 or column == state[2 * agents]) and not _taken(state, agents, row, column):
            state[2 * i], state[2 * i + 1] = row, column
            entered = entered or row == ROWS - 1
    reward[:] = 1.0 if entered else -1.0
    terminated[:] = entered


@njit(cache=True)
def moved_gap(state: Integers, agents: int) -> int:
    """The gap's column after the blockers' move."""
    gap = state[2 * agents]
    if not _taken(state, agents, ROWS - 2, gap):
        return gap
    for column in range(gap - 3, -1, -3):
        if not _taken(state, agents, ROWS - 2, column):
            return column
    for column in range(gap + 3, 3 * agents - 2, 3):
        if not _taken(state, agents, ROWS - 2, column):
            return column
    return gap


@njit(cache=True)
def _taken(state: Integers, agents: int, row: int, column: int) -> bool:
    for i in range(agents):  # noqa: SIM110  (numba compiles no any())
        if state[2 * i] == row and state[2 * i + 1] == column:
            return True
    return False


def best_returns(world: TabularWorld) -> Array:
    """``[K]``: the largest return (not discounted, of one agent) from each of ``world.starts``, by an exact planner.

    The planner moves all agents together and sees everything; where T steps are the fewest to an entry, -(T - 1) + 1.
    k = 2 (65 856 states, 64 joint actions) takes about a second.

    Raises:
        UserError: for more blockers than a planner of this kind manages.
    """
    joint = world.states * world.actions**world.agents
    if world.rules[0] != BLOCKER or joint > PLANNED:
        raise UserError(
            f"best_returns: expected Blocker with at most {PLANNED} pairs of a state and a joint action, as 2 blockers "
            f"have, got {world.name} with {joint}"
        )
    steps = _steps_to_entry(world.rules, np.array(world.sizes), world.states)
    views = np.array([world.view(state)[0] for state in world.starts])
    fewest = steps[np.ravel_multi_index(tuple(views.T), world.sizes)]
    return np.where((fewest >= 0) & (fewest <= world.horizon), 2.0 - fewest, -float(world.horizon))


@njit(cache=True)
def _steps_to_entry(rules: Integers, sizes: Integers, states: int) -> Integers:
    """``[states]``, by agent 0's view, which holds the global state in its own order; -1: no entry possible."""
    agents = rules[1]
    steps = np.full(states, -1)
    before, after = np.empty(2 * agents + 1, np.int64), np.empty(2 * agents + 1, np.int64)
    action, reward, ended = np.empty(agents, np.int64), np.empty(agents), np.empty(agents, np.bool_)
    level, found = 0, True
    while found:  # one sweep gives a number to all states that are level + 1 steps away
        found, level = False, level + 1
        for index in range(states):
            if steps[index] >= 0 or not _unravel(index, sizes, agents, before):
                continue
            for joint in range(4**agents):
                for i in range(agents):
                    action[i] = (joint >> (2 * i)) & 3
                after[:] = before
                blocker_step(rules, after, action, reward, ended)
                if ended[0] if level == 1 else not ended[0] and steps[_ravel(after, sizes)] == level - 1:
                    steps[index], found = level, True
                    break
    return steps


@njit(cache=True)
def _unravel(index: int, sizes: Integers, agents: int, state: Integers) -> bool:
    """Writes the state; whether it can happen before an entry: nobody in the bottom row, no two in one cell."""
    for c in range(len(sizes) - 1, -1, -1):
        state[c] = index % sizes[c]
        index //= sizes[c]
    state[2 * agents] *= 3
    for i in range(agents):
        if state[2 * i] == ROWS - 1 or _taken(state, i, state[2 * i], state[2 * i + 1]):
            return False
    return True


@njit(cache=True)
def _ravel(state: Integers, sizes: Integers) -> int:
    index = 0
    for c in range(len(sizes) - 1):
        index = index * sizes[c] + state[c]
    return index * sizes[-1] + state[-1] // 3
