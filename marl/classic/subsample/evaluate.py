"""What subsampling costs, exactly: the value of Algorithm 2's stochastic policy among n agents (equation 6).

A policy that sees classes only (``cells``) earns the mean of r_l plus something that depends on the n agents' classes
only, so V* - V^pi is a function of cells, and its maximum over them is the maximum over all states.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from marl.classic.mdp import Array
from marl.classic.subsample.backups import ExactBackup, one_by_one, remainder
from marl.classic.subsample.cells import Cells
from marl.classic.subsample.exact import expectation
from marl.classic.subsample.multisets import lift
from marl.classic.subsample.system import LocalGlobalSystem, check_sizes
from marl.classic.subsample.table import SubsampleQ
from marl.types import UserError


class Gap(NamedTuple):
    """``V* - V^pi``: its maximum over all states, and its mean over independent uniform states."""

    worst: float
    mean: float


def subsample_policy(table: SubsampleQ, cells: Cells) -> Array:
    """``pi(a | s)`` of equation (6), ``[A, cells]``: the share of subsets Delta whose greedy action is a.

    Raises:
        UserError: the table looks at more agents than there are, or its states have other classes.
    """
    check_sizes(table.k, cells.k)
    if not np.array_equal(table.cells.classes, cells.classes):
        raise UserError(
            f"a table of {table.system.name} with {table.cells.count.tolist()} classes: "
            f"expected the same system and merge, {cells.count.tolist()} classes"
        )
    greedy = np.eye(table.system.actions)[:, table.policy]
    chances = np.empty((table.system.actions, cells.size))
    for s, index in enumerate(cells.indices):
        part = greedy[:, table.cells.start[s] : table.cells.start[s + 1]]
        for size in range(table.k + 1, cells.k + 1):
            wider = np.empty((len(part), int(index.binomials[index.states, size])))
            for a, values in enumerate(part):
                lift(np.ascontiguousarray(values), size, index.binomials, wider[a])
            part = wider
        chances[:, cells.start[s] : cells.start[s + 1]] = part
    return chances


def policy_values(
    system: LocalGlobalSystem, cells: Cells, chances: Array, tolerance: float = 1e-6, max_sweeps: int = 10_000
) -> Array:
    """``V^pi`` less the mean of r_l, ``[cells]``, for ``chances`` ``[A, cells]``, within ``tolerance``."""
    backup = ExactBackup(system, cells)
    values, of_actions = np.zeros(cells.size), np.empty((system.actions, cells.size))
    for _ in range(max_sweeps):
        backup(values, 1.0, 0, one_by_one, of_actions)
        fresh = (chances * of_actions).sum(0)
        rest, error = remainder(fresh - values, system.gamma)
        values = fresh
        if error <= tolerance:
            return values + rest
    raise UserError(f"no policy values within {tolerance} after {max_sweeps} sweeps; allow more")


def gap(table: SubsampleQ, optimum: SubsampleQ, tolerance: float = 1e-6) -> Gap:
    """How much less than the optimum the table's policy earns among n agents.

    Args:
        table: of k agents, solved.
        optimum: of all n agents, backup ``exact``, solved: Q* itself.
    """
    cells = optimum.cells
    lost = optimum.values.max(0) - policy_values(table.system, cells, subsample_policy(table, cells), tolerance)
    return Gap(float(lost.max()), uniform_mean(lost, cells))


def uniform_mean(values: Array, cells: Cells) -> float:
    """The mean of ``values`` ``[cells]`` where the global and all local states are uniform and independent."""
    means = []
    for s, index in enumerate(cells.indices):
        share = np.bincount(cells.classes[s], minlength=index.states) / cells.classes.shape[1]
        means.append(expectation(values[cells.start[s] : cells.start[s + 1]], share[None], index)[0])
    return float(np.mean(means))
