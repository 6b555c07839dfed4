"""The expectation over k independent moves, exactly: one agent at a time, m = infinity in equation (5).

Let U_0 = V on the multisets of *new* states. Moving one more agent, in old state c, makes

    U_{j+1}[old + c, new] = sum_x P(x | c) U_j[old, new + x],     |old| = j + 1, |new| = k - j - 1,

and U_k is E[V] as a function of the old multiset. Old multisets are walked depth first, so that only one ``new`` vector
of each length is held: k vectors, the longest C(X + k - 2, k - 1) long, that fit the processor's caches.
"""

from __future__ import annotations

from math import comb

import numpy as np
from numba import njit
from numpy.typing import NDArray

from marl.classic.mdp import Array
from marl.classic.subsample.multisets import Insertions, Integers, MultisetIndex
from marl.types import UserError


def expectation(values: Array, kernel: Array, target: MultisetIndex, moved: int | None = None) -> Array:
    """What ``values`` is expected to be after agents moved.

    Args:
        values: ``[target.size]``, a function of k agents' new states.
        kernel: ``[C, X]``, ``P(x | c)``: C old states, X = ``target.states`` new ones.
        moved: how many agents move; None: all k.

    Returns:
        ``[size]`` over the multisets of the k agents' old states; with ``moved`` below k,
        ``[C(C + moved - 1, moved), C(X + k - moved - 1, k - moved)]``: the moved agents' old states, and the new states
        of those that did not.
    """
    if values.shape != (target.size,) or kernel.ndim != 2 or kernel.shape[1] != target.states:
        raise UserError(
            f"values {list(values.shape)} and kernel {list(kernel.shape)}: "
            f"expected [{target.size}] and [C, {target.states}]"
        )
    depth = target.k if moved is None else moved
    if not 1 <= depth <= target.k:
        raise UserError(f"moved = {moved}: expected 1 to {target.k}")
    starts, columns, chances = sparse_rows(kernel)
    rows = comb(len(kernel) + depth - 1, depth)
    out = np.empty((rows, int(target.insertions.sizes[target.k - depth])))
    _move(np.ascontiguousarray(values, np.float64), target.insertions, starts, columns, chances, depth, out.reshape(-1))
    return out[:, 0] if depth == target.k else out


def sparse_rows(kernel: Array) -> tuple[Integers, Integers, Array]:
    """``[C, X]`` -> where each row begins ``[C + 1]``, and its columns and values that are not 0, row after row."""
    rows, columns = np.nonzero(kernel)
    starts = np.searchsorted(rows, np.arange(len(kernel) + 1))
    return starts, columns, kernel[rows, columns]


@njit(nogil=True, cache=True)
def _move(
    values: Array,
    insertions: Insertions,
    starts: Integers,
    columns: Integers,
    chances: Array,
    depth: int,
    out: NDArray[np.float64],
) -> None:
    tables, offsets, sizes = insertions
    k = sizes.shape[0] - 1
    level_start = np.zeros(depth + 1, np.int64)
    for level in range(2, depth + 1):
        level_start[level] = level_start[level - 1] + sizes[k - level + 1]
    work = np.empty(max(1, level_start[depth]))
    pick = np.zeros(depth + 1, np.int64)
    pick[0] = starts.shape[0] - 2  # the largest old state
    written = 0
    level = 1
    while level >= 1:
        if pick[level] > pick[level - 1]:
            level -= 1
            pick[level] += 1
            continue
        left = k - level
        count = sizes[left]
        source = values if level == 1 else work[level_start[level - 1] : level_start[level]]
        target = out[written : written + count] if level == depth else work[level_start[level] :][:count]
        begin, end = starts[pick[level]], starts[pick[level] + 1]
        for entry in range(begin, end):
            chance = chances[entry]
            where = tables[offsets[left] + columns[entry] * count :][:count]
            if entry == begin:
                for new in range(count):
                    target[new] = chance * source[where[new]]
            else:
                for new in range(count):
                    target[new] += chance * source[where[new]]
        if level == depth:
            written += count
            pick[level] += 1
        else:
            level += 1
            pick[level] = 0
