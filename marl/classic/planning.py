"""Exact answers for processes that are known: backward induction, discounted planning, evaluation, the convex front.

Ties between actions go to the lowest index; values closer than rounding (``TIE``) count as tied.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from marl.classic.checks import Array, check_counts, check_distributions
from marl.classic.mdp import LinearMDP, LinearMultiagentMDP, TabularMDP
from marl.types import UserError

Actions: TypeAlias = NDArray[np.int64]

TIE = 1e-12
"""Action values whose difference, relative to their size, is below this are equal."""
SAME = 1e-10
"""Points of a front whose difference, relative to their size, is below this are equal."""


class Solution(NamedTuple):
    """Optimal values and an optimal policy.

    Attributes:
        q: ``[H, S, A]``, or ``[S, A]`` discounted.
        v: ``[H + 1, S]`` with zeros at the end, or ``[S]``.
        policy: ``[H, S]`` or ``[S]``, actions.
    """

    q: Array
    v: Array
    policy: Actions


class Front(NamedTuple):
    """Vertices of the convex Pareto front, ascending in the first agent's value.

    Attributes:
        values: ``[K, M]``, each agent's expected return from the start.
        weights: ``[K, M]``, weights (sum 1) for which the vertex is optimal.
        policies: ``[K, H, S]``, joint actions.
    """

    values: Array
    weights: Array
    policies: Actions


def greedy(q: Array) -> Actions:
    """The best action along the last axis; the lowest index among ties."""
    best = q.max(-1, keepdims=True)
    policy: Actions = np.argmax(q >= best - TIE * (1 + np.abs(best)), axis=-1)
    return policy


def optimal_values(mdp: TabularMDP | LinearMDP, horizon: int | None = None) -> Solution:
    """Backward induction.

    Args:
        mdp: the process; a ``LinearMDP`` is planned on its table.
        horizon: steps an episode, for a process that is the same at every step; otherwise its own.

    Raises:
        UserError: no horizon, or another than the process has.
    """
    table, steps = _with_horizon(mdp, horizon)
    q = np.empty((steps, table.states, table.actions))
    v = np.zeros((steps + 1, table.states))
    for h in reversed(range(steps)):
        q[h] = _backup(*_step(table, h), v[h + 1])
        v[h] = q[h].max(-1)
    return Solution(q, v, greedy(q))


def evaluate_policy(
    mdp: TabularMDP | LinearMDP,
    policy: NDArray[Any],
    horizon: int | None = None,
    gamma: float | None = None,
) -> Array:
    """Expected return of a policy from every state.

    Args:
        mdp: the process.
        policy: integers are actions, ``[..., H, S]``; floats are probabilities of actions, ``[..., H, S, A]``.
            Leading axes are further policies. Discounted: ``[..., S]`` or ``[..., S, A]``.
        horizon: as of ``optimal_values``.
        gamma: discount for an endless process, in [0, 1); None: an episode of ``horizon`` steps.

    Returns:
        ``[..., H + 1, S]``; ``[..., S]`` where ``gamma`` is given.

    Raises:
        UserError: a policy whose shape, actions or probabilities do not fit; both a horizon and a discount.
    """
    policy = np.asarray(policy)
    if gamma is not None:
        if horizon is not None:
            raise UserError(
                f"horizon {horizon} and gamma {gamma:g}: expected one of them, an episode or an endless process"
            )
        table = _stationary(mdp, gamma)
        _check_policy(policy, (table.states,), table.actions)
        return _discounted_return(table, policy, gamma)
    table, steps = _with_horizon(mdp, horizon)
    _check_policy(policy, (steps, table.states), table.actions)
    axes = 2 if np.issubdtype(policy.dtype, np.integer) else 3
    v = np.zeros((*policy.shape[: policy.ndim - axes], steps + 1, table.states))
    for h in reversed(range(steps)):
        at_step = policy[..., h, :] if axes == 2 else policy[..., h, :, :]
        v[..., h, :] = _choose(_backup(*_step(table, h), v[..., h + 1, :]), at_step)
    return v


def start_value(mdp: TabularMDP | LinearMDP | LinearMultiagentMDP, v: Array) -> float:
    """The expected return from the start: ``start @ v[0]``, ``v`` ``[H + 1, S]`` (or ``[S]``, discounted)."""
    assert mdp.start is not None  # a process fills it in when it is made
    return float(mdp.start @ (v[0] if v.ndim == 2 else v))


def discounted_values(mdp: TabularMDP, gamma: float, tolerance: float = 1e-10) -> Solution:
    """Value iteration from below, until no value can be off by more than ``tolerance``.

    The rule is ``|V_(k+1) - V_k| <= tolerance (1 - gamma) / gamma`` (Puterman 1994, theorem 6.3.1).

    Raises:
        UserError: a process that changes with the step, a discount outside [0, 1), or no positive tolerance.
    """
    table = _stationary(mdp, gamma)
    if not tolerance > 0:
        raise UserError(f"tolerance {tolerance:g}: expected more than 0")
    v = np.full(table.states, table.reward.min() / (1 - gamma))
    while True:
        q = _backup(table.transition, table.reward, gamma * v)
        change = np.abs(q.max(-1) - v).max()
        v = q.max(-1)
        if gamma * change <= tolerance * (1 - gamma):
            return Solution(q, v, greedy(q))


def policy_iteration(mdp: TabularMDP, gamma: float) -> Solution:
    """Howard's policy iteration, each policy evaluated by a linear solve; exact up to rounding.

    Raises:
        UserError: as ``discounted_values`` of its process and discount.
    """
    table = _stationary(mdp, gamma)
    policy = greedy(table.reward)
    while True:
        v = _discounted_return(table, policy, gamma)
        q = _backup(table.transition, table.reward, gamma * v)
        better = q.max(-1) > _choose(q, policy) + TIE * (1 + np.abs(q).max())
        if not better.any():
            return Solution(q, v, greedy(q))
        policy = np.where(better, greedy(q), policy)


def vector_values(mdp: LinearMultiagentMDP, policy: Actions) -> Array:
    """Every agent's expected return, ``[H + 1, S, M]``, of a joint policy ``[H, S]``.

    Raises:
        UserError: as ``evaluate_policy``; probabilities of actions.
    """
    policy = np.asarray(policy)
    if not np.issubdtype(policy.dtype, np.integer):
        raise UserError(f"policy of {policy.dtype}: expected joint actions, integers")
    _check_policy(policy, (mdp.horizon, mdp.states), mdp.actions)
    v = np.zeros((mdp.horizon + 1, mdp.states, mdp.agents))
    states = np.arange(mdp.states)
    for h in reversed(range(mdp.horizon)):
        chosen = (states, policy[h])
        v[h] = mdp.reward[h][chosen] + mdp.transition[h][chosen] @ v[h + 1]
    return v


def convex_coverage_set(mdp: LinearMultiagentMDP, divisions: int = 20) -> Front:
    """The vertices of the Pareto front's convex hull, in values from the start.

    Two agents: exact, by optimistic linear support (Roijers 2016, section 3.3): between two neighbouring vertices the
    weights at which both are equally good are tried, until nothing better is found. More agents: one optimum for each
    point of a lattice on the simplex; what is returned lies on the front, but vertices between the points are missed.
    Points of the front that are not on its hull are optimal for no weights and never found.

    Args:
        mdp: the process.
        divisions: points along an edge of the lattice, less one; more than two agents only.
    """
    if mdp.agents == 2:
        found = _vertices_of_two(mdp)
    else:
        check_counts(divisions=divisions)
        found = [_optimum(mdp, weights) for weights in _lattice(mdp.agents, divisions)]
    values, weights, policies = (np.stack(column) for column in zip(*found, strict=True))
    rounded = np.round(values / (SAME * 10 * (1 + np.abs(values).max())))
    first = np.unique(rounded, axis=0, return_index=True)[1]
    return Front(values[first], weights[first], policies[first])


_Vertex: TypeAlias = tuple[Array, Array, Actions]
"""Values ``[M]``, weights ``[M]`` and policy ``[H, S]``."""


def _optimum(mdp: LinearMultiagentMDP, weights: Array) -> _Vertex:
    policy = optimal_values(mdp.scalarised(weights)).policy
    return mdp.start @ vector_values(mdp, policy)[0], weights, policy


def _vertices_of_two(mdp: LinearMultiagentMDP) -> list[_Vertex]:
    """In the order of the second agent's value, from its best to its worst."""
    second, first = _optimum(mdp, np.array([0.0, 1.0])), _optimum(mdp, np.array([1.0, 0.0]))
    corners = [second, *_between(mdp, second, first), first]
    vertices: list[_Vertex] = []
    for vertex in corners:  # what ties left on an edge of the hull, or dominated at its ends, goes
        while vertices and _dominates(vertex, vertices[-1]):
            vertices.pop()
        while len(vertices) > 1 and _gain(vertices[-1][0], vertices[-2][0], vertex[0]) <= SAME:
            vertices.pop()
        if not vertices or not _dominates(vertices[-1], vertex):
            vertices.append(vertex)
    return vertices


