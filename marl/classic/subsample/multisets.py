"""Numbers for multisets: the state of k exchangeable agents is how many of them are where (Definition 4.1).

A multiset of size k over states 0 .. L - 1 is written as its elements in ascending order, ``[k]``, or as its counts,
``[L]``. Multisets are numbered from 0 by their largest element, then the next largest, and so on, so that the number
does not depend on L: ``rank(s) = sum_i C(s_i + i, i + 1)`` over the ascending elements ``s_0 <= s_1 <= ...``.
"""

from __future__ import annotations

from functools import cached_property
from math import comb
from typing import NamedTuple, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

from marl.types import UserError

Integers: TypeAlias = NDArray[np.int64]


class Insertions(NamedTuple):
    """For each size j < k: the number of the multiset of size j + 1 that a state added to one of size j makes.

    Attributes:
        flat: int32, the tables ``[L, C(L + j - 1, j)]`` of j = 0 .. k - 1 one after the other.
        start: ``[k + 1]``, where each begins.
        sizes: ``[k + 1]``, the number of multisets of each size 0 .. k.
    """

    flat: NDArray[np.int32]
    start: Integers
    sizes: Integers


class MultisetIndex:
    """All multisets of size k over L states, numbered.

    Attributes:
        states, k: L and k.
        size: ``C(L + k - 1, k)``, how many there are.
        binomials: ``[L + 1, k + 1]``; entry (e, j) is the number of multisets of size j over e states.

    Raises:
        UserError: fewer than one state or agent, or more multisets than 64 bits can number.
    """

    def __init__(self, states: int, k: int) -> None:
        if states < 1 or k < 1:
            raise UserError(f"multisets of size {k} over {states} states: expected 1 or more of both")
        self.states, self.k = states, k
        self.size = comb(states + k - 1, k)
        if self.size >= 2**62:
            raise UserError(
                f"multisets of size {k} over {states} states: {self.size:.3g} of them are too many to number"
            )
        table = [[comb(e + j - 1, j) if e else int(j == 0) for j in range(k + 1)] for e in range(states + 1)]
        self.binomials: Integers = np.array(table, np.int64)

    def rank(self, elements: Integers) -> Integers:
        """``[..., k]`` states in any order -> their multiset's number ``[...]``; raises ``UserError`` if not such."""
        elements = np.sort(np.asarray(elements, np.int64), axis=-1)
        if elements.shape[-1] != self.k:
            raise UserError(f"a multiset of {elements.shape[-1]} elements: expected {self.k}")
        self._check("element", elements, self.states)
        return self.binomials[elements, np.arange(1, self.k + 1)].sum(-1)

    def unrank(self, numbers: Integers) -> Integers:
        """``[...]`` numbers -> ascending elements ``[..., k]``; raises ``UserError`` for a number out of range."""
        left = np.array(numbers, np.int64)
        self._check("multiset", left, self.size)
        elements = np.empty((*left.shape, self.k), np.int64)
        for i in range(self.k, 0, -1):
            largest = np.searchsorted(self.binomials[:, i], left, side="right") - 1
            elements[..., i - 1] = largest
            left -= self.binomials[largest, i]
        return elements

    def counts(self, numbers: Integers) -> Integers:
        """``[...]`` numbers -> counts ``[..., L]``."""
        return (self.unrank(numbers)[..., None] == np.arange(self.states)).sum(-2)

    @cached_property
    def insertions(self) -> Insertions:
        """Every way to add one state to a smaller multiset.

        Where the added x is at least the largest element e, the number grows by x's own term; below e, the answer is
        the one for the multiset without e, plus e's new term.
        """
        sizes = self.binomials[self.states]
        start = np.concatenate([[0], np.cumsum(self.states * sizes[:-1])])
        flat = np.empty(int(start[-1]), np.int32)
        flat[: self.states] = np.arange(self.states)
        previous = flat[: self.states].reshape(self.states, 1)
        for j in range(1, self.k):
            table = flat[start[j] : start[j + 1]].reshape(self.states, int(sizes[j]))
            own = self.binomials[: self.states, j + 1]
            for e in range(self.states):
                low, high = self.binomials[e, j], self.binomials[e + 1, j]
                table[:e, low:high] = own[e] + previous[:e, : high - low]
                table[e:, low:high] = own[e:, None] + np.arange(low, high)
            previous = table
        return Insertions(flat, start, sizes)

    def _check(self, what: str, values: Integers, bound: int) -> None:
        if values.size and not (values.min() >= 0 and values.max() < bound):
            bad = values[(values < 0) | (values >= bound)][0]
            raise UserError(f"{what} {bad}: expected 0 to {bound - 1}")


@njit(nogil=True, cache=True)
def rank_in_place(elements: Integers, states: int, scratch: Integers, binomials: Integers) -> int:
    """The number of the multiset with those elements ``[k]``; they are left in ascending order.

    ``scratch`` holds ``states`` numbers or more. Few elements are sorted by insertion, many by counting.
    """
    k = elements.shape[0]
    if k <= 16 or k < states:
        for i in range(1, k):
            value = elements[i]
            j = i
            while j > 0 and elements[j - 1] > value:
                elements[j] = elements[j - 1]
                j -= 1
            elements[j] = value
    else:
        scratch[:states] = 0
        for i in range(k):
            scratch[elements[i]] += 1
        i = 0
        for e in range(states):
            for _ in range(scratch[e]):
                elements[i] = e
                i += 1
    number = 0
    for i in range(k):
        number += binomials[elements[i], i + 1]
    return number


@njit(nogil=True, cache=True)
def advance_multiset(elements: Integers) -> None:
    """The ascending elements of the next multiset, in place."""
    i = 0
    while i + 1 < elements.shape[0] and elements[i] == elements[i + 1]:
        elements[i] = 0
        i += 1
    elements[i] += 1


@njit(nogil=True, cache=True)
def multiset_means(weights: NDArray[np.float64], k: int, out: NDArray[np.float64]) -> None:
    """``out[M] = 1/k sum over M's elements x of weights[x]``, for every multiset M of size k."""
    elements = np.zeros(k, np.int64)
    for number in range(out.shape[0]):
        total = 0.0
        for x in elements:
            total += weights[x]
        out[number] = total / k
        advance_multiset(elements)


@njit(nogil=True, cache=True)
def lift(values: NDArray[np.float64], k: int, binomials: Integers, out: NDArray[np.float64]) -> None:
    """``out[M]``, M of size k: the mean of ``values`` (of size k - 1) over M without one of its k elements."""
    elements = np.zeros(k, np.int64)
    for number in range(out.shape[0]):
        above = 0  # the terms of the elements after the one left out, each one place lower
        for i in range(1, k):
            above += binomials[elements[i], i]
        below = 0
        total = 0.0
        for i in range(k):
            total += values[below + above]
            if i + 1 < k:
                below += binomials[elements[i], i + 1]
                above -= binomials[elements[i + 1], i + 1]
        out[number] = total / k
        advance_multiset(elements)
