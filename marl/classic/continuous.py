"""A linear process whose states are numbers of [0, 1), with its optimum in closed form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from marl.classic.checks import Array
from marl.classic.locks import alternating, check_horizon, check_lock
from marl.classic.mdp import TabularMDP
from marl.classic.planning import Actions, optimal_values
from marl.types import UserError

Policy: TypeAlias = Callable[[int, Array], Actions]
"""From a step h and states ``[K]`` to actions ``[K]``."""


@dataclass(frozen=True)
class ContinuousLinearMDP:
    """A combination lock whose positions are intervals of states, with a chance to move on that depends on where.

    The states [0, 1) are cut into ``d = n + 1`` equal cells, and measure j draws uniformly from cell j. At ``u`` in
    [0, 1) of the way through cell j < n the right action has the features ``p e_(j+1) + (1 - p) e_0`` with
    ``p = 1 - 2 slip u``, every other action the same with half that p; in the last cell, the open lock, all actions
    have ``e_n``. The reward is the feature n: the probability to be in the open lock next. Episodes start in cell 0.

    What makes the optimum exact: values are linear in the features, so they need only the features' means over the
    cells, in which p has mean ``1 - slip``.

    Attributes:
        code: the right action of each of the n cells before the last.
        horizon: steps an episode.
        actions: A.
        slip: in [0, .5]; mean probability over a cell that the right action leads back.
    """

    code: tuple[int, ...]
    horizon: int
    actions: int = 2
    slip: float = 0.1

    def __post_init__(self) -> None:
        check_lock(self.code, self.actions, self.slip)
        check_horizon(len(self.code), self.horizon)
        if self.slip > 0.5:
            raise UserError(f"slip {self.slip}: expected 0.5 at most, or 1 - 2 slip u is no probability")

    @property
    def dim(self) -> int:
        return len(self.code) + 1

    @property
    def theta(self) -> Array:
        """``[d]``: the mean reward is ``features @ theta``, at every step."""
        return np.eye(self.dim)[-1]

    def features(self, x: Any) -> Array:
        """``[..., A, d]`` of states ``[...]``, points of the simplex."""
        x = np.asarray(x, np.float64)
        cell = np.minimum((x * self.dim).astype(np.int64), self.dim - 1)
        right = np.array([*self.code, 0])[cell][..., None] == np.arange(self.actions)
        onward = (1 - 2 * self.slip * (x * self.dim - cell))[..., None] * np.where(right, 1.0, 0.5)
        onward = np.where((cell == self.dim - 1)[..., None], 1.0, onward)[..., None]
        unit = np.eye(self.dim)
        return onward * unit[np.minimum(cell + 1, self.dim - 1)][..., None, :] + (1 - onward) * unit[0]

    def reset(self, rng: np.random.Generator, copies: int | None = None) -> Any:
        """A first state, or ``[copies]`` of them."""
        return rng.random(copies) / self.dim

    def step(self, rng: np.random.Generator, x: Any, action: Any) -> tuple[Any, Any]:
        """Mean rewards and next states ``[...]`` of states and actions ``[...]``, or of one each."""
        chosen = np.take_along_axis(self.features(x), np.asarray(action)[..., None, None], -2)[..., 0, :]
        cell = (rng.random(chosen.shape[:-1])[..., None] >= chosen.cumsum(-1)[..., :-1]).sum(-1)
        return chosen @ self.theta, (cell + rng.random(cell.shape)) / self.dim

    @cached_property
    def optimum(self) -> Array:
        """``[H + 1, d]``: the mean of ``V*_h`` over each cell; ``[0, 0]`` is the optimal value of an episode."""
        middles = self.features((np.arange(self.dim) + 0.5) / self.dim)  # linear in u: the mean is at u = 1/2
        return optimal_values(TabularMDP(middles, middles @ self.theta), self.horizon).v

    def optimal_q(self, h: int, x: Any) -> Array:
        """``Q*_h(x, a)``, ``[..., A]``."""
        q: Array = self.features(x) @ (self.theta + self.optimum[h + 1])
        return q

    def evaluate(self, policy: Policy, nodes: int = 256) -> Array:
        """``[H + 1, d]``: the mean of a policy's value over each cell, by the midpoint rule.

        Exact up to rounding for a policy that is constant between multiples of ``1 / (d nodes)``; otherwise wrong only
        in the intervals of that width in which the policy changes its mind.
        """
        x = (np.arange(self.dim * nodes) + 0.5) / (self.dim * nodes)
        features = self.features(x)
        values = np.zeros((self.horizon + 1, self.dim))
        for h in reversed(range(self.horizon)):
            chosen = np.take_along_axis(features, policy(h, x)[:, None, None], 1)[:, 0]
            values[h] = (chosen @ (self.theta + values[h + 1])).reshape(self.dim, nodes).mean(-1)
        return values


def make_continuous_mdp(
    n: int = 4, horizon: int = 6, actions: int = 2, slip: float = 0.1, code: Sequence[int] | None = None
) -> ContinuousLinearMDP:
    """The continuous lock of n cells and a last one, by default with the alternating code."""
    return ContinuousLinearMDP(tuple(alternating(n) if code is None else code), horizon, actions, slip)
