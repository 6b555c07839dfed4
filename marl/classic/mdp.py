"""Markov decision processes whose transitions and rewards are known, so that regret and gaps are exact.

``H`` steps an episode (numbered 0 .. H - 1), ``S`` states, ``A`` actions, ``d`` features, ``M`` agents. All arrays are
float64. A process checks its own conditions when it is made and raises ``UserError`` with the first that fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from marl.classic.checks import (
    TOLERANCE,
    Array,
    check_distributions,
    check_fits,
    check_norms,
    check_rewards,
    check_shapes,
    check_sizes,
    rounded,
    start_distribution,
    store,
)
from marl.types import UserError


@dataclass(frozen=True, eq=False)
class TabularMDP:
    """A finite process, for a horizon or discounted.

    Attributes:
        transition: ``[H, S, A, S]``, or ``[S, A, S]`` where it is the same at every step; the last axis sums to 1.
        reward: ``[H, S, A]`` or ``[S, A]``, mean rewards.
        start: ``[S]``, the first state's distribution; None: always state 0.

    Raises:
        UserError: shapes that do not fit, probabilities that are negative or do not sum to 1, rewards not finite.
    """

    transition: Array
    reward: Array
    start: Array | None = None

    def __post_init__(self) -> None:
        store(self, transition=self.transition, reward=self.reward)
        if self.transition.ndim not in (3, 4) or self.transition.shape[:-1] != self.reward.shape:
            raise UserError(
                f"transition {list(self.transition.shape)} and reward {list(self.reward.shape)}: "
                "expected [H, S, A, S] and [H, S, A], or [S, A, S] and [S, A]"
            )
        if self.transition.shape[-1] != self.states:
            raise UserError(f"transition leads to {self.transition.shape[-1]} states, but there are {self.states}")
        check_distributions("transition", self.transition)
        if not np.isfinite(self.reward).all():
            raise UserError(f"reward: expected finite numbers, got {self.reward[~np.isfinite(self.reward)][0]}")
        store(self, start=start_distribution(self.start, self.states))

    @property
    def states(self) -> int:
        return self.reward.shape[-2]

    @property
    def actions(self) -> int:
        return self.reward.shape[-1]

    @property
    def horizon(self) -> int | None:
        """Steps an episode; None where transition and reward are the same at every step."""
        return self.reward.shape[0] if self.reward.ndim == 3 else None


@dataclass(frozen=True, eq=False)
class LinearMDP:
    """Transitions and rewards linear in known features (CoopLSVI paper, Definition 1).

    ``P_h(x' | x, a) = features[x, a] @ mu[h, :, x']`` and ``r_h(x, a) = features[x, a] @ theta[h]``.

    Attributes:
        features: ``[S, A, d]`` of norm 1 at most.
        theta: ``[H, d]`` of norm sqrt(d) at most; the rewards must lie in [0, 1].
        mu: ``[H, d, S]``, signed measures whose total masses ``mu[h].sum(-1)`` have a norm of sqrt(d) at most.
        start: ``[S]``, the first state's distribution; None: always state 0.

    Raises:
        UserError: the first of these conditions that does not hold, and where.
    """

    features: Array
    theta: Array
    mu: Array
    start: Array | None = None

    def __post_init__(self) -> None:
        store(self, features=self.features, theta=self.theta, mu=self.mu)
        check_shapes("features", self.features, 3, self.theta, self.mu)
        check_norms("features", self.features)
        check_distributions("features @ mu", self.transition)
        check_rewards("features @ theta", self.reward)
        check_sizes(self.theta, self.mu, self.dim)
        store(self, start=start_distribution(self.start, self.states))

    @classmethod
    def one_hot(cls, table: TabularMDP, horizon: int | None = None) -> LinearMDP:
        """Any table as a linear process with a feature for each (x, a), ``d = S A``, the action running fastest.

        Args:
            table: rewards in [0, 1].
            horizon: steps an episode, for a table that is the same at every step.

        Raises:
            UserError: no horizon, or another than the table has.
        """
        steps = horizon if table.horizon is None else table.horizon
        if steps is None or (horizon or steps) != steps or steps < 1:
            raise UserError(f"horizon {horizon}: expected the steps of an episode, {table.horizon or '1 or more'}")
        shape = (steps, table.states, table.actions)
        dim = table.states * table.actions
        check_fits("one-hot features and measures", dim, dim + steps * table.states)
        return cls(
            np.eye(dim).reshape(table.states, table.actions, dim),
            np.broadcast_to(table.reward, shape).reshape(steps, dim),
            np.broadcast_to(table.transition, (*shape, table.states)).reshape(steps, dim, table.states),
            table.start,
        )

    @property
    def states(self) -> int:
        return self.features.shape[0]

    @property
    def actions(self) -> int:
        return self.features.shape[1]

    @property
    def dim(self) -> int:
        return self.features.shape[2]

    @property
    def horizon(self) -> int:
        return self.theta.shape[0]

    @cached_property
    def transition(self) -> Array:
        """``[H, S, A, S]``."""
        return np.einsum("xad,hdy->hxay", self.features, self.mu)

    @cached_property
    def reward(self) -> Array:
        """``[H, S, A]``."""
        return np.einsum("xad,hd->hxa", self.features, self.theta)

    @cached_property
    def tabular(self) -> TabularMDP:
        """The same process without its features; rounding below 0 is cut and made up for."""
        return TabularMDP(rounded(self.transition), self.reward, self.start)


@dataclass(frozen=True, eq=False)
class HeterogeneousLinearMDP:
    """M processes on the same states and actions that share theta and mu but not their features.

    ``P_m,h(x' | x, a) = features[m, x, a] @ mu[h, :, x']``. The paper's Definition 2 is the case
    ``features[m, x, a] = [phi(x, a), kappa(m)]``.

    Attributes:
        features: ``[M, S, A, d]`` of norm 1 at most.
        theta: ``[H, d]``, as of ``LinearMDP``; the rewards must lie in [0, 1].
        mu: ``[H, d, S]``, as of ``LinearMDP``.
        start: ``[S]``, as of ``LinearMDP``, the same for all.

    Raises:
        UserError: as ``LinearMDP``, for the first agent whose process breaks a condition.
    """

    features: Array
    theta: Array
    mu: Array
    start: Array | None = None

    def __post_init__(self) -> None:
        store(self, features=self.features, theta=self.theta, mu=self.mu)
        check_shapes("features", self.features, 4, self.theta, self.mu)
        store(self, start=start_distribution(self.start, self.features.shape[1]))
        self.members  # noqa: B018  (checks each)

    @property
    def agents(self) -> int:
        return self.features.shape[0]

    @property
    def states(self) -> int:
        return self.features.shape[1]

    @property
    def actions(self) -> int:
        return self.features.shape[2]

    @property
    def dim(self) -> int:
        return self.features.shape[3]

    @property
    def horizon(self) -> int:
        return self.theta.shape[0]

    @cached_property
    def members(self) -> tuple[LinearMDP, ...]:
        """Each agent's own process."""
        return tuple(self._member(agent) for agent in range(self.agents))

    def _member(self, agent: int) -> LinearMDP:
        try:
            return LinearMDP(self.features[agent], self.theta, self.mu, self.start)
        except UserError as error:
            raise UserError(f"agent {agent}: {error}") from error


