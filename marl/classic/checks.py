"""The conditions of processes, each a function that raises ``UserError`` with one line."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from marl.types import UserError

Array: TypeAlias = NDArray[np.float64]

TOLERANCE = 1e-8
"""How far probabilities may be from summing to 1, and features from norm 1, by rounding."""

LARGEST = 50_000_000
"""Numbers in one array at most (400 MB): beyond it one line says so, before the machine runs out of memory."""


def check_counts(**counts: int) -> None:
    """Raises ``UserError`` for the first that is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name} {count}: expected 1 or more")


def check_fits(name: str, *shape: int) -> None:
    """Raises ``UserError`` for an array, not made yet, of more numbers than ``LARGEST``."""
    if math.prod(shape) > LARGEST:
        raise UserError(f"{name} {list(shape)}: {math.prod(shape)} numbers, expected {LARGEST} at most")


def generator(seed: int | np.random.SeedSequence) -> np.random.Generator:
    """Random numbers of a seed; raises ``UserError`` for what is none."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError):
        raise UserError(f"seed {seed!r}: expected a whole number of 0 or more") from None


def start_distribution(start: Array | None, states: int) -> Array:
    """``[S]``, checked; state 0 where None."""
    if start is None:
        return np.eye(states)[0]
    start = np.asarray(start, np.float64)
    if start.shape != (states,):
        raise UserError(f"start {list(start.shape)}: expected [{states}], one probability for each state")
    check_distributions("start", start)
    return start


def check_distributions(name: str, values: Array) -> None:
    """Raises ``UserError`` unless the last axis holds probabilities that sum to 1."""
    if not np.isfinite(values).all() or values.min() < -TOLERANCE:
        where = np.unravel_index(np.argmin(np.where(np.isfinite(values), values, -np.inf)), values.shape)
        raise UserError(f"{name}{list(map(int, where))}: expected a probability, got {values[where]:.4g}")
    sums = values.sum(-1)
    if np.abs(sums - 1).max() > TOLERANCE * values.shape[-1]:
        where = np.unravel_index(np.argmax(np.abs(sums - 1)), sums.shape)
        raise UserError(
            f"{name}{list(map(int, where)) or ''}: expected probabilities that sum to 1, got {sums[where]:.6g}"
        )


def check_norms(name: str, features: Array) -> None:
    """Raises ``UserError`` for a feature vector (last axis) longer than 1."""
    norms = np.linalg.norm(features, axis=-1)
    if not norms.max() <= 1 + TOLERANCE:
        where = np.unravel_index(np.argmax(norms), norms.shape)
        raise UserError(f"{name}{list(map(int, where))}: expected a norm of 1 at most, got {norms[where]:.4g}")


def check_rewards(name: str, rewards: Array) -> None:
    """Raises ``UserError`` unless all rewards lie in [0, 1], as the bonuses and clips of LSVI presume."""
    if not (rewards.min() >= -TOLERANCE and rewards.max() <= 1 + TOLERANCE):
        raise UserError(f"{name}: expected rewards in [0, 1], got [{rewards.min():.4g}, {rewards.max():.4g}]")


def check_shapes(name: str, features: Array, axes: int, theta: Array | None, mu: Array) -> None:
    """Raises ``UserError`` unless features, theta (None: not compared) and mu fit together."""
    if features.ndim != axes or mu.ndim != 3 or mu.shape[1:] != (features.shape[-1], features.shape[-3]):
        shapes = f"{name} {list(features.shape)} and mu {list(mu.shape)}"
        raise UserError(f"{shapes}: expected [..., S, A, d] and [H, d, S]")
    if theta is not None and theta.shape != mu.shape[:2]:
        raise UserError(f"theta {list(theta.shape)}: expected {list(mu.shape[:2])}, [H, d]")


def check_sizes(theta: Array, mu: Array, dim: int) -> None:
    """The two norms that Definition 1 bounds by sqrt(d), on which the theory's bonuses rest."""
    for name, vectors in (("theta", theta), ("mu's total masses", mu.sum(-1))):
        norms = np.linalg.norm(vectors, axis=-1)
        if norms.max() > dim**0.5 + TOLERANCE * dim:
            raise UserError(
                f"{name} at step {int(norms.argmax())}: expected a norm of sqrt({dim}) = {dim**0.5:.4g} at most, "
                f"got {norms.max():.4g}; make the features longer and it shorter"
            )


def rounded(probabilities: Array) -> Array:
    """Without what rounding put below 0; sums are exactly 1 again."""
    cut = np.maximum(probabilities, 0.0)
    return cut / cut.sum(-1, keepdims=True)


def store(instance: Any, **values: Any) -> None:
    """Set attributes of a frozen dataclass, as float64 arrays that are not empty."""
    for name, value in values.items():
        try:
            array = np.asarray(value, np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}: expected an array of numbers, got {value!r:.60}") from error
        if not array.size:
            raise UserError(f"{name} {list(array.shape)}: expected one state, action and step or more")
        object.__setattr__(instance, name, array)
