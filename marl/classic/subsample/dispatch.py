"""Dispatching among n queues: Algorithm 2 on them, the classic rules, and what a rule is worth exactly for small n.

At each step k queues, drawn afresh, are looked at, and one of them gets the next job. The n queues' own state knows the
marked queue; where that is not among the k, the rule is told so and no more (``Rule.elsewhere``).
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from marl.classic.mdp import Array
from marl.classic.subsample.backups import remainder
from marl.classic.subsample.evaluate import Gap
from marl.classic.subsample.multisets import Integers, rank_in_place
from marl.classic.subsample.queueing import QueueModel, QueueTable, Rule
from marl.classic.subsample.system import check_sizes
from marl.types import State, UserError


def shortest_of(k: int) -> Rule:
    """The shortest of k queues: k = n is join-shortest-queue, k = 2 the power of two choices, k = 1 random.

    A job under way to the marked queue counts; of equally short ones it is any, the marked one last.
    """
    if k < 1:
        raise UserError(f"the shortest of {k} queues: expected 1 or more")
    return Rule(k, np.empty((0, 0), np.int32), np.empty(0, np.int32), np.empty((0, 0), np.int64))


class Dispatched(NamedTuple):
    """What ``Queues.play`` saw.

    Attributes:
        discounted: ``[R]``, ``sum_t gamma^t r(s(t))`` of all n queues, t = 0 .. steps.
        length: ``[R]``, jobs in a queue, mean over queues and steps.
        lost: ``[R]``, jobs that found no room, each step's mean.
    """

    discounted: Array
    length: Array
    lost: Array


class Queues:
    """R independent copies of n queues.

    Args:
        model: the queues.
        runs: R.
        seed: of all that is random. Services and arrivals are the same for every rule, so that rules are compared on
            equal luck.
        empty: start with empty queues; else lengths are uniform on 0..c. The marked queue is any.

    Attributes:
        lengths: ``[R, n]`` int16.
        marked: ``[R]``, the queue to which the next job goes.
    """

    def __init__(
        self, model: QueueModel, runs: int = 1, seed: int | np.random.SeedSequence = 0, empty: bool = False
    ) -> None:
        if runs < 1:
            raise UserError(f"{runs} runs: expected 1 or more")
        sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        start, self._moves, self._subsets = (np.random.default_rng(child) for child in sequence.spawn(3))
        self.model, self.runs = model, runs
        lengths = start.integers(model.lengths, size=(runs, model.n), dtype=np.int16)
        self.lengths = np.zeros_like(lengths) if empty else lengths
        self.marked: Integers = start.integers(model.n, size=runs)
        self._order = np.tile(np.arange(model.n), (runs, 1))

    def play(self, rule: Rule, steps: int) -> Dispatched:
        """Algorithm 2 from the present lengths, t = 0 .. ``steps``.

        Raises:
            UserError: the rule looks at more queues than there are.
        """
        model = self.model
        check_sizes(rule.k, model.n)
        _check_lengths(rule, model)
        found = np.zeros((3, self.runs))
        numbers = (model.p, model.arrival, model.gamma, model.charge, model.c)
        _play(self.lengths, self.marked, self._order, rule, numbers, steps, self._moves, self._subsets, found)
        return Dispatched(found[0], found[1] / (steps + 1), found[2] / (steps + 1))

    def state_dict(self) -> State:
        return {
            "lengths": self.lengths.copy(),
            "marked": self.marked.copy(),
            "order": self._order.copy(),
            "moves": self._moves.bit_generator.state,
            "subsets": self._subsets.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> None:
        self.lengths = np.array(state["lengths"], np.int16)
        self.marked = np.array(state["marked"], np.int64)
        self._order = np.array(state["order"], np.int64)
        self._moves.bit_generator.state = state["moves"]
        self._subsets.bit_generator.state = state["subsets"]


def rule_values(whole: QueueTable, rule: Rule, tolerance: float = 1e-6, max_sweeps: int = 10_000) -> Array:
    """``V^pi`` among n queues, exactly: ``[L, M]`` as ``QueueTable.values``, the mean over all subsets of k queues.

    Args:
        whole: the table with k = n, whose states are those of the n queues; it is not changed.
        rule: which looks at n queues or fewer.
    """
    chances = slot_chances(whole, rule)
    table = QueueTable(whole.model, whole.k, max_states=whole.values.size)
    for _ in range(max_sweeps):
        fresh = table.backup(chances)
        rest, error = remainder(fresh - table.values, whole.model.gamma)
        table.values = fresh
        if error <= tolerance:
            return fresh + rest
    raise UserError(f"no values of the rule within {tolerance} after {max_sweeps} sweeps; allow more")


def slot_chances(whole: QueueTable, rule: Rule) -> Array:
    """``pi(slot | state)`` of equation (6), ``[n, M, L]``, for the table with k = n."""
    model = whole.model
    if whole.k != model.n:
        raise UserError(f"a table of k = {whole.k} queues: expected all n = {model.n}")
    check_sizes(rule.k, model.n)
    _check_lengths(rule, model)
    others = whole.others.unrank(np.arange(whole.others.size)) if whole.others else np.empty((1, 0), np.int64)
    chances = np.zeros((model.n, len(others), model.lengths))
    _count_slots(others, rule, np.array(list(combinations(range(model.n), rule.k))), chances)
    return chances / chances.sum(0)


def rule_gap(whole: QueueTable, rule: Rule, tolerance: float = 1e-6) -> Gap:
    """How much less than the optimum, ``whole`` solved, the rule earns: at worst, and from uniform lengths."""
    lost = whole.values - rule_values(whole, rule, tolerance)
    return Gap(float(lost.max()), whole.uniform_value(lost))


def _check_lengths(rule: Rule, model: QueueModel) -> None:
    if rule.here.size and rule.here.shape[1] != model.lengths:
        raise UserError(f"a rule for lengths up to {rule.here.shape[1] - 1}: expected c = {model.c}")


@njit(nogil=True, cache=True)
def _choose(lengths: Integers, mark: int, rule: Rule, sorted_lengths: Integers, scratch: Integers) -> int:
    """The place of the chosen queue among k ``lengths``; ``mark`` is the marked one's place, -1 if it is elsewhere."""
    k = lengths.shape[0]
    if rule.here.size == 0:
        best = 0
        for i in range(1, k):
            # twice the length, and a bit for the job under way that loses ties as well
            if 2 * lengths[i] + (3 if i == mark else 0) < 2 * lengths[best] + (3 if best == mark else 0):
                best = i
        return best
    count = 0
    for i in range(k):
        if i != mark:
            sorted_lengths[count] = lengths[i]
            count += 1
    number = rank_in_place(sorted_lengths[:count], scratch.shape[0], scratch, rule.binomials)
    if mark < 0:
        wanted = sorted_lengths[rule.elsewhere[number]]
    else:
        slot = rule.here[number, lengths[mark]]
        if slot == 0:
            return mark
        wanted = sorted_lengths[slot - 1]
    for i in range(k):
        if i != mark and lengths[i] == wanted:
            return i
    return -1


