"""A dispatcher and its queues (Example 2.4), learnt on k of the n queues: exact value iteration on the surrogate.

Among n queues the global state is the *marked* queue, to which the next job goes: ``s_g(t + 1) = a_g(t)`` and
``s_i(t + 1) = min(c, max(0, s_i(t) + X(t) 1{s_g(t) = i} - Bern(p)))``; X is a job's arrival (always, in the paper).
With k queues "the queue of number s_g" has no meaning. The surrogate's state is (length of the marked queue, multiset
of the other k - 1 lengths), and an action is one of its k *slots*: 0 is the marked queue, i the i-th shortest other.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from math import comb
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

from marl.classic.mdp import Array
from marl.classic.subsample.backups import remainder
from marl.classic.subsample.exact import expectation
from marl.classic.subsample.multisets import Integers, MultisetIndex, advance_multiset, multiset_means
from marl.classic.subsample.system import check_sizes
from marl.config import suggestion
from marl.types import State, UserError

Overflow: TypeAlias = Literal["lost", "paper"]
Slots: TypeAlias = NDArray[np.int32]

MAX_STATES = 2_000_000
"""Of a surrogate: k = 5 at c = 30 has 1 437 656."""


@dataclass(frozen=True)
class QueueModel:
    """n queues with one dispatcher; the defaults are the paper's.

    Attributes:
        n: queues.
        p: chance that a queue serves a job in a step, in (0, 1].
        c: the longest that a queue gets.
        arrival: chance that a job comes in a step, in (0, 1].
        gamma: the discount, in [0, 1).
        overflow: ``lost``: a job that finds its queue full, and nobody served, is lost and costs ``penalty``;
            ``paper``: ``10 x 1{s_i > c}`` to the letter, which never happens, so that full queues swallow jobs free.
        penalty: of a lost job; a waiting one costs 1 a step. Both are divided by n.

    Raises:
        UserError: a number out of range, an unknown overflow.
    """

    n: int = 50
    p: float = 0.8
    c: int = 30
    arrival: float = 1.0
    gamma: float = 0.9
    overflow: Overflow = "lost"
    penalty: float = 10.0

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("c", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} = {getattr(self, name)}: expected {least} or more")
        if self.c > 1000:
            raise UserError(f"c = {self.c}: expected 1000 at most")
        for name in ("p", "arrival"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name} = {getattr(self, name)}: expected a chance above 0, 1 at most")
        if not 0 <= self.gamma < 1:
            raise UserError(f"gamma = {self.gamma}: expected a number from 0 to less than 1")
        if self.overflow not in ("lost", "paper"):
            raise UserError(f"overflow {self.overflow!r}{suggestion(str(self.overflow), ('lost', 'paper'))}")
        if not (np.isfinite(self.penalty) and self.penalty >= 0):
            raise UserError(f"penalty = {self.penalty}: expected a finite number from 0 on")
        waiting = self.gamma / (1 - self.gamma)
        if self.overflow == "lost" and self.penalty < waiting:
            logging.getLogger("marl").warning(
                f"a lost job costs {self.penalty:g}, one that waits up to {waiting:.4g}: full queues are worth feeding"
            )

    @classmethod
    def with_load(
        cls,
        n: int,
        load: float,
        c: int = 30,
        arrival: float = 1.0,
        gamma: float = 0.9,
        overflow: Overflow = "lost",
        penalty: float = 10.0,
    ) -> QueueModel:
        """Queues so slow that they are busy for a share ``load`` of the time: ``p = arrival / (n load)``.

        Raises:
            UserError: load outside (0, 1), or so low that p would be above 1, as any is for one queue and a job a step.
        """
        if not 0 < load < 1:
            raise UserError(f"load = {load}: expected a number above 0, less than 1")
        p = arrival / (n * load) if n > 0 else 1.0
        if p > 1:
            nearest = f"a load of {arrival / n:.4g} on" if arrival < n else "two queues or more"
            raise UserError(f"load = {load} of n = {n} queues needs p = {p:.4g}: expected {nearest}")
        return cls(n, p, c, arrival, gamma, overflow, penalty)

    @property
    def load(self) -> float:
        """Jobs that come over jobs that all queues could serve, ``arrival / (n p)``; the paper's is 2.5 %."""
        return self.arrival / (self.n * self.p)

    @property
    def lengths(self) -> int:
        """``L = c + 1``, the number of lengths."""
        return self.c + 1

    @property
    def charge(self) -> float:
        """What a job costs that finds no room."""
        return self.penalty if self.overflow == "lost" else 0.0

    def kernel(self, arrival: float) -> Array:
        """``[L, L]``: one queue's transition where a job comes to it with that chance."""
        eye, down, up = np.eye(self.lengths), np.maximum(np.arange(-1, self.c), 0), np.arange(1, self.c + 2)
        quiet = self.p * eye[down] + (1 - self.p) * eye
        busy = self.p * eye + (1 - self.p) * eye[np.minimum(up, self.c)]
        return arrival * busy + (1 - arrival) * quiet


