"""The paper's theorems as numbers, to lay beside what is measured."""

from __future__ import annotations

import numpy as np

from marl.classic.mdp import Array
from marl.classic.subsample.multisets import Integers
from marl.classic.subsample.system import LocalGlobalSystem, check_sizes
from marl.classic.subsample.table import SubsampleQ
from marl.types import UserError


def optimality_bound(system: LocalGlobalSystem, n: int, k: int, noise: float = 0.0) -> float:
    """Theorem 3.2: V* - V^pi at any state is at most this.

    ``2 r~ / (1 - gamma)^2 (sqrt((n - k + 1) / (2 n k) ln(2 L A sqrt(k))) + 1 / sqrt(k)) + 2 noise / (1 - gamma)``, the
    noise being ``epsilon_{k,m}`` of Assumption 3.1. Compare ``trivial_bound``: the smaller of the two is what is known.
    """
    check_sizes(k, n)
    log = np.log(2 * system.local_states * system.actions * np.sqrt(k))
    rate = np.sqrt((n - k + 1) / (2 * n * k) * log) + 1 / np.sqrt(k)
    left = 1 - system.gamma
    return float(2 * system.reward_bound / left**2 * rate + 2 * noise / left)


def trivial_bound(system: LocalGlobalSystem) -> float:
    """``2 r~ / (1 - gamma)``: no two policies differ by more; a bound above it says nothing."""
    return 2 * system.reward_bound / (1 - system.gamma)


def bellman_noise(table: SubsampleQ, exact: SubsampleQ) -> float:
    """``epsilon_{k,m} = ||Q^est - Q_k*||`` (Assumption 3.1), measured: both solved, for the same k and system.

    Where ``resample`` is not done, so that the mean of r_l has not its full weight in Q, it is at most this.
    """
    if table.k != exact.k or table.values.shape != exact.values.shape:
        raise UserError(f"Bellman noise of k = {table.k} against k = {exact.k}: expected the same k and cells")
    missing = abs(table.weight - exact.weight) * float(np.abs(table.system.local_reward).max())
    return float(np.abs(table.values - exact.values).max()) + missing


def frequency_bound(local_states: int, n: int, k: int, delta: float) -> float:
    """Theorem 4.3: with probability 1 - delta or more, no state's frequency in Delta is further from that in [n].

    ``sqrt((n - k + 1) / (2 n k) ln(2 L / delta))``; raises ``UserError`` unless 0 < delta <= 1.
    """
    check_sizes(k, n)
    if not 0 < delta <= 1:
        raise UserError(f"delta = {delta}: expected a chance above 0, 1 at most")
    return float(np.sqrt((n - k + 1) / (2 * n * k) * np.log(2 * local_states / delta)))


def variation_bound(local_states: int, n: int, k: int, delta: float) -> float:
    """Equation (13) as printed: half of ``frequency_bound`` for the total variation distance.

    It is not a theorem: a half of a *sum* of L frequencies' differences is taken for a half of their largest. With
    L n-th parts, n = 100, k = 50 the distance is always 1/2, and this says .1. What Theorem 4.3 does give is
    ``L / 2`` times ``frequency_bound``.
    """
    return frequency_bound(local_states, n, k, delta) / 2


def lipschitz_bound(system: LocalGlobalSystem, distance: float) -> float:
    """Theorem 4.2 as printed: ``|Q_k*(s_g, F, a) - Q_k'*(s_g, F', a)|`` at TV distance ``distance`` of F and F'.

    ``2 ||r_l|| distance / (1 - gamma)``. It is not a theorem either: one agent at x and two at x have the same F, and
    yet different values, since two agents move apart.
    """
    return 2 * float(np.abs(system.local_reward).max()) * distance / (1 - system.gamma)


def frequencies(states: Integers, local_states: int) -> Array:
    """``F`` of Definition 4.1: states ``[..., n]`` -> ``[..., L]``."""
    return (np.asarray(states)[..., None] == np.arange(local_states)).mean(-2)