@dataclass(frozen=True, eq=False)
class LinearMultiagentMDP:
    """One process that M agents move together, each with a reward of its own (CoopLSVI paper, Definition 5).

    ``P_h(x' | x, a) = transition_features[x, a] @ mu[h, :, x']`` and
    ``r_m,h(x, a) = reward_features[m, x, a] @ theta[h]``, ``a`` the joint action: the agents' own actions as the digits
    of a number, the first agent's the most significant.

    Attributes:
        reward_features: ``[M, S, A, d1]``.
        transition_features: ``[S, A, d2]``; ``||Phi(x, a)|| <= 1`` (``joint_features``, spectral norm).
        theta: ``[H, d1]`` of norm sqrt(d1 + d2) at most; the rewards must lie in [0, 1].
        mu: ``[H, d2, S]`` whose total masses have a norm of sqrt(d1 + d2) at most.
        actions_each: number of actions of each agent; their product is A.
        start: ``[S]``, as of ``LinearMDP``.

    Raises:
        UserError: the first of these conditions that does not hold, and where.
    """

    reward_features: Array
    transition_features: Array
    theta: Array
    mu: Array
    actions_each: tuple[int, ...]
    start: Array | None = None

    def __post_init__(self) -> None:
        store(self, reward_features=self.reward_features, transition_features=self.transition_features)
        store(self, theta=self.theta, mu=self.mu)
        if self.reward_features.ndim != 4 or self.reward_features.shape[1:3] != self.transition_features.shape[:2]:
            raise UserError(
                f"reward_features {list(self.reward_features.shape)} and transition_features "
                f"{list(self.transition_features.shape)}: expected [M, S, A, d1] and [S, A, d2]"
            )
        check_shapes("transition_features", self.transition_features, 3, None, self.mu)
        if self.theta.shape != (self.horizon, self.reward_features.shape[3]):
            expected = [self.horizon, self.reward_features.shape[3]]
            raise UserError(f"theta {list(self.theta.shape)}: expected {expected}, [H, d1]")
        if len(self.actions_each) != self.agents or int(np.prod(self.actions_each)) != self.actions:
            raise UserError(
                f"actions_each {self.actions_each}: expected {self.agents} numbers whose product is {self.actions}"
            )
        norms = np.linalg.norm(self.joint_features, ord=2, axis=(-2, -1))
        if norms.max() > 1 + TOLERANCE:
            raise UserError(f"Phi(x, a): expected a spectral norm of 1 at most, got {norms.max():.4g}")
        check_distributions("transition_features @ mu", self.transition)
        check_rewards("reward_features @ theta", self.reward)
        check_sizes(self.theta, self.mu, self.dim)
        store(self, start=start_distribution(self.start, self.states))

    @property
    def agents(self) -> int:
        return self.reward_features.shape[0]

    @property
    def states(self) -> int:
        return self.transition_features.shape[0]

    @property
    def actions(self) -> int:
        """Joint actions."""
        return self.transition_features.shape[1]

    @property
    def dim(self) -> int:
        """``d1 + d2``."""
        return self.reward_features.shape[3] + self.transition_features.shape[2]

    @property
    def horizon(self) -> int:
        return self.mu.shape[0]

    @cached_property
    def joint_features(self) -> Array:
        """``Phi``, ``[S, A, d1 + d2, M]``: column m is agent m's reward features above the common ones."""
        rewards = np.moveaxis(self.reward_features, 0, -1)
        common = np.repeat(self.transition_features[..., None], self.agents, axis=-1)
        return np.concatenate([rewards, common], axis=2)

    @cached_property
    def transition(self) -> Array:
        """``[H, S, A, S]``."""
        return np.einsum("xad,hdy->hxay", self.transition_features, self.mu)

    @cached_property
    def reward(self) -> Array:
        """``[H, S, A, M]``."""
        return np.einsum("mxad,hd->hxam", self.reward_features, self.theta)

    def scalarised(self, weights: Array) -> TabularMDP:
        """The process of one reward ``weights @ r``; ``weights`` ``[M]``, one for each agent."""
        if np.shape(weights) != (self.agents,):
            raise UserError(f"weights {list(np.shape(weights))}: expected [{self.agents}], one for each agent")
        return TabularMDP(rounded(self.transition), self.reward @ weights, self.start)
