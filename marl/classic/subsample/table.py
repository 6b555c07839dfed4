"""SUB-SAMPLE-Q, learning (Algorithms 1 and 3), on tables keyed by multisets.

A cell is a global state and a multiset of k local agents (``cells``). What is stored is the Q-function without its mean
of r_l, which the cell alone decides: ``Q(s_g, s_Delta, a) = mean of r_l(s_i, s_g) over Delta + values[a, cell]``.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from marl.classic.mdp import Array
from marl.classic.subsample.backups import ExactBackup, SampledBackup, expand, one_by_one, remainder
from marl.classic.subsample.cells import MAX_BYTES, MAX_CELLS, Cells
from marl.classic.subsample.multisets import Integers, MultisetIndex, lift
from marl.classic.subsample.system import LocalGlobalSystem
from marl.types import State, UserError

Backup: TypeAlias = Literal["exact", "frozen", "resample"]
TOLERANCE = 1e-5


class SubsampleQ:
    """The Q-function of a surrogate system of k local agents, and its greedy policy.

    Backups of equation (5): ``exact`` takes the expectation (m = infinity, equation 7); ``frozen`` draws the m samples
    of a cell once and keeps them, so that there is a fixed point Q^est; ``resample`` draws them anew at every sweep and
    averages with eta_t = 1 / (1 + (1 - gamma) t), t = 1, 2, ... (Algorithm 3).

    Args:
        system: the process.
        k: local agents of the surrogate system.
        backup: see above.
        m: samples per cell; ``exact`` has no use for it.
        seed: of the samples.
        merge: take local states that move alike as one (``cells``); the samples of a cell are then shared by them.
        threads: of the processor.
        max_cells, max_bytes: of the table.

    Attributes:
        values: ``[A, cells]``, see above; ``q`` writes the whole table out.
        sweeps: Bellman sweeps done.
        error: how far Q is from the fixed point at most, in the sup norm; infinite until a sweep was done.

    Raises:
        UserError: an unknown backup, m or k below 1, or a table beyond the caps.
    """

    def __init__(
        self,
        system: LocalGlobalSystem,
        k: int,
        backup: Backup = "exact",
        m: int = 50,
        seed: int = 0,
        merge: bool = True,
        threads: int = 1,
        max_cells: int = MAX_CELLS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        if backup not in ("exact", "frozen", "resample"):
            raise UserError(f"backup {backup!r}: choose from exact, frozen, resample")
        if m < 1 or threads < 1:
            raise UserError(f"m = {m}, threads = {threads}: expected 1 or more of both")
        self.system, self.k, self.backup = system, k, backup
        self.m, self.seed, self.threads = m, seed, threads
        self.cells = Cells(system, k, merge, max_cells, max_bytes)
        self.max_bytes = max_bytes
        self.values: Array = np.zeros((system.actions, self.cells.size))
        self.weight = 0.0  # of the mean of r_l in Q: 1 but in Algorithm 3's first sweeps, which begin at Q = 0
        self.sweeps = 0
        self.error = np.inf
        self._operator: ExactBackup | SampledBackup | None = None

    def fit(self, sweeps: int) -> SubsampleQ:
        """Go on for that many sweeps, from Q = 0 at first."""
        for _ in range(sweeps):
            self._sweep()
        return self

    def solve(self, tolerance: float = TOLERANCE, max_sweeps: int = 10_000, lifted: bool = True) -> SubsampleQ:
        """Go on until Q is within ``tolerance`` of the fixed point in the sup norm, or ``max_sweeps`` more are done.

        ``error`` tells which.

        With ``lifted`` a table without sweeps starts from that of k - 1 agents, solved in the same way. The last
        sweep's values are moved to the middle of what the span of its change leaves open (``remainder``).

        Raises:
            UserError: ``resample`` has no fixed point.
        """
        if self.backup == "resample":
            raise UserError("backup resample has no fixed point: use fit(sweeps), or backup frozen")
        if lifted and not self.sweeps and self.k > 1:
            smaller = SubsampleQ(
                self.system, self.k - 1, self.backup, self.m, self.seed, self.cells.merge, self.threads
            )
            self.lift_from(smaller.solve(tolerance, max_sweeps))
        for _ in range(max_sweeps):
            rest = self._sweep()
            if self.error <= tolerance:
                self.values += rest
                break
        return self

    def lift_from(self, smaller: SubsampleQ) -> None:
        """Start from a table of k - 1 agents: a multiset is worth the mean over it without one of its agents."""
        if smaller.k != self.k - 1 or not np.array_equal(smaller.cells.classes, self.cells.classes):
            raise UserError(
                f"a table of k = {smaller.k} of {smaller.system.name}: expected k = {self.k - 1}, same system"
            )
        for s, index in enumerate(self.cells.indices):
            here = slice(self.cells.start[s], self.cells.start[s + 1])
            there = slice(smaller.cells.start[s], smaller.cells.start[s + 1])
            for a in range(self.system.actions):
                lift(smaller.values[a, there], self.k, index.binomials, self.values[a, here])
        self.weight = smaller.weight

    def q(self, dtype: Any = np.float64) -> NDArray[Any]:
        """The whole table, ``[G, A, C(L + k - 1, k)]``, over the multisets of ``MultisetIndex(L, k)``.

        Raises:
            UserError: it would be larger than ``max_bytes``.
        """
        index = MultisetIndex(self.system.local_states, self.k)
        shape = (self.system.global_states, self.system.actions, index.size)
        size = int(np.prod([float(n) for n in shape])) * np.dtype(dtype).itemsize
        if size > self.max_bytes:
            raise UserError(f"the whole table takes {size / 2**20:.4g} MiB, allowed are {self.max_bytes / 2**20:.4g}")
        table = np.empty(shape, dtype)

        def write(s: int) -> None:
            part = self.values[:, self.cells.start[s] : self.cells.start[s + 1]]
            reward = self.weight * self.system.local_reward[s]
            expand(part, self.cells.classes[s], reward, self.k, index.binomials, table[s])

        self._each(write, range(self.system.global_states))
        return table

    @property
    def policy(self) -> Integers:
        """The greedy action of each cell; of equal ones the lowest."""
        return self.values.argmax(0)

    def act(self, global_state: Integers, local_states: Integers) -> Integers:
        """Greedy actions ``[R]`` for global states ``[R]`` and the states of k sampled agents, ``[R, k]``.

        Raises:
            UserError: another number of agents than k, or a state that there is not.
        """
        seen, bound = np.asarray(local_states), self.system.local_states
        if seen.shape[-1:] != (self.k,) or (seen.size and not 0 <= seen.min() <= seen.max() < bound):
            raise UserError(f"local_states {list(seen.shape)}: expected [R, {self.k}] numbers from 0 to {bound - 1}")
        return self.values[:, self.cells.locate(global_state, local_states)].argmax(0)

    def state_dict(self) -> State:
        error = float(self.error) if np.isfinite(self.error) else None
        return {"values": self.values.copy(), "weight": self.weight, "sweeps": self.sweeps, "error": error}

    def load_state_dict(self, state: State) -> None:
        """Of the same system and k; raises ``UserError`` for another size."""
        if np.shape(state["values"]) != self.values.shape:
            expected, got = list(self.values.shape), list(np.shape(state["values"]))
            raise UserError(f"values: expected {expected}, [actions, cells], got {got}")
        self.values = np.array(state["values"], np.float64)
        self.weight, self.sweeps = float(state["weight"]), int(state["sweeps"])
        self.error = np.inf if state["error"] is None else float(state["error"])

    def _sweep(self) -> float:
        """One sweep; what is left to add to the values, see ``remainder``."""
        if self._operator is None:
            if self.backup == "exact":
                self._operator = ExactBackup(self.system, self.cells)
            else:
                self._operator = SampledBackup(self.system, self.cells, self.m, self.seed)
        before, weight = self.values.max(0), self.weight
        self.sweeps += 1
        if self.backup == "resample":
            fresh = np.empty_like(self.values)
            self._operator(before, weight, self.sweeps, self._each, fresh)
            eta = 1 / (1 + (1 - self.system.gamma) * self.sweeps)
            self.values += eta * (fresh - self.values)
            self.weight += eta * (1 - weight)
        else:
            self._operator(before, weight, 0, self._each, self.values)
            self.weight = 1.0
        rest, error = remainder(self.values.max(0) - before, self.system.gamma)
        if self.backup != "resample" and weight == 1.0:
            self.error = error
        return rest

    def _each(self, work: Callable[[Any], None], items: Any) -> None:
        """``work`` for each item, over the threads."""
        if self.threads == 1:
            one_by_one(work, items)
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(work, items))
