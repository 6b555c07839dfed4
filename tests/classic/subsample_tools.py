"""Small systems for the tests of SUB-SAMPLE-Q."""

from __future__ import annotations

from itertools import product

import numpy as np

from marl.classic.subsample.system import LocalGlobalSystem


def random_system(seed, global_states=2, local_states=3, actions=2, gamma=0.8, follows_action=False, twins=False):
    """Random rows and rewards; ``twins``: the last two local states move alike."""
    rng = np.random.default_rng(seed)

    def rows(*shape):
        values = rng.random(shape) ** 3
        return values / values.sum(-1, keepdims=True)

    local = rows(global_states, *[actions] * follows_action, local_states, local_states)
    if twins:
        local[..., -1, :] = local[..., -2, :]
    return LocalGlobalSystem(
        rows(global_states, actions, global_states),
        local,
        0.1 * rng.normal(size=(global_states, actions)),
        2 * rng.normal(size=(global_states, local_states)),
        gamma,
    )


def at_ordered_states(table, index, k):
    """``[G, A, multisets]`` -> ``[G, A, L, ..., L]``."""
    ordered = np.array(list(product(range(index.states), repeat=k)))
    return table[..., index.rank(ordered)].reshape(*table.shape[:2], *[index.states] * k)


def loop_q(system, k, sweeps):
    """The full table after ``sweeps`` of value iteration, one cell, action and outcome at a time."""
    cells = list(product(range(system.global_states), product(range(system.local_states), repeat=k)))
    q = {(s, local, a): 0.0 for s, local in cells for a in range(system.actions)}
    for _ in range(sweeps):
        value = {(s, local): max(q[s, local, a] for a in range(system.actions)) for s, local in cells}
        for s, local, a in q:
            kernel = system.kernels(s)[a if system.follows_action else 0]
            ahead = 0.0
            for then, new in cells:
                chance = system.global_transition[s, a, then]
                for x, y in zip(local, new, strict=True):
                    chance *= kernel[x, y]
                ahead += chance * value[then, new]
            own = np.mean([system.local_reward[s, x] for x in local])
            q[s, local, a] = system.global_reward[s, a] + own + system.gamma * ahead
    shape = (system.global_states, system.actions) + (system.local_states,) * k
    table = np.empty(shape)
    for (s, local, a), value_ in q.items():
        table[(s, a, *local)] = value_
    return table
