"""What a tabular world is: one njit rule for each of three questions, and the same rule asked from Python.

``N`` agents, ``L`` integers of global state, ``C`` coordinates of one agent's view of it, ``K`` start states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from marl.classic.adjacency import Adjacency
from marl.config import suggestion
from marl.types import UserError

Array: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]

BLOCKER, GRID = 0, 1
"""``rules[0]``: which rule the simulator follows."""

HORIZON = 40
"""Steps of an episode where nothing else is said. A truncation: values are bootstrapped beyond it."""

UP, DOWN, LEFT, RIGHT = 0, 1, 2, 3
ROW_OF = (-1, 1, 0, 0)
COLUMN_OF = (0, 0, -1, 1)
"""By how much an action changes the row (counted from the top) and the column."""


class Outcome(NamedTuple):
    """What one step of all agents led to.

    Attributes:
        state: ``[L]``, a new array.
        reward: ``[N]``; 0 for an agent that had terminated before.
        terminated: ``[N]``; stays True.
    """

    state: Integers
    reward: Array
    terminated: Flags


class World(Protocol):
    """What the PettingZoo face needs of a world.

    Attributes:
        name: of the world.
        agents, actions: N, and how many actions each of them has.
        horizon: steps after which an episode is cut off.
        coordinates: ``[C]`` names of what an agent's view holds.
        sizes: ``[C]``, each coordinate is one of 0 .. size - 1.
    """

    @property
    def name(self) -> str: ...
    @property
    def agents(self) -> int: ...
    @property
    def actions(self) -> int: ...
    @property
    def horizon(self) -> int: ...
    @property
    def coordinates(self) -> tuple[str, ...]: ...
    @property
    def sizes(self) -> tuple[int, ...]: ...
    def start(self, rng: np.random.Generator) -> Integers:
        """``[L]``, a first state."""

    def step(self, state: Integers, action: Integers, rng: np.random.Generator) -> Outcome:
        """``action`` ``[N]``, what each agent does; ``state`` is left as it was."""

    def view(self, state: Integers) -> Integers:
        """``[N, C]``, the global state as each agent sees it, itself first."""


class Rule(NamedTuple):
    """The njit functions of a world; ``rules`` are its constants.

    Attributes:
        start: ``(rules, rng, state)`` writes a random first state.
        look: ``(rules, state, agent, view)`` writes the agent's coordinates.
        step: ``(rules, state, action, reward, terminated)`` changes the state and writes the rest.
    """

    start: Callable[[Integers, np.random.Generator, Integers], None]
    look: Callable[[Integers, Integers, int, Integers], None]
    step: Callable[[Integers, Integers, Integers, Array, Flags], None]


@dataclass(frozen=True, eq=False)
class TabularWorld:
    """A ``World`` of moves on a grid, deterministic after its start.

    Attributes:
        rule: how it works.
        rules: the integers that ``rule`` reads; ``rules[0]`` is ``BLOCKER`` or ``GRID``, ``rules[1]`` is N.
        width: L.
        list_starts: makes ``starts``.
    """

    name: str
    agents: int
    coordinates: tuple[str, ...]
    sizes: tuple[int, ...]
    rule: Rule
    rules: Integers
    width: int
    list_starts: Callable[[], Integers]
    horizon: int = HORIZON
    actions: int = 4

    @property
    def states(self) -> int:
        """Rows of one agent's table: all combinations of coordinates, also those that never happen."""
        return math.prod(self.sizes)

    @cached_property
    def starts(self) -> Integers:
        """``[K, L]``: states such that, for any policy, the mean over them of the agents' mean return is its mean over
        the start distribution."""
        return self.list_starts()

    def start(self, rng: np.random.Generator) -> Integers:
        state = np.empty(self.width, np.int64)
        self.rule.start(self.rules, rng, state)
        return state

    def step(self, state: Integers, action: Integers, rng: np.random.Generator | None = None) -> Outcome:
        if np.shape(state) != (self.width,):
            raise UserError(f"state: expected [{self.width}], got {list(np.shape(state))}")
        after = np.array(state, np.int64)
        reward, terminated = np.empty(self.agents), np.empty(self.agents, np.bool_)
        self.rule.step(self.rules, after, chosen(action, self.agents, self.actions), reward, terminated)
        return Outcome(after, reward, terminated)

    def view(self, state: Integers) -> Integers:
        views = np.empty((self.agents, len(self.sizes)), np.int64)
        for agent in range(self.agents):
            self.rule.look(self.rules, state, agent, views[agent])
        return views

    def index(self, state: Integers) -> Integers:
        """``[N]``, the row of each agent's table: its view read as one number, the last coordinate the fastest."""
        return np.asarray(np.ravel_multi_index(tuple(self.view(state).T), self.sizes), np.int64)

    def adjacency(self, hidden: str) -> Adjacency:
        """S# = the states that differ from a state in the ``hidden`` coordinate at most (rho = 1), all alike.

        Raises ``UserError`` for a coordinate that is not there.
        """
        if hidden not in self.coordinates:
            raise UserError(f"hidden: {self.name} has no coordinate {hidden!r}{suggestion(hidden, self.coordinates)}")
        return Adjacency.hidden(self.sizes, self.coordinates.index(hidden))


def chosen(action: ArrayLike, agents: int, actions: int) -> Integers:
    """``[N]``, each agent's action, checked (compiled rules look up whatever they are given); raises ``UserError``."""
    found = np.asarray(action, np.int64)
    if found.shape != (agents,) or found.min() < 0 or found.max() >= actions:
        raise UserError(f"action: expected {agents} numbers from 0 to {actions - 1}, got {found.tolist()}")
    return found


def positive(name: str, value: Any, most: int | None = None) -> int:
    """A count, checked; raises ``UserError``."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1 or (most and value > most):
        wanted = f"a whole number from 1 to {most}" if most else "a whole number of 1 or more"
        raise UserError(f"{name}: expected {wanted}, got {value!r}")
    return int(value)