@njit(nogil=True, cache=True)
def _play(
    lengths: NDArray[np.int16],
    marked: Integers,
    order: Integers,
    rule: Rule,
    numbers: tuple[float, float, float, float, int],
    steps: int,
    moves: np.random.Generator,
    subsets: np.random.Generator,
    found: Array,
) -> None:
    p, arrival, gamma, charge, c = numbers
    runs, n = lengths.shape
    k = rule.k
    seen, ascending, scratch = np.empty(k, np.int64), np.empty(k, np.int64), np.zeros(c + 1, np.int64)
    weight = 1.0
    for _ in range(steps + 1):
        for r in range(runs):
            mark = -1
            for i in range(k):  # the first k of a row become a uniform k-subset, whatever order it is in
                j = i + np.int64(subsets.random() * (n - i))
                order[r, i], order[r, j] = order[r, j], order[r, i]
                seen[i] = lengths[r, order[r, i]]
                if order[r, i] == marked[r]:
                    mark = i
            chosen = order[r, _choose(seen, mark, rule, ascending, scratch)]
            arrives = moves.random() < arrival
            total, lost = 0, 0
            for i in range(n):
                length = int(lengths[r, i])
                total += length
                if arrives and i == marked[r]:
                    length += 1
                if moves.random() < p and length > 0:
                    length -= 1
                if length > c:
                    length = c
                    lost += 1
                lengths[r, i] = length
            marked[r] = chosen
            found[0, r] -= weight * (total + charge * lost) / n
            found[1, r] += total / n
            found[2, r] += lost
        weight *= gamma


@njit(nogil=True, cache=True)
def _count_slots(others: Integers, rule: Rule, subsets: Integers, counts: NDArray[np.float64]) -> None:
    """``counts[slot, others, m]``: for how many subsets of slots the rule takes that slot; slot 0 is the marked one."""
    lengths = counts.shape[2]
    k = rule.k
    seen, ascending, scratch = np.empty(k, np.int64), np.empty(k, np.int64), np.zeros(lengths, np.int64)
    for number in range(counts.shape[1]):
        for m in range(lengths):
            for subset in subsets:
                mark = 0 if subset[0] == 0 else -1
                for i in range(k):
                    seen[i] = m if subset[i] == 0 else others[number, subset[i] - 1]
                counts[subset[_choose(seen, mark, rule, ascending, scratch)], number, m] += 1.0
