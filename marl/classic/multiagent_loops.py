"""The loops of ``marl.classic.multiagent_lsvi``, compiled: planning, living, synchronising, and exact values.

Numbers are copied one by one: Numba takes seconds to compile each kind of assignment between whole arrays.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from marl.classic.mdp import Array, LinearMultiagentMDP
from marl.classic.ridge import add_row, ridge_weights

Indices = NDArray[np.int64]

TIE = 1e-9
"""Joint actions this close are tied, so that agents whose sums were rounded differently still choose alike."""


class Known(NamedTuple):
    """The process as the loops read it. One group of all agents; M groups of one where each knows its own reward only.

    Attributes:
        columns: ``[G, S, A, K, d]``, ``Phi^T``: G groups of K agents whose rewards one regression learns.
        reward: ``[H, S, A, M]``, given to the agents only as they are earned.
        transition: ``[H, S, A, S]``, and ``cumulative`` along the last axis: to draw from, and for exact values.
        start: ``[S]``, and ``start_cumulative``.
        places, sizes: ``[M]``: agent m's own action in joint action a is ``a // places[m] % sizes[m]``.
    """

    columns: Array
    reward: Array
    transition: Array
    cumulative: Array
    start: Array
    start_cumulative: Array
    places: Indices
    sizes: Indices


def know(mdp: LinearMultiagentMDP, isolated: bool) -> Known:
    """``isolated``: one group for each agent, else one of all."""
    columns = np.moveaxis(mdp.joint_features, -1, 2)  # [S, A, M, d]
    groups = np.moveaxis(columns, 2, 0)[:, :, :, None] if isolated else columns[None]
    transition = mdp.scalarised(np.ones(mdp.agents)).transition
    start = np.asarray(mdp.start, np.float64)
    sizes = np.array(mdp.actions_each, np.int64)
    places = np.append(np.cumprod(sizes[:0:-1])[::-1], 1)
    return Known(
        np.ascontiguousarray(groups), np.ascontiguousarray(mdp.reward), np.ascontiguousarray(transition),
        np.cumsum(transition, -1), start, np.cumsum(start), places, sizes,
    )  # fmt: skip


class Gathered(NamedTuple):
    """``RidgeStatistics`` of shape ``[G, H]`` as the loops read it: all that happened, shared or not."""

    gram: Array
    inverse: Array
    reward_sum: Array
    next_sum: Array
    log_det: Array


class Shared(NamedTuple):
    """The same at the last exchange: what agents plan with.

    Attributes:
        inverse: ``[G, H, d, d]``, of ``Lambda``.
        reward_sum: ``[G, H, d]``, b.
        next_sum: ``[G, H, d, S]``, N.
        log_det: ``[G, H]``, of ``Lambda``.
        width: ``[G, H, S, A]``, ``sqrt(||Phi^T Lambda^-1 Phi||_2)``.
    """

    inverse: Array
    reward_sum: Array
    next_sum: Array
    log_det: Array
    width: Array


@njit(cache=True)
def spectral_width(inverse: Array, columns: Array) -> Array:
    """``sqrt(||Phi^T Lambda^-1 Phi||_2)`` ``[S, A]``; ``inverse`` ``[d, d]``, ``columns`` ``[S, A, K, d]``: Phi^T."""
    states, actions, outputs, dim = columns.shape
    scaled = np.dot(columns.reshape(-1, dim), inverse).reshape(columns.shape)
    width = np.empty((states, actions))
    gram = np.empty((outputs, outputs))
    for x in range(states):
        for a in range(actions):
            for i in range(outputs):
                for j in range(outputs):
                    gram[i, j] = np.dot(scaled[x, a, i], columns[x, a, j])
            if outputs == 1:
                largest = gram[0, 0]
            elif outputs == 2:
                largest = (gram[0, 0] + gram[1, 1]) / 2 + math.hypot((gram[0, 0] - gram[1, 1]) / 2, gram[0, 1])
            else:
                largest = np.linalg.eigvalsh(gram)[-1]
            width[x, a] = math.sqrt(max(largest, 0.0))
    return width


@njit(cache=True)
def plan_group(
    shared: Shared, group: int, columns: Array, weights: Array, beta: float, weighted: bool
) -> tuple[Indices, Array]:
    """Backward recursion of one group (lines 6 to 10): its joint policy ``[H, S]`` and the upper values ``[H + 1, S]``.

    ``Q_h = min(H - h, weights @ Phi^T w_h + beta * width)``, h from 0; among tied actions the lowest. ``columns``
    ``[S, A, K, d]``, ``weights`` ``[K]``; ``weighted``: the width is ``||Phi weights||_{Lambda^-1}``.
    """
    horizon, states, actions = shared.width.shape[1:]
    outputs, dim = columns.shape[2:]
    policy = np.zeros((horizon, states), np.int64)
    values = np.zeros((horizon + 1, states))
    phi = np.zeros((states, actions, 1, dim))  # Phi @ weights
    for x in range(states):
        for a in range(actions):
            for k in range(outputs):
                for i in range(dim):
                    phi[x, a, 0, i] += weights[k] * columns[x, a, k, i]
    for h in range(horizon - 1, -1, -1):
        inverse = shared.inverse[group, h]
        w = ridge_weights(inverse, shared.reward_sum[group, h], shared.next_sum[group, h], values[h + 1])
        width = spectral_width(inverse, phi) if weighted else shared.width[group, h]
        q = np.dot(phi.reshape(-1, dim), w).reshape(states, actions)
        for x in range(states):
            for a in range(actions):
                q[x, a] = min(q[x, a] + beta * width[x, a], horizon - h)
            values[h, x] = q[x].max()
            while q[x, policy[h, x]] < values[h, x] - TIE:
                policy[h, x] += 1
    return policy, values


@njit(cache=True)
def plan_joint(known: Known, shared: Shared, v: Array, beta: float, weighted: bool) -> tuple[Indices, Array]:
    """What all agents do ``[H, S]``, each its part of its group's plan, and the groups' values ``[G, H + 1, S]``."""
    groups, horizon, states, _ = shared.width.shape
    joint = np.zeros((horizon, states), np.int64)
    values = np.zeros((groups, horizon + 1, states))
    for g in range(groups):
        weights = v if groups == 1 else np.ones(1)
        policy, upper = plan_group(shared, g, known.columns[g], weights, beta, weighted)
        for h in range(horizon):
            for x in range(states):
                values[g, h, x] = upper[h, x]
                own = policy[h, x] // known.places[g] % known.sizes[g] * known.places[g]
                joint[h, x] += policy[h, x] if groups == 1 else own
    return joint, values


@njit(cache=True)
def start_values(known: Known, policy: Indices) -> Array:
    """Exact: what a joint policy ``[H, S]`` earns each agent, ``[M]``, from the start's distribution."""
    horizon, states = policy.shape
    agents = known.reward.shape[3]
    values = np.zeros((horizon + 1, states, agents))
    for h in range(horizon - 1, -1, -1):
        for x in range(states):
            a = policy[h, x]
            for m in range(agents):
                values[h, x, m] = known.reward[h, x, a, m]
                for y in range(states):
                    values[h, x, m] += known.transition[h, x, a, y] * values[h + 1, y, m]
    return np.dot(known.start, values[0])


