"""Ridge regressions that grow by one row at a time: what least-squares value iteration knows, without its history.

One regression has features ``phi`` of size d and the target ``r + V(x')``, where V is a function on finitely many
states that is known only later. It is held as ``Lambda = lambda I + sum phi phi^T``, ``b = sum phi r`` and
``N = sum phi 1{x'}^T``, so that the weights for any V are ``Lambda^-1 (b + N V)`` and no row is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from marl.classic.mdp import Array
from marl.types import State, UserError

SUMS = ("gram", "reward_sum", "next_sum", "count")
"""The attributes of ``RidgeStatistics`` that are sums over rows; the others follow from them."""


@njit(cache=True)
def grow_inverse(inverse: Array, phi: Array) -> float:
    """Sherman-Morrison in place: ``inverse`` ``[d, d]`` of Lambda becomes that of ``Lambda + phi phi^T``.

    Returns:
        By how much log det Lambda grew: ``log(1 + phi^T Lambda^-1 phi)`` (the matrix determinant lemma).
    """
    d = phi.shape[0]
    g = np.zeros(d)
    square = 0.0
    for i in range(d):
        for j in range(d):
            g[i] += inverse[i, j] * phi[j]
        square += phi[i] * g[i]
    for i in range(d):
        scaled = g[i] / (1.0 + square)
        for j in range(d):
            inverse[i, j] -= scaled * g[j]
    return math.log1p(square)


@njit(cache=True)
def add_row(
    gram: Array, inverse: Array, reward_sum: Array, next_sum: Array, phi: Array, reward: float, next_state: int
) -> float:
    """One row into one regression (``[d, d]``, ``[d, d]``, ``[d]``, ``[d, S]``), in place; the growth of log det."""
    d = phi.shape[0]
    for i in range(d):
        reward_sum[i] += phi[i] * reward
        next_sum[i, next_state] += phi[i]
        for j in range(d):
            gram[i, j] += phi[i] * phi[j]
    return float(grow_inverse(inverse, phi))


@njit(cache=True)
def ridge_weights(inverse: Array, reward_sum: Array, next_sum: Array, values: Array) -> Array:
    """``Lambda^-1 (b + N V)`` ``[d]`` of one regression; ``values`` ``[S]``."""
    return np.dot(inverse, reward_sum + np.dot(next_sum, values))


@njit(cache=True)
def square_bonus(inverse: Array, features: Array) -> Array:
    """``phi^T Lambda^-1 phi`` ``[K]`` of every row of ``features`` ``[K, d]``, for one regression."""
    return (np.dot(features, inverse) * features).sum(axis=1)


class RidgeStatistics:
    """A batch of such regressions, for example one for each agent and step.

    Attributes:
        shape: of the batch.
        gram: ``[*shape, d, d]``, ``sum phi phi^T`` without the regulariser.
        reward_sum: ``[*shape, d]``, ``b``.
        next_sum: ``[*shape, d, S]``, ``N``.
        count: ``[*shape]`` int64, rows.
        inverse: ``[*shape, d, d]``, of ``Lambda``.
        log_det: ``[*shape]``, of ``Lambda``.

    Args:
        shape: of the batch.
        dim: d.
        states: S.
        regulariser: lambda, above 0.
    """

    def __init__(self, shape: tuple[int, ...], dim: int, states: int, regulariser: float = 1.0) -> None:
        if not (math.isfinite(regulariser) and regulariser > 0):
            raise UserError(f"regulariser: expected a number above 0, got {regulariser}")
        self.shape, self.dim, self.states, self.regulariser = shape, dim, states, regulariser
        self.gram = np.empty((*shape, dim, dim))
        self.reward_sum = np.empty((*shape, dim))
        self.next_sum = np.empty((*shape, dim, states))
        self.count = np.empty(shape, np.int64)
        self.inverse = np.empty((*shape, dim, dim))
        self.log_det = np.empty(shape)
        self.reset()

    def reset(self) -> None:
        """Forget every row."""
        for name in SUMS:
            getattr(self, name)[...] = 0
        self.factor()

    def rank1_update(self, index: tuple[int, ...], phi: Array, reward: float, next_state: int) -> float:
        """Add the row ``(phi [d], reward, next_state)`` to one regression; returns the growth of its log det.

        Raises ``UserError`` for a row that does not fit, or is not finite.
        """
        phi = np.ascontiguousarray(phi, np.float64)
        if phi.shape != (self.dim,) or not 0 <= next_state < self.states:
            raise UserError(
                f"row: phi {list(phi.shape)} and next state {next_state}; "
                f"expected [{self.dim}] and a state from 0 to {self.states - 1}"
            )
        if not (np.isfinite(phi).all() and math.isfinite(reward)):
            numbers = ", ".join(f"{x:g}" for x in phi)
            raise UserError(f"row: expected finite numbers, got phi {numbers} and reward {reward:g}")
        growth = float(
            add_row(
                self.gram[index], self.inverse[index], self.reward_sum[index], self.next_sum[index],
                phi, float(reward), next_state,
            )
        )  # fmt: skip
        self.log_det[index] += growth
        self.count[index] += 1
        return growth

    def weights(self, values: Array) -> Array:
        """``Lambda^-1 (b + N V)`` ``[*shape, d]``; ``values`` ``[*shape, S]``, or anything that broadcasts to it."""
        targets = self.reward_sum + np.einsum("...ds,...s->...d", self.next_sum, values)
        return np.einsum("...de,...e->...d", self.inverse, targets)

    def factor(self) -> None:
        """Inverse and log det anew from ``gram``; this also ends what rounding the updates have gathered."""
        whole = self.gram + self.regulariser * np.eye(self.dim)
        inverse = np.linalg.inv(whole)
        self.inverse[...] = (inverse + np.swapaxes(inverse, -1, -2)) / 2
        self.log_det[...] = np.linalg.slogdet(whole)[1]

    def merge(self, other: RidgeStatistics) -> None:
        """Add all rows of another batch of the same shape; its regulariser is not added again."""
        if (self.shape, self.dim, self.states) != (other.shape, other.dim, other.states):
            raise UserError(
                f"merge: statistics of shape {other.shape}, d = {other.dim}, S = {other.states} into "
                f"{self.shape}, d = {self.dim}, S = {self.states}; expected the same"
            )
        for name in SUMS:
            getattr(self, name)[...] += getattr(other, name)
        self.factor()

    def pool(self, common: RidgeStatistics) -> int:
        """What each of the first axis knows beyond ``common`` (shape without that axis) becomes common to all.

        Returns:
            How many rows were new. In between every one of them must have held all of ``common``.
        """
        rows = int((self.count - common.count).sum())
        for name in SUMS:
            own, shared = getattr(self, name), getattr(common, name)
            shared += (own - shared).sum(axis=0)
            own[...] = shared
        common.factor()
        self.inverse[...] = common.inverse
        self.log_det[...] = common.log_det
        return rows

    def state_dict(self) -> State:
        """Sums and what was derived from them, bit for bit."""
        return {name: getattr(self, name).copy() for name in (*SUMS, "inverse", "log_det")}

    def load_state_dict(self, state: State) -> None:
        """In place; raises ``UserError`` for statistics of another size."""
        for name in (*SUMS, "inverse", "log_det"):
            mine: NDArray[np.float64] = getattr(self, name)
            if np.shape(state[name]) != mine.shape:
                raise UserError(f"{name} {list(np.shape(state[name]))}: expected {list(mine.shape)}")
            mine[...] = state[name]


@dataclass(frozen=True)
class LogDetTrigger:
    """When to synchronise (CoopLSVI paper, Algorithm 1 line 18): ``growth > threshold / episodes``.

    Attributes:
        threshold: ``S``; 0: after every episode (centralised), infinity: never (isolated).
    """

    threshold: float

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise UserError(f"threshold: expected 0 or more (inf: never synchronise), got {self.threshold}")

    def due(self, growth: float, episodes: int) -> bool:
        """Whether log det grew too much since the last synchronisation, ``episodes`` >= 1 ago, this one included."""
        return growth > self.threshold / episodes
