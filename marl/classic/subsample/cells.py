"""The cells of a table: (global state, multiset of k local agents), with states that move alike taken as one.

Two local states with the same row ``P_l(. | s_l, s_g)`` (under every action) have the same future while the global
state is s_g; so Q(s_g, s_Delta, a) less the mean of r_l depends on s_Delta only through the multiset of *classes* of
such states. This loses nothing: in demand response 50 local states are 30, 28, 19, 12 and 10 classes at s_g = 1 .. 5.
"""

from __future__ import annotations

from functools import cached_property
from math import comb

import numpy as np

from marl.classic.mdp import Array
from marl.classic.subsample.multisets import Integers, MultisetIndex
from marl.classic.subsample.system import LocalGlobalSystem
from marl.types import UserError

MAX_CELLS = 50_000_000
MAX_BYTES = 4 * 2**30


class Cells:
    """All cells, numbered: those of global state 0 first, in the order of ``MultisetIndex`` over its classes.

    Attributes:
        k: local agents in a cell.
        classes: ``[G, L]``, the class of each local state at each global state.
        count: ``[G]``, the number of classes.
        indices: the multisets of classes at each global state.
        start: ``[G + 1]``, where each global state's cells begin.
        size: how many cells there are.

    Raises:
        UserError: more cells or bytes than allowed; the message says which k would fit.
    """

    def __init__(
        self,
        system: LocalGlobalSystem,
        k: int,
        merge: bool = True,
        max_cells: int = MAX_CELLS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        if k < 1:
            raise UserError(f"k = {k}: expected 1 or more local agents")
        self.system, self.k, self.merge = system, k, merge
        self.classes = _classes(system) if merge else np.tile(np.arange(system.local_states), (system.global_states, 1))
        self.count: Integers = self.classes.max(1) + 1
        _check_caps(self.count, k, system.actions, max_cells, max_bytes)
        self.indices = [MultisetIndex(int(count), k) for count in self.count]
        self.start: Integers = np.concatenate([[0], np.cumsum([index.size for index in self.indices])])
        self.size = int(self.start[-1])

    @cached_property
    def binomials(self) -> Integers:
        """``MultisetIndex.binomials`` of the global state with the most classes; it serves all of them."""
        return self.indices[int(self.count.argmax())].binomials

    def locate(self, global_state: Integers, local_states: Integers) -> Integers:
        """The cells ``[R]`` of global states ``[R]`` and k local states each, ``[R, k]``."""
        classes = np.sort(self.classes[global_state[:, None], local_states], axis=1)
        return self.start[global_state] + self.binomials[classes, np.arange(1, self.k + 1)].sum(1)

    def class_kernel(self, kernel: Array, global_state: int, successor: int) -> Array:
        """``[C, C']``: of one of ``system.kernels(global_state)``, between classes of the two global states."""
        merged = np.zeros((int(self.count[global_state]), int(self.count[successor])))
        np.add.at(merged.T, self.classes[successor], kernel[self.members(global_state)].T)
        return merged

    def members(self, global_state: int) -> Integers:
        """One local state of each class, the lowest."""
        return np.unique(self.classes[global_state], return_index=True)[1]


def _classes(system: LocalGlobalSystem) -> Integers:
    """``[G, L]``, classes numbered in the order of their lowest member."""
    found = np.empty((system.global_states, system.local_states), np.int64)
    for s in range(system.global_states):
        rows = system.kernels(s).transpose(1, 0, 2).reshape(system.local_states, -1)
        _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        found[s] = np.argsort(np.argsort(first))[inverse.reshape(-1)]
    return found


def _check_caps(count: Integers, k: int, actions: int, max_cells: int, max_bytes: int) -> None:
    def cost(k: int) -> tuple[int, int]:
        cells = sum(comb(int(c) + k - 1, k) for c in count)
        return cells, 8 * (actions + 3) * cells  # the values of all actions, and three vectors while solving

    def fits(k: int) -> bool:
        return cost(k)[0] <= max_cells and cost(k)[1] <= max_bytes

    if not fits(k):
        largest = max((j for j in range(1, k) if fits(j)), default=0)
        cells, size = cost(k)
        raise UserError(
            f"k = {k} needs {cells:.4g} cells in {size / 2**20:.4g} MiB, allowed are {max_cells:.4g} in "
            f"{max_bytes / 2**20:.4g} MiB; " + (f"the largest k that fits is {largest}" if largest else "no k fits")
        )
