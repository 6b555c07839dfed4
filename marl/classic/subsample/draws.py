"""Random moves without state: numbers that are hashes of their names, and rows drawn from in constant time."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from marl.classic.mdp import Array
from marl.classic.subsample.exact import sparse_rows
from marl.classic.subsample.multisets import Integers

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class AliasRows(NamedTuple):
    """Distributions, one a row, for the alias method (Walker 1977): a uniform entry, kept or exchanged for its other.

    Attributes:
        starts: ``[R + 1]``, where each row's entries begin.
        keep: the chance to keep an entry.
        columns, others: what an entry stands for, and what it is exchanged for.
    """

    starts: Integers
    keep: Array
    columns: Integers
    others: Integers


def alias_rows(rows: Array) -> AliasRows:
    """``[R, X]`` probabilities that sum to 1 along each row."""
    starts, columns, chances = sparse_rows(rows)
    keep, others = np.ones(len(columns)), columns.copy()
    for begin, end in pairwise(map(int, starts)):
        share = chances[begin:end] / chances[begin:end].sum() * (end - begin)
        poor = [i for i in range(end - begin) if share[i] < 1]
        rich = [i for i in range(end - begin) if share[i] >= 1]
        while poor and rich:
            low, high = poor.pop(), rich[-1]
            keep[begin + low], others[begin + low] = share[low], columns[begin + high]
            share[high] -= 1 - share[low]
            if share[high] < 1:
                poor.append(rich.pop())
    return AliasRows(starts, keep, columns, others)


@njit(nogil=True, cache=True)
def mix(z: np.uint64) -> np.uint64:
    """SplitMix64's last step (Steele, Lea and Flood 2014): every bit of the answer depends on every bit of ``z``."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(nogil=True, cache=True)
def child(key: np.uint64, number: int) -> np.uint64:
    """The key's key of that number, 0 or more."""
    return mix(key + GOLDEN * np.uint64(number + 1))


@njit(nogil=True, cache=True)
def uniform(key: np.uint64) -> float:
    """In [0, 1), from the upper 53 bits."""
    return np.float64(key >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(nogil=True, cache=True)
def draw_column(starts: Integers, keep: Array, columns: Integers, others: Integers, row: int, chance: float) -> int:
    """The column that a uniform number draws from a row of ``AliasRows``, unpacked: in a hot loop that counts."""
    begin = starts[row]
    scaled = chance * (starts[row + 1] - begin)
    whole = np.int64(scaled)
    entry = begin + whole
    kept, other = columns[entry], others[entry]  # both, so that the choice is no branch
    return kept if scaled - whole < keep[entry] else other


@njit(nogil=True, cache=True)
def move_all(
    states: NDArray[np.uint16], first: Integers, rewards: Array, rows: AliasRows, keys: NDArray[np.uint64]
) -> Array:
    """Every state ``[R, n]`` moves by row ``first[r] + state``, in place; the sums of its rewards before, ``[R]``."""
    starts, keep, columns, others = rows
    sums = np.zeros(states.shape[0])
    for r in range(states.shape[0]):
        total = 0.0
        for i in range(states.shape[1]):
            state = np.int64(states[r, i])
            total += rewards[r, state]
            states[r, i] = draw_column(starts, keep, columns, others, first[r] + state, uniform(child(keys[r], i)))
        sums[r] = total
    return sums


@njit(nogil=True, cache=True)
def draw_each(rows: AliasRows, rows_of: Integers, keys: NDArray[np.uint64]) -> Integers:
    """A column from row ``rows_of[r]`` for each r."""
    starts, keep, columns, others = rows
    drawn = np.empty(rows_of.shape[0], np.int64)
    for r in range(rows_of.shape[0]):
        drawn[r] = draw_column(starts, keep, columns, others, rows_of[r], uniform(keys[r]))
    return drawn


@njit(nogil=True, cache=True)
def shuffle_first(order: NDArray[np.int32], k: int, keys: NDArray[np.uint64]) -> None:
    """The first k of each row become a uniform ordered k-subset of the row, whatever order it is in."""
    runs, n = order.shape
    for r in range(runs):
        for i in range(k):
            j = i + np.int64(uniform(child(keys[r], i)) * (n - i))
            order[r, i], order[r, j] = order[r, j], order[r, i]