def _between(mdp: LinearMultiagentMDP, left: _Vertex, right: _Vertex) -> list[_Vertex]:
    """What is better than ``left`` and ``right`` at some weights, in order."""
    weights = _corner(left[0], right[0])
    if weights is None:
        return []
    middle = _optimum(mdp, weights)
    if _gain(middle[0], left[0], right[0]) <= SAME:
        return []
    return [*_between(mdp, left, middle), middle, *_between(mdp, middle, right)]


def _corner(left: Array, right: Array) -> Array | None:
    """The weights at which both points are equally good; None where one dominates the other."""
    across = np.array([left[1] - right[1], right[0] - left[0]])
    return across / across.sum() if across.min() > 0 else None


def _gain(point: Array, left: Array, right: Array) -> float:
    """By how much a point lies above the line of two others, relative to their size."""
    weights = _corner(left, right)
    if weights is None:
        return float("inf")
    return float(weights @ (point - left) / (1 + np.abs(left).max()))


def _dominates(one: _Vertex, other: _Vertex) -> bool:
    return bool((one[0] >= other[0] - SAME * (1 + np.abs(other[0]).max())).all())


def _lattice(agents: int, divisions: int) -> Iterator[Array]:
    """Points ``counts / divisions`` of the simplex, all a little inside it: their optima are dominated by nothing."""
    for bars in combinations(range(divisions + agents - 1), agents - 1):
        counts = np.diff([-1, *bars, divisions + agents - 1]) - 1
        yield (1 - 1e-6) * counts / divisions + 1e-6 / agents


