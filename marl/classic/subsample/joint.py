"""Value iteration on the whole chain, ordered agents and all: the reference for small n."""

from __future__ import annotations

import numpy as np

from marl.classic.mdp import Array
from marl.classic.subsample.backups import remainder
from marl.classic.subsample.system import LocalGlobalSystem
from marl.types import UserError

MAX_BYTES = 2 * 2**30


def joint_q(
    system: LocalGlobalSystem, n: int, tolerance: float = 1e-9, policy: Array | None = None, max_bytes: int = MAX_BYTES
) -> Array:
    """``Q*`` of n ordered local agents, ``[G, A, L, ..., L]``; ``Q^pi`` for ``policy`` ``[G, A, L, ..., L]``, chances.

    Raises:
        UserError: an array of that shape would be larger than ``max_bytes``.
    """
    shape = (system.global_states, system.actions) + (system.local_states,) * n
    size = 8 * int(np.prod([float(s) for s in shape]))
    if size > max_bytes:
        raise UserError(f"the joint chain of n = {n} takes {size / 2**20:.4g} MiB, allowed are {max_bytes / 2**20:.4g}")
    reward = _mean_reward(system, n)[:, None] + system.global_reward.reshape(shape[:2] + (1,) * n)
    q = np.zeros(shape)
    while True:
        value = q.max(1) if policy is None else (policy * q).sum(1)
        fresh = reward + system.gamma * _ahead(system, value)
        rest, error = remainder(fresh - q, system.gamma)
        q = fresh
        if error <= tolerance:
            return q + rest


def _ahead(system: LocalGlobalSystem, value: Array) -> Array:
    """``E[value(s') | s, a]``, ``[G, A, L, ..., L]``, one agent's axis at a time."""
    ahead = np.empty((system.global_states, system.actions, *value.shape[1:]))
    for s in range(system.global_states):
        for a in range(system.actions):
            mean = np.tensordot(system.global_transition[s, a], value, 1)
            kernel = system.kernels(s)[a if system.follows_action else 0]
            for _ in range(mean.ndim):  # the axis that is consumed comes back last, so that n turns restore the order
                mean = np.tensordot(mean, kernel, (0, 1))
            ahead[s, a] = mean
    return ahead


def _mean_reward(system: LocalGlobalSystem, n: int) -> Array:
    """``[G, L, ..., L]``."""
    total = np.zeros((system.global_states,) + (1,) * n)
    for i in range(n):
        total = total + np.expand_dims(system.local_reward, [1 + j for j in range(n) if j != i])
    return total / n