@njit(cache=True)
def synchronise(known: Known, gathered: Gathered, shared: Shared, regulariser: float) -> None:
    """Lines 21 to 30: all that was gathered becomes shared, in place; inverse and determinant are taken anew."""
    groups, horizon, dim, states = shared.next_sum.shape
    for g in range(groups):
        for h in range(horizon):
            whole = gathered.gram[g, h].copy()
            for i in range(dim):
                whole[i, i] += regulariser
            inverse = np.linalg.inv(whole)
            width = spectral_width(inverse, known.columns[g])
            for i in range(dim):
                shared.reward_sum[g, h, i] = gathered.reward_sum[g, h, i]
                for j in range(dim):
                    gathered.inverse[g, h, i, j] = shared.inverse[g, h, i, j] = inverse[i, j]
                for x in range(states):
                    shared.next_sum[g, h, i, x] = gathered.next_sum[g, h, i, x]
            for x in range(states):
                for a in range(width.shape[1]):
                    shared.width[g, h, x, a] = width[x, a]
            gathered.log_det[g, h] = shared.log_det[g, h] = np.linalg.slogdet(whole)[1]


@njit(cache=True)
def run_episodes(
    known: Known, gathered: Gathered, shared: Shared, weights: Array, draws: Array, betas: Array,
    weighted: bool, log_threshold: float, regulariser: float,
) -> tuple[Array, NDArray[np.bool_]]:  # fmt: skip
    """One episode for each row of ``weights`` ``[n, M]``, ``betas`` ``[n]`` and ``draws`` ``[n, H + 1]`` in [0, 1).

    The draws are for the first state and each step's successor. ``gathered`` and ``shared`` are changed in place.

    Returns:
        The exact values ``[n, M]`` of the policies played, and after which episodes ``[n]`` the agents synchronised.
    """
    groups, last = len(known.columns), len(known.start) - 1
    values = np.zeros((len(weights), known.reward.shape[3]))
    synchronised = np.zeros(len(weights), np.bool_)
    for t in range(len(weights)):
        policy, _ = plan_joint(known, shared, weights[t], betas[t], weighted)
        earned = start_values(known, policy)
        for m in range(len(earned)):
            values[t, m] = earned[m]
        growth = 0.0
        x = min(np.searchsorted(known.start_cumulative, draws[t, 0], side="right"), last)
        for h in range(len(policy)):
            a = policy[h, x]
            following = min(np.searchsorted(known.cumulative[h, x, a], draws[t, h + 1], side="right"), last)
            for g in range(groups):
                for k in range(known.columns.shape[3]):
                    gathered.log_det[g, h] += add_row(
                        gathered.gram[g, h], gathered.inverse[g, h], gathered.reward_sum[g, h],
                        gathered.next_sum[g, h], known.columns[g, x, a, k], known.reward[h, x, a, g + k], following,
                    )  # fmt: skip
                growth = max(growth, gathered.log_det[g, h] - shared.log_det[g, h])
            x = following
        if growth > log_threshold:
            synchronise(known, gathered, shared, regulariser)
            synchronised[t] = True
    return values, synchronised
