"""SUB-SAMPLE-Q, execution (Algorithm 2): n agents move, k of them, drawn afresh at each step, are looked at."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from marl.classic.mdp import Array
from marl.classic.subsample.draws import alias_rows, draw_each, move_all, shuffle_first
from marl.classic.subsample.multisets import Integers
from marl.classic.subsample.system import LocalGlobalSystem, check_sizes
from marl.types import State, UserError


class Policy(Protocol):
    """What decides: a table (``SubsampleQ``), a network.

    Attributes:
        k: how many local agents it looks at.
    """

    k: int

    def act(self, global_state: Integers, local_states: Integers) -> Integers:
        """Actions ``[R]`` for global states ``[R]`` and the states of k agents ``[R, k]``."""


class Crowd:
    """R independent copies of a system with n local agents each.

    Args:
        system: the process.
        n: local agents of each copy.
        runs: R.
        seed: of all that is random; initial states are uniform.

    Attributes:
        global_state: ``[R]``.
        local_state: ``[R, n]``, uint16.
    """

    def __init__(
        self, system: LocalGlobalSystem, n: int, runs: int = 1, seed: int | np.random.SeedSequence = 0
    ) -> None:
        if n < 1 or runs < 1:
            raise UserError(f"n = {n} agents, {runs} runs: expected 1 or more of both")
        if system.local_states > 2**16:
            raise UserError(f"{system.local_states} local states: expected {2**16} at most")
        sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        start, moves, subsets = (np.random.default_rng(child) for child in sequence.spawn(3))
        self.system, self.n, self.runs = system, n, runs
        self.global_state: Integers = start.integers(system.global_states, size=runs)
        self.local_state = start.integers(system.local_states, size=(runs, n), dtype=np.uint16)
        self._moves, self._subsets = moves, subsets
        self._order = np.tile(np.arange(n, dtype=np.int32), (runs, 1))
        self._local_rows = alias_rows(system.local_transition.reshape(-1, system.local_states))
        self._global_rows = alias_rows(system.global_transition.reshape(-1, system.global_states))

    def sample(self, k: int) -> Integers:
        """The states of a fresh uniform subset of k agents in each copy, ``[R, k]``; k <= n."""
        check_sizes(k, self.n)
        shuffle_first(self._order, k, self._subsets.integers(2**64, size=self.runs, dtype=np.uint64))
        return np.take_along_axis(self.local_state, self._order[:, :k].astype(np.int64), axis=1).astype(np.int64)

    def step(self, action: Integers) -> Array:
        """Take actions ``[R]``: the reward of all n agents at the states left, ``[R]``, and on to the next states."""
        system = self.system
        local, own = self._moves.integers(2**64, size=(2, self.runs), dtype=np.uint64)
        row = self.global_state * system.actions + action
        kernel = row if system.follows_action else self.global_state
        rewards = system.local_reward[self.global_state]
        local_sum = move_all(self.local_state, kernel * system.local_states, rewards, self._local_rows, local)
        reward = system.global_reward[self.global_state, action] + local_sum / self.n
        self.global_state = draw_each(self._global_rows, row, own)
        return reward

    def state_dict(self) -> State:
        return {
            "global_state": self.global_state.copy(),
            "local_state": self.local_state.copy(),
            "order": self._order.copy(),
            "moves": self._moves.bit_generator.state,
            "subsets": self._subsets.bit_generator.state,
        }

    def load_state_dict(self, state: State) -> None:
        self.global_state = np.array(state["global_state"], np.int64)
        self.local_state = np.array(state["local_state"], np.uint16)
        self._order = np.array(state["order"], np.int32)
        self._moves.bit_generator.state = state["moves"]
        self._subsets.bit_generator.state = state["subsets"]


class Played(NamedTuple):
    """What ``execute`` saw.

    Attributes:
        discounted: ``[R]``, ``sum_t gamma^t r(s(t), a(t))``, t = 0 .. steps.
        reward: ``[steps + 1]``, the mean reward of each step.
    """

    discounted: Array
    reward: Array


def execute(crowd: Crowd, policy: Policy, steps: int, view: Integers | None = None) -> Played:
    """Algorithm 2 from the crowd's present states, t = 0 .. ``steps`` (T' of the paper).

    Args:
        view: ``[L]``, the local state that the policy is shown instead of each; None: the true ones.
    """
    check_sizes(policy.k, crowd.n)
    if steps < 0:
        raise UserError(f"steps = {steps}: expected 0 or more")
    discounted, rewards = np.zeros(crowd.runs), np.empty(steps + 1)
    for t in range(steps + 1):
        seen = crowd.sample(policy.k)
        reward = crowd.step(policy.act(crowd.global_state, seen if view is None else view[seen]))
        discounted += crowd.system.gamma**t * reward
        rewards[t] = reward.mean()
    return Played(discounted, rewards)
