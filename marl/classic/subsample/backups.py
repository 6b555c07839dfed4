"""One Bellman sweep over the cells of a table: exactly (equation 7), or from samples (equation 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

from marl.classic.mdp import Array
from marl.classic.subsample.cells import Cells
from marl.classic.subsample.draws import alias_rows, child, draw_column, uniform
from marl.classic.subsample.exact import expectation
from marl.classic.subsample.multisets import Integers, advance_multiset, multiset_means, rank_in_place
from marl.classic.subsample.system import LocalGlobalSystem

Each: TypeAlias = Callable[[Callable[[Any], None], Iterable[Any]], None]
"""Calls a function for each item; how many at a time is its own affair."""


def one_by_one(work: Callable[[Any], None], items: Iterable[Any]) -> None:
    """The plain ``Each``."""
    for item in items:
        work(item)


def remainder(change: Array, gamma: float) -> tuple[float, float]:
    """What a sweep that changed the values by ``change`` leaves to add: the middle, and the largest error of that.

    The fixed point is between ``gamma / (1 - gamma)`` times the least and the largest change away (MacQueen 1966), so
    that the span of the change decides when to stop, not its size.
    """
    low, high = gamma / (1 - gamma) * change.min(), gamma / (1 - gamma) * change.max()
    return float(low + high) / 2, float(high - low) / 2


class ExactBackup:
    """``values[a, cell] = r_g + gamma E[weight mean r_l(s', s_g') + best[cell']]``."""

    def __init__(self, system: LocalGlobalSystem, cells: Cells) -> None:
        self.system, self.cells = system, cells
        self.moves = [
            {
                (u, then): cells.class_kernel(kernel, s, then)
                for u, kernel in enumerate(system.kernels(s))
                for then in system.successors(s, u)
            }
            for s in range(system.global_states)
        ]

    def __call__(self, best: Array, weight: float, draw: int, each: Each, fresh: Array) -> None:
        """``best`` ``[cells]`` -> ``fresh`` ``[A, cells]``; there is nothing to draw."""
        each(lambda s: self._global_state(s, best, weight, fresh), range(self.system.global_states))

    def _global_state(self, s: int, best: Array, weight: float, fresh: Array) -> None:
        system, cells = self.system, self.cells
        here = fresh[:, cells.start[s] : cells.start[s + 1]]
        kernels = system.kernels(s)[:, cells.members(s)]
        expected = {}
        for (u, then), moves in self.moves[s].items():
            ahead = best[cells.start[then] : cells.start[then + 1]]
            expected[u, then] = expectation(ahead, moves, cells.indices[then])
        for a in range(system.actions):
            u = a if system.follows_action else 0
            chances = system.global_transition[s, a]
            reward = kernels[u] @ (chances @ system.local_reward)
            multiset_means(weight * reward, cells.k, here[a])
            for then in map(int, np.flatnonzero(chances)):
                here[a] += chances[then] * expected[u, then]
            here[a] *= system.gamma
            here[a] += system.global_reward[s, a]


class SampledBackup:
    """The same with m samples for each cell instead of the expectation.

    A number is a hash of (seed, draw, cell, sample, agent): nothing is stored, and the same draw gives the same
    samples at every sweep. The actions of a cell see the same local moves, and one number decides s_g' for all of them.
    """

    def __init__(self, system: LocalGlobalSystem, cells: Cells, m: int, seed: int) -> None:
        self.system, self.cells, self.m = system, cells, m
        self.key = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        self.local_rows = [
            alias_rows(system.kernels(s)[:, cells.members(s)].reshape(-1, system.local_states))
            for s in range(system.global_states)
        ]
        self.global_rows = [alias_rows(rows) for rows in system.global_transition]

    def __call__(self, best: Array, weight: float, draw: int, each: Each, fresh: Array) -> None:
        """``best`` ``[cells]`` -> ``fresh`` ``[A, cells]``."""
        key = np.random.SeedSequence([self.key, draw]).generate_state(1, np.uint64)[0]
        each(lambda s: self._global_state(s, best, weight, key, fresh), range(self.system.global_states))

    def _global_state(self, s: int, best: Array, weight: float, key: np.uint64, fresh: Array) -> None:
        system, cells = self.system, self.cells
        here = fresh[:, cells.start[s] : cells.start[s + 1]]
        rewards = weight * system.local_reward
        ahead = (cells.classes, cells.start, cells.binomials, best, rewards)
        shape = (cells.k, self.m, int(cells.start[s]), int(cells.count[s]))
        _sampled_means(here, shape, key, self.local_rows[s], self.global_rows[s], ahead)
        here *= system.gamma
        here += system.global_reward[s][:, None]


@njit(nogil=True, cache=True)
def _sampled_means(
    out: NDArray[np.float64], shape: Any, key: np.uint64, local_rows: Any, global_rows: Any, ahead: Any
) -> None:
    """``out[a, cell]``: the mean over samples of weight mean r_l(s', s_g') + best[cell']."""
    k, m, first_cell, rows_each = shape
    local_starts, local_keep, local_columns, local_others = local_rows
    global_starts, global_keep, global_columns, global_others = global_rows
    classes, start, binomials, best, rewards = ahead
    actions = out.shape[0]
    own_kernels = local_starts.shape[0] - 1 > rows_each
    old, new, moved = np.zeros(k, np.int64), np.zeros(k, np.int64), np.zeros(k, np.int64)
    scratch = np.zeros(binomials.shape[0], np.int64)
    uniforms, worth, then = np.zeros(k), np.zeros(actions), np.zeros(actions, np.int64)
    for cell in range(out.shape[1]):
        cell_key = child(key, first_cell + cell)
        for a in range(actions):
            out[a, cell] = 0.0
        for sample in range(m):
            sample_key = child(cell_key, sample)
            for i in range(k):
                uniforms[i] = uniform(child(sample_key, i))
            chance = uniform(child(sample_key, k))
            for a in range(actions):
                if a == 0 or own_kernels:
                    for i in range(k):
                        row = old[i] + a * rows_each if own_kernels else old[i]
                        new[i] = draw_column(local_starts, local_keep, local_columns, local_others, row, uniforms[i])
                then[a] = draw_column(global_starts, global_keep, global_columns, global_others, a, chance)
                known = -1
                if not own_kernels:
                    for b in range(a):
                        if then[b] == then[a]:
                            known = b
                if known >= 0:
                    worth[a] = worth[known]
                else:
                    reward = 0.0
                    for i in range(k):
                        moved[i] = classes[then[a], new[i]]
                        reward += rewards[then[a], new[i]]
                    number = rank_in_place(moved, binomials.shape[0] - 1, scratch, binomials)
                    worth[a] = reward / k + best[start[then[a]] + number]
                out[a, cell] += worth[a]
        for a in range(actions):
            out[a, cell] /= m
        advance_multiset(old)


@njit(nogil=True, cache=True)
def expand(
    values: Array, classes: Integers, rewards: Array, k: int, binomials: Integers, out: NDArray[np.float64]
) -> None:
    """One global state's ``values`` ``[A, cells]`` -> ``out`` ``[A, multisets of local states]``, rewards added."""
    elements, merged = np.zeros(k, np.int64), np.zeros(k, np.int64)
    scratch = np.zeros(binomials.shape[0], np.int64)
    for number in range(out.shape[1]):
        reward = 0.0
        for i in range(k):
            merged[i] = classes[elements[i]]
            reward += rewards[elements[i]]
        cell = rank_in_place(merged, binomials.shape[0] - 1, scratch, binomials)
        for a in range(out.shape[0]):
            out[a, number] = reward / k + values[a, cell]
        advance_multiset(elements)
