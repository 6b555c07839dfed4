"""Linear processes of teams: one whose agents' values are shifted (Definition 2), one that its agents move together."""

from __future__ import annotations

import numpy as np

from marl.classic.checks import Array, check_counts, generator
from marl.classic.mdp import HeterogeneousLinearMDP, LinearMultiagentMDP
from marl.types import UserError


def make_value_shift(
    agents: int = 6,
    seed: int = 0,
    states: int = 8,
    actions: int = 3,
    dim: int = 5,
    contexts: int = 3,
    horizon: int = 5,
) -> HeterogeneousLinearMDP:
    """Definition 2 to the letter: features ``[phi(x, a), kappa(m)]``, so that kappa shifts values and nothing else.

    ``P_m = (w(x, a) D + k(m) N) / 2`` with w and k points of simplices, D and N distributions over states: all agents'
    optimal values differ by a number for each step, and they share every optimal policy. Features are ``w / sqrt 2``
    and ``k / sqrt 2``; ``d = dim + contexts``.

    Args:
        agents: M.
        seed: of everything.
        states, actions, horizon: of each process.
        dim, contexts: sizes of phi and kappa.
    """
    check_counts(agents=agents, states=states, actions=actions, dim=dim, contexts=contexts, horizon=horizon)
    rng = generator(seed)
    phi = rng.dirichlet(np.full(dim, 0.5), size=(states, actions))
    kappa = rng.dirichlet(np.full(contexts, 0.5), size=agents)
    features = np.empty((agents, states, actions, dim + contexts))
    features[..., :dim] = phi * 0.5**0.5
    features[..., dim:] = kappa[:, None, None] * 0.5**0.5
    mu = rng.dirichlet(np.full(states, 0.5), size=(horizon, dim + contexts)) * 0.5**0.5
    theta = rng.uniform(size=(horizon, dim + contexts)) * 0.5**0.5
    return HeterogeneousLinearMDP(features, theta, mu)


def make_linear_multiagent(
    seed: int = 0,
    states: int = 12,
    horizon: int = 6,
    actions_each: tuple[int, ...] = (2, 2),
    reward_dim: int = 5,
    transition_dim: int = 5,
) -> LinearMultiagentMDP:
    """A random process that a team moves together, in which the agents want different things.

    ``phi_c = c w(x, a)``, w on the simplex and mixed with its centre just enough that both of the paper's bounds hold,
    ``||Phi|| <= 1`` and ``||mu(S)|| <= sqrt d``, which asks for ``c = sqrt(d2 / d)`` and leaves 40 % of Phi's square
    to the rewards: ``phi_m = b u_m(x, a)``, u_m on the simplex, ``b = sqrt(.4 / M)``.

    Args:
        seed: of everything.
        states, horizon: S and H.
        actions_each: number of own actions of each agent; M is how many there are.
        reward_dim, transition_dim: d1 and d2; d is their sum.

    Raises:
        UserError: more agents than such features can serve.
    """
    agents, joint, dim = len(actions_each), int(np.prod(actions_each)), reward_dim + transition_dim
    check_counts(agents=agents, states=states, horizon=horizon, reward_dim=reward_dim, transition_dim=transition_dim)
    check_counts(**{f"actions_each[{agent}]": count for agent, count in enumerate(actions_each)})
    if agents > 0.6 * dim:
        raise UserError(
            f"{agents} agents with {dim} features: expected {int(0.6 * dim)} agents at most, or more of them"
        )
    rng = generator(seed)
    scale = (transition_dim / dim) ** 0.5
    centre = 1 / transition_dim
    room = 0.6 / (agents * scale**2) - centre  # for the weights' square beyond that of the centre
    spread = min(max(room, 0.0) / max(1 - centre, 1e-12), 1.0) ** 0.5
    weights: Array = rng.dirichlet(np.full(transition_dim, 0.3), size=(states, joint))
    weights = spread * weights + (1 - spread) * centre
    reward_scale = (0.4 / agents) ** 0.5
    wishes = rng.dirichlet(np.full(reward_dim, 0.3), size=(agents, states, joint))
    theta = rng.uniform(size=(horizon, reward_dim)) / reward_scale
    theta /= np.maximum(1.0, np.linalg.norm(theta, axis=-1, keepdims=True) / dim**0.5)
    mu = rng.dirichlet(np.full(states, 0.3), size=(horizon, transition_dim)) / scale
    return LinearMultiagentMDP(reward_scale * wishes, scale * weights, theta, mu, tuple(actions_each))
