"""What ``classic.py`` compares with: rlberry-scool's LSVI-UCB, and SUB-SAMPLE-Q's sweep over plain dictionaries."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.pair import Work

# Only what a rival's own virtual environment holds may be imported here; the process comes as plain numbers.


def rlberry_lsvi(
    transition: list[Any], reward: list[Any], horizon: int, episodes: int, beta: float, regulariser: float
) -> Work:
    """Fits of LSVI-UCB from the start, with one-hot features; a unit is an episode."""
    import gymnasium
    from rlberry.envs import Model
    from rlberry_scool.agents.features import FeatureMap
    from rlberry_scool.agents.linear import LSVIUCBAgent

    chances, pay = np.array(transition), np.array(reward)
    states, actions = pay.shape

    class Process(Model):
        """The tabular process, from state 0."""

        def __init__(self) -> None:
            Model.__init__(self)
            self.observation_space: Any = gymnasium.spaces.Discrete(states)
            self.action_space: Any = gymnasium.spaces.Discrete(actions)
            self.reward_range = (0.0, 1.0)
            self.state = 0

        def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
            self.state = 0
            return 0, {}

        def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
            earned = float(pay[self.state, action])
            self.state = int(self.rng.choice(states, p=chances[self.state, action]))
            return self.state, earned, False, False, {}

    class OneHot(FeatureMap):
        def __init__(self) -> None:
            FeatureMap.__init__(self)
            self.shape = (states * actions,)

        def map(self, observation: int, action: int) -> np.ndarray[Any, Any]:
            feature = np.zeros(states * actions)
            feature[observation * actions + action] = 1.0
            return feature

    def work() -> float:
        agent = LSVIUCBAgent(
            Process(),
            horizon,
            lambda env: OneHot(),
            gamma=1.0,
            bonus_scale_factor=beta,
            reg_factor=regulariser,
        )
        agent.fit(episodes)
        return episodes

    return work


def dictionary_sweeps(k: int) -> Work:
    """Sweeps of the same exact backup, cells in a dictionary by (s_g, sorted tuple); a unit is a sweep.

    Written as one would from the paper: a loop over the cells, and in it a loop over what the k agents may become.
    """
    from marl.classic.subsample.demand import demand_response

    system = demand_response()
    value = {
        (s, cell): 0.0
        for s in range(system.global_states)
        for cell in itertools.combinations_with_replacement(range(system.local_states), k)
    }
    rows = [
        [[(int(y), float(row[y])) for y in np.flatnonzero(row)] for row in system.kernels(s)[0]]
        for s in range(system.global_states)
    ]
    moves = [
        [[(int(y), float(row[y])) for y in np.flatnonzero(row)] for row in system.global_transition[s]]
        for s in range(system.global_states)
    ]

    def outcomes(s: int, cell: tuple[int, ...]) -> dict[tuple[int, ...], float]:
        """Next multiset -> its probability."""
        chances: dict[tuple[int, ...], float] = defaultdict(float)
        for together in itertools.product(*(rows[s][x] for x in cell)):
            probability = 1.0
            for _, each in together:
                probability *= each
            chances[tuple(sorted(y for y, _ in together))] += probability
        return chances

    def cells() -> Iterator[tuple[tuple[int, tuple[int, ...]], float]]:
        for s, cell in value:
            after = outcomes(s, cell)
            mean = sum(system.local_reward[s, x] for x in cell) / k
            yield (
                (s, cell),
                max(
                    system.global_reward[s, a]
                    + mean
                    + system.gamma
                    * sum(chance * sum(p * value[t, y] for y, p in after.items()) for t, chance in moves[s][a])
                    for a in range(system.actions)
                ),
            )

    def work() -> float:
        nonlocal value
        value = dict(cells())
        return 1.0

    return work
