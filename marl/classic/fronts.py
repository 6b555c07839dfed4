"""How good a set of value vectors is: hypervolume, utility loss and Bayes regret. More is better in every objective.

Points are ``[K, M]``: K policies, M objectives (here the agents' own values at the start). Fronts of linear
scalarisations are convex coverage sets: between two of their vertices lies only what mixtures of policies reach.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from marl.types import UserError

Array: TypeAlias = NDArray[np.float64]


def non_dominated(points: Array) -> NDArray[np.bool_]:
    """``[K]``: whether no other point is at least as good in every objective and better in one; equal points stay."""
    points = _checked("points", points)
    as_good = (points[:, None] >= points[None]).all(-1)
    better = (points[:, None] > points[None]).any(-1)
    return np.asarray(~(as_good & better).any(0))


def domination(points: Array, front: Array) -> Array:
    """``[K]``: by how much some point of ``front`` beats each point in *every* objective; 0 or less: none does."""
    points, front = _checked_pair(points, front)
    return np.asarray((front[None] - points[:, None]).min(-1).max(-1))


def hypervolume(points: Array, reference: Array) -> float:
    """The volume of all that lies above ``reference`` ``[M]`` and below some point, exactly.

    Slices along the last objective, each the hypervolume of the points that reach it in the others: O(K log K) for
    M = 2, O(K^(M-1)) beyond, so K should be small there. Points that do not exceed the reference add nothing.
    """
    points, reference = _checked("points", points), np.asarray(reference, np.float64)
    if reference.shape != points.shape[1:]:
        raise UserError(f"reference {list(reference.shape)}: expected [{points.shape[1]}], one number per objective")
    if not np.isfinite(reference).all():
        raise UserError(f"reference: expected finite numbers, got {reference.tolist()}")
    return _volume(points[(points > reference).all(-1)] - reference)


def _volume(points: Array) -> float:
    """The same for positive points and the reference 0."""
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(points.max())
    points = points[np.argsort(-points[:, -1], kind="stable")]
    depths = points[:, -1] - np.append(points[1:, -1], 0.0)  # point k is the lowest that reaches slice k
    if points.shape[1] == 2:
        return float(np.maximum.accumulate(points[:, 0]) @ depths)
    return sum(_volume(points[: k + 1, :-1]) * depth for k, depth in enumerate(depths) if depth > 0)


def utility(points: Array, weights: Array) -> Array:
    """``[n]``: what the best point is worth, ``max_k weights[n] @ points[k]``; ``weights`` ``[n, M]``."""
    points = _checked("points", points)
    return np.asarray((checked_weights(weights, points.shape[1]) @ points.T).max(-1))


def bayes_regret(points: Array, front: Array, weights: Array) -> float:
    """The mean over ``weights`` ``[n, M]`` of what the best point lacks to the best of ``front`` (equation (12)).

    With ``weights`` drawn from p_Upsilon it estimates the Bayes regret of the policies whose values the points are.
    """
    points, front = _checked_pair(points, front)
    return float(np.mean(utility(front, weights) - utility(points, weights)))


def maximum_utility_loss(points: Array, front: Array) -> float:
    """The largest of these lacks over *all* weights of the simplex, exactly.

    ``max_v (max_f v @ f - max_p v @ p)``. Where one point stays the best, the difference is convex in v, so the maximum
    lies at a corner of such a region: for M = 2 where two points are worth the same, or at an end of the simplex;
    beyond, one linear program per point of ``front`` finds it.
    """
    points, front = _checked_pair(points, front)
    if points.shape[1] == 2:
        weights = _equal_worth(points)
        return float((utility(front, weights) - utility(points, weights)).max())
    return max(_largest_lack(points, target) for target in front)


def _equal_worth(points: Array) -> Array:
    """``[n, 2]``: the ends of the simplex, and every weight at which two of the points are worth the same."""
    slopes, offsets = points[:, 0] - points[:, 1], points[:, 1]  # v @ p = offset + slope * v[0]
    first, second = np.triu_indices(len(points), 1)
    crossing = slopes[first] != slopes[second]
    first, second = first[crossing], second[crossing]
    share = (offsets[second] - offsets[first]) / (slopes[first] - slopes[second])
    share = np.concatenate([[0.0, 1.0], share[(share > 0) & (share < 1)]])
    return np.stack([share, 1 - share], axis=1)


def _largest_lack(points: Array, target: Array) -> float:
    """``max_v (v @ target - max_p v @ p)``: a linear program in v and the best point's worth u."""
    from scipy.optimize import linprog

    objectives = len(target)
    solved = linprog(
        np.append(-target, 1.0),
        A_ub=np.column_stack([points, -np.ones(len(points))]),
        b_ub=np.zeros(len(points)),
        A_eq=np.append(np.ones(objectives), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * objectives + [(None, None)],
    )
    return -float(solved.fun)


def checked_weights(weights: Array, objectives: int, axes: int = 2) -> Array:
    """A copy in float64 of ``weights`` ``[n, M]``, with one axis ``[M]``; one kind of array for compiled code.

    Raises:
        UserError: another shape, no row, a number that is negative or not finite.
    """
    try:
        checked = np.array(weights, np.float64, order="C")
    except (TypeError, ValueError):
        got = " ".join(repr(weights).split())
        raise UserError(f"weights: expected an array of numbers, got {got:.60}") from None
    if checked.ndim != axes or not len(checked) or checked.shape[-1] != objectives:
        expected = f"[{objectives}]" if axes == 1 else f"[n, {objectives}], one row or more"
        raise UserError(f"weights {list(checked.shape)}: expected {expected}, one number for each objective")
    bad = ~(np.isfinite(checked) & (checked >= 0))
    if bad.any():
        raise UserError(f"weights: expected finite numbers of 0 or more, got {checked[bad][0]:g}")
    return checked


def _checked(name: str, points: Array) -> Array:
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or not points.size:
        raise UserError(f"{name} {list(points.shape)}: expected [K, M], one row or more")
    if not np.isfinite(points).all():
        row = int(np.argmin(np.isfinite(points).all(-1)))
        raise UserError(f"{name}: expected finite numbers, got {points[row].tolist()} in row {row}")
    return points


def _checked_pair(points: Array, front: Array) -> tuple[Array, Array]:
    points, front = _checked("points", points), _checked("front", front)
    if points.shape[1] != front.shape[1]:
        raise UserError(f"points have {points.shape[1]} objectives, the front has {front.shape[1]}: expected the same")
    return points, front
