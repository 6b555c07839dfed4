"""Combination locks: one, a family of tasks for DistMT-LSVI, and teams in which the right action differs.

The rule of all of them: positions 0 .. n - 1 and, as state n, the open lock. At a position one action is right and
leads on with probability ``1 - slip``; every other action, and a slip, leads back to position 0. The open lock stays
open and pays 1 (or less, see ``make_lock_family``) at each step; nothing else pays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from marl.classic.checks import check_fits, generator
from marl.classic.mdp import HeterogeneousLinearMDP, LinearMDP, TabularMDP
from marl.config import suggestion
from marl.types import UserError

Differ: TypeAlias = Literal["rewards", "transitions", "both"]

DRAWN = 62
"""So many first positions at most are drawn for the codes of a family: 2 to that power is an int64."""


def lock_table(code: Sequence[int], actions: int = 2, slip: float = 0.1, prize: float = 1.0) -> TabularMDP:
    """The lock that the right actions ``code`` open, the same at every step.

    Raises:
        UserError: no code, an action of it that does not exist, a slip outside [0, 1), or a table beyond memory.
    """
    check_lock(code, actions, slip)
    n = len(code)
    check_fits("transition", n + 1, actions, n + 1)
    transition = np.zeros((n + 1, actions, n + 1))
    transition[:n, :, 0] = 1.0
    for position, right in enumerate(code):
        transition[position, right, [0, position + 1]] += slip - 1, 1 - slip
    transition[n, :, n] = 1.0
    reward = np.zeros((n + 1, actions))
    reward[n] = prize
    return TabularMDP(transition, reward)


def check_lock(code: Sequence[int], actions: int, slip: float) -> None:
    """Raises ``UserError`` for a lock that cannot be."""
    if not len(code) or min(code) < 0 or max(code) >= actions:
        raise UserError(f"code {list(code)}: expected one or more actions between 0 and {actions - 1}")
    if not 0 <= slip < 1:
        raise UserError(f"slip {slip}: expected 0 <= slip < 1")


def lock_value(n: int, horizon: int, slip: float) -> float:
    """The best expected return of a lock that pays 1, by the recursion of its right actions.

    ``W(t) = sum over the failing position j of (1 - slip)^j slip W(t - j - 1) + (1 - slip)^n (t - n)``, t steps left.
    """
    values = np.zeros(horizon + 1)
    for left in range(n + 1, horizon + 1):
        slipped = sum((1 - slip) ** j * slip * values[left - j - 1] for j in range(n))
        values[left] = slipped + (1 - slip) ** n * (left - n)
    return float(values[horizon])


def make_combination_lock(
    n: int = 4, horizon: int = 6, slip: float = 0.1, code: Sequence[int] | None = None
) -> LinearMDP:
    """A lock of two actions with one-hot features, ``d = 2 (n + 1)``: 10 for n = 4.

    Args:
        n: positions.
        horizon: steps an episode; more than n, or it cannot be seen open.
        slip: probability that the right action leads back all the same.
        code: the right actions; None: 1, 0, 1, 0, ..., so that no constant action opens it.

    Raises:
        UserError: a horizon that cannot open the lock, and as ``lock_table``.
    """
    code = alternating(n) if code is None else code
    if len(code) != n:
        raise UserError(f"code of {len(code)} actions: expected n = {n}")
    check_horizon(n, horizon)
    return LinearMDP.one_hot(lock_table(code, slip=slip), horizon)


def make_lock_family(
    n_tasks: int = 5,
    separation: float = 0.3,
    n: int = 3,
    horizon: int = 5,
    slip: float = 0.1,
    differ: Differ = "both",
    seed: int = 0,
) -> list[LinearMDP]:
    """Tasks whose optimal values from the start lie exactly ``separation`` apart, best first, with the same features.

    DistMT-LSVI's Assumption 2 holds for every ``c_sep`` below ``separation``; at 0 all tasks have the same value.

    Args:
        n_tasks: tasks; 2^n at most where their codes differ.
        separation: between neighbouring optimal values.
        n, horizon, slip: of the lock; the first task is the lock of prize 1 and of this slip.
        differ: ``rewards``: one code, prizes differ, so that the optimal policies are the same. ``transitions``: codes
            differ, and how often the right action slips. ``both``: codes differ, and prizes.
        seed: which codes; only where they differ, which is in the first ``DRAWN`` positions.

    Raises:
        UserError: more tasks than codes, or values that would fall to 0 or below.
    """
    if differ not in get_args(Differ):
        raise UserError(
            f"differ {differ!r}: expected {', '.join(get_args(Differ))}{suggestion(differ, get_args(Differ))}"
        )
    check_horizon(n, horizon)
    check_lock(alternating(n), 2, slip)
    best = lock_value(n, horizon, slip)
    values = best - separation * np.arange(n_tasks)
    if not separation >= 0 or n_tasks < 1 or values[-1] <= 0:
        largest = best / max(n_tasks - 1, 1)
        raise UserError(
            f"{n_tasks} tasks {separation} apart: the best has value {best:.4g}; expected 1 or more tasks "
            f"and 0 <= separation < {largest:.4g}"
        )
    codes: NDArray[np.int64] = np.array([alternating(n)] * n_tasks)
    if differ != "rewards":
        if n_tasks > 2**n:
            raise UserError(f"{n_tasks} tasks: {n} positions have {2**n} codes; expected n_tasks <= {2**n}, or more n")
        drawn = min(n, DRAWN)
        numbers = generator(seed).choice(2**drawn, n_tasks, replace=False)
        codes[:, :drawn] = numbers[:, None] >> np.arange(drawn) & 1
    tasks = []
    for code, value in zip(codes.tolist(), values, strict=True):
        slips, prize = slip, value / best
        if differ == "transitions":
            slips, prize = _slip_of(value, n, horizon, slip), 1.0
        tasks.append(LinearMDP.one_hot(lock_table(code, slip=slips, prize=prize), horizon))
    return tasks


def make_heterogeneous_locks(
    agents: int = 6, groups: int = 2, n: int = 4, horizon: int = 6, slip: float = 0.1
) -> HeterogeneousLinearMDP:
    """Groups of agents whose locks differ in one position, with joint features phi(m, x, a).

    Agent m is in group ``m % groups``. Group 0 has the alternating code; in group g the right action of position g is
    the other one. One-hot features: a coordinate for each (x, a) that all agents share, except at position g, where
    group g has two coordinates of its own, so ``d = 2 (n + 1) + 2 (groups - 1)``: 12 for two groups.

    Raises:
        UserError: more groups than positions or agents.
    """
    if not 1 <= groups <= min(n, agents):
        raise UserError(f"groups {groups}: expected 1 to {min(n, agents)}, the smaller of positions and agents")
    check_horizon(n, horizon)
    shared = 2 * (n + 1)
    dim = shared + 2 * (groups - 1)
    code = alternating(n)
    base = LinearMDP.one_hot(lock_table(code, slip=slip), horizon)
    mu = np.zeros((horizon, dim, n + 1))
    mu[:, :shared] = base.mu
    theta = np.zeros((horizon, dim))
    theta[:, :shared] = base.theta
    features = np.zeros((agents, n + 1, 2, dim))
    features[..., :shared] = base.features
    for group in range(1, groups):
        own = shared + 2 * (group - 1) + np.arange(2)
        mu[:, own] = base.mu[:, [2 * group + 1, 2 * group]]
        features[group::groups, group] = np.eye(dim)[own]
    return HeterogeneousLinearMDP(features, theta, mu)


def alternating(n: int) -> list[int]:
    """The code 1, 0, 1, 0, ..."""
    return [1 - position % 2 for position in range(n)]


def check_horizon(n: int, horizon: int) -> None:
    if not 1 <= n < horizon:
        raise UserError(f"n {n} with horizon {horizon}: expected 1 <= n < horizon, or the lock pays nothing")


def _slip_of(value: float, n: int, horizon: int, least: float) -> float:
    """The slip, ``least`` or more, that gives the lock this value."""
    if np.isclose(value, lock_value(n, horizon, least), rtol=0, atol=1e-12):
        return least
    return float(brentq(lambda slip: lock_value(n, horizon, slip) - value, least, 1.0, xtol=1e-15))