class Rule(NamedTuple):
    """Which of k queues gets the next job, as arrays.

    Attributes:
        k: how many queues are looked at.
        here: ``[C(L + k - 2, k - 1), L]``, the slot by the other lengths and the marked one; no entries: the shortest
            queue, the job under way counted.
        elsewhere: ``[C(L + k - 1, k)]``, where the marked queue is not among the k: the place of the chosen one among
            the k in ascending order.
        binomials: ``MultisetIndex.binomials``.
    """

    k: int
    here: Slots
    elsewhere: Slots
    binomials: Integers


class QueueTable:
    """The surrogate of k queues, and its optimal policy.

    All k queues serve with chance p; a job comes to the marked one with chance ``arrival k / n`` if ``thin`` (so that
    the load is that of the n queues), else ``arrival``. ``r = -1/k (sum of lengths + penalty x lost jobs)``. With
    k = n this is the whole system itself.

    Attributes:
        values: ``[L, M]``, the value by the marked length and the multiset of the others, M = C(L + k - 2, k - 1).
        sweeps: Bellman sweeps done.
        error: how far ``values`` is from the optimum at most; infinite until a sweep was done.

    Raises:
        UserError: k outside 1..n, or more than ``max_states`` states; the message says which k would fit.
    """

    def __init__(self, model: QueueModel, k: int, thin: bool = True, max_states: int = MAX_STATES) -> None:
        check_sizes(k, model.n)
        self.model, self.k, self.thin = model, k, thin
        length = model.lengths
        states = surrogate_states(k, model.c)
        if states > max_states:
            fits = max((j for j in range(1, k) if surrogate_states(j, model.c) <= max_states), default=0)
            nearest = f"the largest k that fits is {fits}" if fits else "no k fits"
            raise UserError(
                f"k = {k} at c = {model.c} needs {states:.4g} states, allowed are {max_states:.4g}; {nearest}"
            )
        self.arrival = model.arrival * (k / model.n if thin else 1.0)
        self.index = MultisetIndex(length, k)
        self.others = MultisetIndex(length, k - 1) if k > 1 else None
        self.served, self.marked = model.kernel(0.0), model.kernel(self.arrival)
        self.values: Array = np.zeros((length, self.others.size if self.others else 1))
        self.sweeps = 0
        self.error = np.inf

    @cached_property
    def reward(self) -> Array:
        """``[L, M]``, alike for all actions."""
        model = self.model
        own = np.arange(model.lengths, dtype=np.float64)
        own[-1] += model.charge * self.arrival * (1 - model.p)
        rest = np.zeros(self.values.shape[1])
        if self.k > 1:
            multiset_means(np.arange(model.lengths, dtype=np.float64), self.k - 1, rest)
        return -(own[:, None] + (self.k - 1) * rest) / self.k

    def fit(self, sweeps: int) -> QueueTable:
        """Go on for that many sweeps, from 0 at first."""
        for _ in range(sweeps):
            self._sweep()
        return self

    def solve(self, tolerance: float = 1e-5, max_sweeps: int = 10_000) -> QueueTable:
        """Go on until ``values`` is within ``tolerance`` of the optimum, or for ``max_sweeps``."""
        for _ in range(max_sweeps):
            rest = self._sweep()
            if self.error <= tolerance:
                self.values += rest
                break
        return self

    def backup(self, chances: Array | None = None) -> Array:
        """``[L, M]``: what ``values`` become in one sweep; under the optimum, or ``chances`` ``[k, M, L]`` of slots."""
        ahead = self._ahead(self._quiet())
        best = ahead.max(0) if chances is None else (chances * ahead).sum(0)
        return np.ascontiguousarray(self.reward + self.model.gamma * best.T)

    def rule(self) -> Rule:
        """The greedy policy; of equally good slots the lowest."""
        quiet = self._quiet()
        elsewhere = np.empty(self.index.size, np.int32)
        _best_of_unmarked(self.served @ quiet, self.k, self.index.binomials, elsewhere)
        return Rule(self.k, self._ahead(quiet).argmax(0).astype(np.int32), elsewhere, self.index.binomials)

    def state_dict(self) -> State:
        return {"values": self.values.copy(), "sweeps": self.sweeps, "error": float(self.error)}

    def load_state_dict(self, state: State) -> None:
        values = np.array(state["values"], np.float64)
        if values.shape != self.values.shape:
            raise UserError(f"values {list(values.shape)}: expected {list(self.values.shape)}")
        self.values, self.sweeps, self.error = values, int(state["sweeps"]), float(state["error"])

    def _sweep(self) -> float:
        fresh = self.backup()
        rest, self.error = remainder(fresh - self.values, self.model.gamma)
        self.values, self.sweeps = fresh, self.sweeps + 1
        return rest

    def _quiet(self) -> Array:
        """``[L, M]``: ``E[values(x', others')]`` by the marked queue's *next* length and the others' present ones."""
        if self.others is None:
            return self.values
        return np.stack([expectation(row, self.served, self.others) for row in self.values])

    def _ahead(self, quiet: Array) -> Array:
        """``[k, M, L]``: the expected value of the next state by slot, other lengths and marked length."""
        out = np.empty((self.k, self.values.shape[1], self.model.lengths))
        out[0] = (self.marked @ quiet).T
        if self.k == 1:
            return out
        if self.k == 2:
            parted = self.values[:, None, :]
        else:
            assert self.others is not None
            depth = self.k - 2  # all but the chosen queue and the marked one have moved
            parted = np.stack([expectation(row, self.served, self.others, depth) for row in self.values])
        chosen = np.tensordot(self.served, parted @ self.marked.T, 1)  # [x, the rest, m]
        _other_slots(chosen, self.index.binomials, out)
        return out

    def uniform_value(self, values: Array) -> float:
        """The mean of ``values`` ``[L, M]`` over lengths that are uniform and independent."""
        rows = values.mean(0)
        if self.others is None:
            return float(rows[0])
        uniform = np.full((1, self.model.lengths), 1 / self.model.lengths)
        return float(expectation(rows, uniform, self.others)[0])


