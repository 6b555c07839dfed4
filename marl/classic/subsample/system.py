"""The process of SUB-SAMPLE-Q's section 2: a global agent that acts, and local agents that follow its state.

``G`` global states, ``A`` actions of the global agent, ``L`` states of a local agent, ``n`` local agents. The global
agent moves by ``P_g(s_g' | s_g, a_g)``, each local agent by ``P_l(s_l' | s_l, s_g)`` independently of the others, and
``r(s, a_g) = r_g(s_g, a_g) + 1/n sum_i r_l(s_i, s_g)`` (equations 1 to 3).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from marl.classic.mdp import Array, check_distributions
from marl.types import UserError


@dataclass(frozen=True, eq=False)
class LocalGlobalSystem:
    """One such process; n is not a part of it.

    Attributes:
        global_transition: ``[G, A, G]``, ``P_g(s_g' | s_g, a_g)``.
        local_transition: ``[G, L, L]``, ``P_l(s_l' | s_l, s_g)``, or ``[G, A, L, L]`` where it depends on the action.
        global_reward: ``[G, A]``, ``r_g``.
        local_reward: ``[G, L]``, ``r_l(s_l, s_g)``.
        gamma: the discount, in [0, 1).
        name: for messages.

    Raises:
        UserError: shapes that do not fit, rows that are not probabilities, rewards not finite, gamma outside [0, 1).
    """

    global_transition: Array
    local_transition: Array
    global_reward: Array
    local_reward: Array
    gamma: float
    name: str = field(default="the system", kw_only=True)

    def __post_init__(self) -> None:
        for name in ("global_transition", "local_transition", "global_reward", "local_reward"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        if self.global_reward.ndim != 2 or self.local_reward.ndim != 2:
            shapes = f"{list(self.global_reward.shape)} and {list(self.local_reward.shape)}"
            raise UserError(f"global_reward and local_reward: expected [G, A] and [G, L], got {shapes}")
        g, a, s = self.global_states, self.actions, self.local_states
        self._expect("local_reward", self.local_reward, (g, s))
        self._expect("global_transition", self.global_transition, (g, a, g))
        self._expect("local_transition", self.local_transition, (g, s, s), (g, a, s, s))
        check_distributions("global_transition", self.global_transition)
        check_distributions("local_transition", self.local_transition)
        for name in ("global_reward", "local_reward"):
            if not np.isfinite(getattr(self, name)).all():
                raise UserError(f"{name}: expected finite numbers")
        if not 0 <= self.gamma < 1:
            raise UserError(f"gamma: expected a number from 0 to less than 1, got {self.gamma}")

    @property
    def global_states(self) -> int:
        return self.global_reward.shape[0]

    @property
    def actions(self) -> int:
        return self.global_reward.shape[1]

    @property
    def local_states(self) -> int:
        return self.local_reward.shape[1]

    @property
    def follows_action(self) -> bool:
        """Whether ``P_l`` depends on the action too."""
        return self.local_transition.ndim == 4

    @property
    def reward_bound(self) -> float:
        """``r~ = max |r_g| + max |r_l|`` (Assumption 2.2)."""
        return float(np.abs(self.global_reward).max() + np.abs(self.local_reward).max())

    def kernels(self, global_state: int) -> Array:
        """``[A, L, L]``, or ``[1, L, L]`` where all actions share ``P_l``."""
        kernels = self.local_transition[global_state]
        return kernels if self.follows_action else kernels[None]

    def successors(self, global_state: int, kernel: int) -> list[int]:
        """The global states that may follow under an action that uses that kernel, ascending."""
        rows = self.global_transition[global_state]
        rows = rows[kernel : kernel + 1] if self.follows_action else rows
        return [int(s) for s in np.flatnonzero(rows.max(0))]

    def _expect(self, name: str, values: Array, *shapes: tuple[int, ...]) -> None:
        if values.shape not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise UserError(f"{name}: expected {wanted}, got {list(values.shape)}")


def check_sizes(k: int, n: int) -> None:
    """Raises ``UserError`` unless 1 <= k <= n."""
    if not 1 <= k <= n:
        raise UserError(f"k = {k} of n = {n} local agents: expected 1 <= k <= n; the nearest is {min(max(k, 1), n)}")


def lump(system: LocalGlobalSystem, groups: NDArray[np.int64], groups_count: int) -> LocalGlobalSystem:
    """The system whose local agents show no more than their group: rows and rewards are means over a group's states.

    An approximation unless all states of a group move alike; the states of a group count equally.

    Args:
        groups: ``[L]`` integers, the group of each local state.
        groups_count: their number; every group must have a state.
    """
    groups = np.asarray(groups)
    share = np.eye(groups_count)[groups]
    if groups.shape != (system.local_states,) or (share.sum(0) == 0).any():
        raise UserError(f"groups: expected {system.local_states} numbers that use each of 0 .. {groups_count - 1}")
    mean = (share / share.sum(0)).T
    return LocalGlobalSystem(
        system.global_transition,
        mean @ system.local_transition @ share,
        system.global_reward,
        system.local_reward @ mean.T,
        system.gamma,
        name=f"{system.name}, lumped",
    )
