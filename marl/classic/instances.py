"""Linear processes to learn in, each small enough for an exact optimum. All are reached from here.

Every ``make_...`` gives the same process for the same arguments. Rewards are means; what is random in an episode are
the transitions.
"""

from __future__ import annotations

import numpy as np

from marl.classic.checks import check_counts, generator
from marl.classic.continuous import make_continuous_mdp
from marl.classic.locks import make_combination_lock, make_heterogeneous_locks, make_lock_family
from marl.classic.mdp import LinearMDP, TabularMDP
from marl.classic.teams import make_linear_multiagent, make_value_shift
from marl.types import UserError

__all__ = [
    "make_chain",
    "make_combination_lock",
    "make_continuous_mdp",
    "make_heterogeneous_locks",
    "make_linear_multiagent",
    "make_lock_family",
    "make_riverswim",
    "make_simplex_mdp",
    "make_soft_block_lock",
    "make_value_shift",
]


def make_riverswim(states: int = 5, horizon: int = 12) -> LinearMDP:
    """RiverSwim (Strehl and Littman 2008) with one-hot features, ``d = 2 S``.

    Action 0 swims with the current: one state to the left, always. Action 1 swims against it: one state to the right
    with probability .35, back with .05, else it stays; at the left bank .6 and .4 (right, stay), at the right bank .4
    and .6 (back, stay), the numbers of Osband, Russo and Van Roy (2013). Swimming left at the left bank pays .005,
    swimming right at the right bank 1. Episodes start at the left bank.
    """
    check_counts(states=states, horizon=horizon)
    if states < 2:
        raise UserError(f"states {states}: expected 2 banks or more")
    transition = np.zeros((states, 2, states))
    middle = np.arange(1, states - 1)
    transition[[0, *middle, states - 1], 0, [0, *(middle - 1), states - 2]] = 1.0
    for step, probability in ((-1, 0.05), (0, 0.6), (1, 0.35)):
        transition[middle, 1, middle + step] = probability
    transition[0, 1, :2] = 0.4, 0.6
    transition[-1, 1, -2:] = 0.4, 0.6
    reward = np.zeros((states, 2))
    reward[0, 0], reward[-1, 1] = 0.005, 1.0
    return LinearMDP.one_hot(TabularMDP(transition, reward), horizon)


def make_chain(n: int = 5, horizon: int = 10, slip: float = 0.2) -> LinearMDP:
    """N-chain (Dearden, Friedman and Russell 1998) with one-hot features, ``d = 2 n``; rewards a tenth of theirs.

    Action 1 leads on to the next state and pays nothing, but 1 at the last state, where it stays; action 0 leads back
    to state 0 and pays .2. With probability ``slip`` the other action happens.
    """
    check_counts(n=n, horizon=horizon)
    if not 0 <= slip <= 1:
        raise UserError(f"slip {slip}: expected a probability")
    back, on = np.zeros((n, n)), np.zeros((n, n))
    back[:, 0] = 1.0
    on[np.arange(n), np.minimum(np.arange(n) + 1, n - 1)] = 1.0
    last = np.eye(n)[-1]
    mix = np.array([[1 - slip, slip], [slip, 1 - slip]])  # [action, what happens]
    transition = np.einsum("ab,bxy->xay", mix, np.stack([back, on]))
    reward = np.einsum("ab,bx->xa", mix, np.stack([np.full(n, 0.2), last]))
    return LinearMDP.one_hot(TabularMDP(transition, reward), horizon)


def make_soft_block_lock(
    dim: int = 8, states: int = 40, actions: int = 3, horizon: int = 8, seed: int = 0, softness: float = 0.1
) -> LinearMDP:
    """A lock whose positions show themselves as blocks of states; features of d numbers and not of S A.

    State x is in block ``x * dim // states``. In each state one action, drawn at random, is right: its features are
    ``(1 - softness) e_(block + 1) + softness w`` (the last block leads to itself), those of the others
    ``(1 - softness) e_0 + softness w``, with w uniform on the simplex, drawn for each state and action. Measure j is a
    random distribution over the states of block j. The reward is the feature ``d - 1``: the probability to be in the
    last block next. Episodes start in a state of block 0, by measure 0.
    """
    check_counts(dim=dim, actions=actions, horizon=horizon)
    if states < dim:
        raise UserError(f"states {states}: expected {dim} or more, one for each block")
    if not 0 <= softness <= 1:
        raise UserError(f"softness {softness}: expected a number in [0, 1]")
    rng = generator(seed)
    block = np.arange(states) * dim // states
    right = rng.integers(actions, size=states)[:, None] == np.arange(actions)
    target = np.where(right | (block == dim - 1)[:, None], np.minimum(block + 1, dim - 1)[:, None], 0)
    features = (1 - softness) * np.eye(dim)[target] + softness * rng.dirichlet(np.ones(dim), size=(states, actions))
    weights = np.where(block == np.arange(dim)[:, None], rng.exponential(size=(dim, states)), 0.0)
    mu = weights / weights.sum(-1, keepdims=True)
    theta = np.eye(dim)[-1]
    return LinearMDP(features, np.tile(theta, (horizon, 1)), np.tile(mu, (horizon, 1, 1)), start=mu[0])


def make_simplex_mdp(states: int = 20, actions: int = 4, dim: int = 5, horizon: int = 6, seed: int = 0) -> LinearMDP:
    """A random process with latent simplex features, different at every step.

    Features are points of the simplex (Dirichlet 1/2), measures random distributions over states (Dirichlet 1/2), and
    theta uniform in [0, 1], so that probabilities and rewards are what they must be. Episodes start in state 0.
    """
    check_counts(states=states, actions=actions, dim=dim, horizon=horizon)
    rng = generator(seed)
    features = rng.dirichlet(np.full(dim, 0.5), size=(states, actions))
    mu = rng.dirichlet(np.full(states, 0.5), size=(horizon, dim))
    return LinearMDP(features, rng.uniform(size=(horizon, dim)), mu)