def surrogate_states(k: int, c: int) -> int:
    """How many states the surrogate of k queues has: ``(c + 1) C(c + k - 1, k - 1)``."""
    return (c + 1) * comb(c + k - 1, k - 1)


@njit(nogil=True, cache=True)
def _other_slots(chosen: Array, binomials: Integers, out: NDArray[np.float64]) -> None:
    """``out[i + 1, others, :] = chosen[x_i, others without x_i, :]`` for the ascending elements x_i of the others."""
    size = out.shape[0] - 1
    elements = np.zeros(size, np.int64)
    for number in range(out.shape[1]):
        above = 0
        for i in range(1, size):
            above += binomials[elements[i], i]
        below = 0
        for i in range(size):
            out[i + 1, number] = chosen[elements[i], below + above]
            if i + 1 < size:
                below += binomials[elements[i], i + 1]
                above -= binomials[elements[i + 1], i + 1]
        advance_multiset(elements)


@njit(nogil=True, cache=True)
def _best_of_unmarked(worth: Array, k: int, binomials: Integers, out: Slots) -> None:
    """For each multiset of k lengths the first i for which ``worth[x_i, the multiset without x_i]`` is largest."""
    elements = np.zeros(k, np.int64)
    for number in range(out.shape[0]):
        above = 0
        for i in range(1, k):
            above += binomials[elements[i], i]
        below = 0
        best = -np.inf
        for i in range(k):
            value = worth[elements[i], below + above]
            if value > best:
                best = value
                out[number] = i
            if i + 1 < k:
                below += binomials[elements[i], i + 1]
                above -= binomials[elements[i + 1], i + 1]
        advance_multiset(elements)
