"""Adjacency spaces S#: which states an agent may borrow values from (PR paper, Definitions 1 to 3).

``Q#(s, a) = sum over s# in S#(s) of w(s, s#) Q(s#, a)``, the weights of each state summing to 1 (equation 4). Kept as
one flat list per state, never as a matrix S x S.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from marl.classic.mdp import Array
from marl.types import UserError

LARGEST_PAIRWISE = 20_000
"""States up to which ``Adjacency.observed`` compares all pairs; beyond that it takes minutes."""


class Adjacency:
    """For each of S states its adjacent states with weights that sum to 1.

    Attributes:
        offsets: ``[S + 1]``; ``members[offsets[s] : offsets[s + 1]]`` are the states of S#(s), in ascending order.
        members: flat, int64.
        weights: flat, normalised within each state.
    """

    def __init__(self, offsets: ArrayLike, members: ArrayLike, weights: ArrayLike | None = None) -> None:
        """``weights`` positive, normalised here; None: all alike. Raises ``UserError`` for a state without any."""
        self.offsets: NDArray[np.int64] = np.ascontiguousarray(offsets, np.int64)
        self.members: NDArray[np.int64] = np.ascontiguousarray(members, np.int64)
        raw = np.ones(len(self.members)) if weights is None else np.asarray(weights, np.float64)
        sizes = np.diff(self.offsets)
        if self.offsets.ndim != 1 or self.states < 1 or self.offsets[0] or self.offsets[-1] != len(self.members):
            raise UserError(f"offsets: expected [S + 1] from 0 to {len(self.members)}, the number of members")
        if (sizes < 1).any():
            raise UserError(f"S#({np.argmin(sizes)}) is empty: expected one state or more, such as the state itself")
        unknown = self.members[(self.members < 0) | (self.members >= self.states)]
        if unknown.size:
            raise UserError(f"members: expected states from 0 to {self.states - 1}, got {unknown[0]}")
        if raw.shape != self.members.shape or not (np.isfinite(raw) & (raw > 0)).all():
            raise UserError(f"weights: expected {len(self.members)} positive numbers, one for each member")
        self.weights: Array = raw / np.repeat(np.add.reduceat(raw, self.offsets[:-1]), sizes)

    @property
    def states(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def matrix(self) -> csr_array:
        """Sparse ``[S, S]``: the weights; one step of the *adjacency walk*."""
        return csr_array((self.weights, self.members, self.offsets), shape=(self.states, self.states))

    def average(self, table: Array) -> Array:
        """``Q#`` of tables ``[..., S, A]``."""
        flat = np.moveaxis(table, -2, 0).reshape(self.states, -1)
        seen = (self.matrix @ flat).reshape(self.states, *table.shape[:-2], table.shape[-1])
        return np.moveaxis(seen, 0, -2)

    @cached_property
    def classes(self) -> NDArray[np.int64]:
        """``[S]``: states with the same number reach each other through adjacent states."""
        return connected_components(self.matrix, directed=False)[1].astype(np.int64)

    @cached_property
    def stationary(self) -> Array:
        """``[S]``: the stationary law of the adjacency walk *within each class*, so it sums to the number of classes.

        Supposes that adjacency is mutual, as it is for all constructors here.
        """
        law = np.empty(self.states)
        for label in range(self.classes.max() + 1):
            inside = np.flatnonzero(self.classes == label)
            walk = self.matrix[inside][:, inside].toarray()
            balance = np.vstack([walk.T - np.eye(len(inside)), np.ones(len(inside))])
            law[inside] = np.linalg.lstsq(balance, np.eye(len(inside) + 1)[-1], rcond=None)[0]
        return law

    @classmethod
    def alone(cls, states: int) -> Adjacency:
        """Every state only adjacent to itself, so Q# = Q."""
        return cls(np.arange(states + 1), np.arange(states))

    @classmethod
    def ring(cls, states: int, itself: bool = False) -> Adjacency:
        """Adjacent are the numbers one below and one above, the last next to the first."""
        return cls._steps(states, itself, around=True)

    @classmethod
    def line(cls, states: int, itself: bool = False) -> Adjacency:
        """Adjacent are the numbers one below and one above; the first and the last have one such."""
        return cls._steps(states, itself, around=False)

    @classmethod
    def from_groups(cls, groups: ArrayLike) -> Adjacency:
        """S#(s) = all states with the same number, s itself among them; ``groups`` ``[S]`` of any integers."""
        _, labels = np.unique(np.asarray(groups), return_inverse=True)
        if labels.ndim != 1 or not labels.size:
            raise UserError(f"groups: expected [S], one integer for each state, got {list(np.shape(groups))}")
        order = np.argsort(labels, kind="stable")
        ends = np.cumsum(np.bincount(labels))
        sizes = np.diff(ends, prepend=0)[labels]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
        return cls(offsets, order[np.repeat(ends[labels] - sizes, sizes) + within])

    @classmethod
    def hidden(cls, shape: Sequence[int], coordinate: int) -> Adjacency:
        """S#(s) = all states that differ from s at most in one coordinate (rho = 1), with equal weights.

        States are numbered row by row (``numpy.ravel_multi_index``) over ``shape``.
        """
        if not -len(shape) <= coordinate < len(shape):
            raise UserError(f"coordinate: expected 0 to {len(shape) - 1}, got {coordinate}")
        numbers = np.arange(int(np.prod(shape))).reshape(shape)
        first = np.take(numbers, [0], axis=coordinate)
        return cls.from_groups(np.broadcast_to(first, shape).ravel())

    @classmethod
    def observed(cls, states: ArrayLike, observed: ArrayLike, level: int) -> Adjacency:
        """Definition 2: S#(s) = states with ``rho = ||Pi_s^T s - Pi_s#^T s#||_0 <= level``, weights exp(d - rho).

        Args:
            states: ``[S, d]``, the global state behind each.
            observed: ``[S, d]`` bool, or ``[d]`` for all alike: which coordinates are seen. The others are 0 after
                ``Pi^T Pi`` (``observation_matrix``), so code values from 1 where an unseen coordinate is to differ from
                a seen 0.
            level: the adjacency level.

        Raises:
            UserError: shapes that do not fit, a negative level, or more states than pairs can be compared of.
        """
        values, seen = np.asarray(states, np.float64), np.asarray(observed, bool)
        if values.ndim != 2 or not values.size:
            raise UserError(f"states: expected [S, d], got {list(values.shape)}")
        if not np.isfinite(values).all():
            raise UserError(f"states: expected finite numbers, got {values[~np.isfinite(values)][0]}")
        if seen.shape not in (values.shape, values.shape[1:]):
            raise UserError(f"observed {list(seen.shape)}: expected {list(values.shape)} or {list(values.shape[1:])}")
        if level < 0:
            raise UserError(f"level: expected 0 or more coordinates, got {level}")
        if len(values) > LARGEST_PAIRWISE:
            raise UserError(f"{len(values)} states: expected {LARGEST_PAIRWISE} at most; from_groups takes any number")
        lifted = np.where(seen, values, 0.0)
        sizes, members, weights = [], [], []
        for state in lifted:
            distance = (lifted != state).sum(-1)
            near = np.flatnonzero(distance <= level)
            sizes.append(len(near))
            members.append(near)
            weights.append(np.exp(-distance[near].astype(np.float64)))  # e^d cancels
        return cls(np.cumsum([0, *sizes]), np.concatenate(members), np.concatenate(weights))

    @classmethod
    def _steps(cls, states: int, itself: bool, around: bool) -> Adjacency:
        if states < 1:
            raise UserError(f"states: expected 1 or more, got {states}")
        sets = []
        for s in range(states):
            near = {(s - 1) % states, (s + 1) % states} if around else {s - 1, s + 1} & set(range(states))
            sets.append(sorted(near | {s} if itself or states == 1 else near))
        return cls(np.cumsum([0, *map(len, sets)]), np.concatenate(sets))


def observation_matrix(coordinates: Sequence[int], size: int) -> Array:
    """``Pi`` ``[len(coordinates), size]``: row n has its one 1 at ``coordinates[n]`` (section III.B)."""
    if any(not 0 <= each < size for each in coordinates):
        raise UserError(f"coordinates: expected 0 to {size - 1}, got {list(coordinates)}")
    return np.eye(size)[list(coordinates)]