def _table(mdp: TabularMDP | LinearMDP) -> TabularMDP:
    return mdp.tabular if isinstance(mdp, LinearMDP) else mdp


def _with_horizon(mdp: TabularMDP | LinearMDP, horizon: int | None) -> tuple[TabularMDP, int]:
    table = _table(mdp)
    steps = table.horizon or horizon
    if steps is None:
        raise UserError("a process that is the same at every step: expected horizon=, its steps an episode")
    if horizon is not None and horizon != steps:
        raise UserError(f"horizon {horizon}: the process has {steps} steps; leave horizon out")
    if steps < 1:
        raise UserError(f"horizon {steps}: expected 1 or more")
    return table, steps


def _stationary(mdp: TabularMDP | LinearMDP, gamma: float) -> TabularMDP:
    table = _table(mdp)
    if table.horizon is not None:
        raise UserError("a process of [H, S, A, S] has a last step: expected [S, A, S] for discounted values")
    if not 0 <= gamma < 1:
        raise UserError(f"gamma {gamma}: expected 0 <= gamma < 1")
    return table


def _step(table: TabularMDP, h: int) -> tuple[Array, Array]:
    """Transition ``[S, A, S]`` and reward ``[S, A]`` of one step."""
    return (table.transition, table.reward) if table.horizon is None else (table.transition[h], table.reward[h])


def _backup(transition: Array, reward: Array, v: Array) -> Array:
    """``reward + transition @ v``, ``[..., S, A]``; ``v`` ``[..., S]``."""
    return reward + (v @ transition.reshape(-1, v.shape[-1]).T).reshape(*v.shape[:-1], *reward.shape)


def _choose(q: Array, policy: NDArray[Any]) -> Array:
    """``[..., S]``: the values ``[..., S, A]`` of the policy's actions."""
    if np.issubdtype(policy.dtype, np.integer):
        return np.take_along_axis(q, policy[..., None], -1)[..., 0]
    chosen: Array = (q * policy).sum(-1)
    return chosen


def _discounted_return(table: TabularMDP, policy: NDArray[Any], gamma: float) -> Array:
    """``[..., S]``: solves ``v = r_pi + gamma P_pi v``."""
    probabilities = np.eye(table.actions)[policy] if np.issubdtype(policy.dtype, np.integer) else policy
    moves = np.einsum("...xa,xay->...xy", probabilities, table.transition)
    system = np.eye(table.states) - gamma * moves
    return np.asarray(np.linalg.solve(system, _choose(table.reward, probabilities)[..., None])[..., 0], np.float64)


def _check_policy(policy: NDArray[Any], shape: tuple[int, ...], actions: int) -> None:
    """Raises ``UserError`` unless it holds actions ``[..., *shape]`` or probabilities ``[..., *shape, A]``."""
    if not policy.size:
        raise UserError(f"policy {list(policy.shape)}: expected one or more")
    if np.issubdtype(policy.dtype, np.integer):
        if policy.shape[-len(shape) :] != shape:
            raise UserError(f"policy {list(policy.shape)}: expected {list(shape)}, an action for each state")
        if policy.min() < 0 or policy.max() >= actions:
            raise UserError(f"policy: expected actions 0 to {actions - 1}, got {policy.min()} to {policy.max()}")
    else:
        if policy.shape[-len(shape) - 1 :] != (*shape, actions):
            raise UserError(f"policy {list(policy.shape)}: expected {[*shape, actions]}, a probability for each action")
        check_distributions("policy", policy)
