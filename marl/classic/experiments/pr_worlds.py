"""Figure 4 of the policy reciprocity paper: returns in Blocker, Landmarks and Navigation as agents learn."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from marl.classic.experiments.base import Finding, Metric, Row, Table
from marl.classic.experiments.pr_digital import LAMBDA_2, connection_findings, connection_rows
from marl.classic.networks import Kind, make_network
from marl.classic.tabular import IndependentQ, PolicyReciprocityQ, QDLearning, TabularQ
from marl.classic.worlds import blocker, landmarks
from marl.classic.worlds.blocker import make_blocker
from marl.classic.worlds.landmarks import make_landmarks
from marl.classic.worlds.navigation import make_navigation
from marl.classic.worlds.simulate import greedy_returns, play
from marl.classic.worlds.world import Array, TabularWorld
from marl.config import check_ranges, option
from marl.types import State, UserError

ANNEALED, CONSTANT, QD, ALONE = "PR, annealed", "PR, constant", "QD-learning", "independent"
SAME_STEP = "independent, a of PR"
OPTIMUM = "optimum"
METHODS = (ANNEALED, CONSTANT, QD, ALONE, SAME_STEP)
"""In the order in which a seed goes through them, so that it holds one set of tables at a time."""

LARGEST = 20_000_000
"""Entries of all agents' tables together; 16 bytes each."""


@dataclass(frozen=True)
class WorldOptions:
    """What the three experiments have in common."""

    episodes: int = option(20_000, "Episodes of each method.")
    points: int = option(50, "Points on each curve, at most.")
    horizon: int = option(40, "Steps after which an episode is cut off.")
    epsilon: float = option(0.1, "Probability of a random action while learning.", most=1)
    hidden: str = option("row", "The coordinate whose values the adjacent states run through.")
    network: Kind = option("complete", "Who talks to whom.")
    gamma: float = option(0.99, "Discount, below 1.", most=0.999999)
    a: float = option(0.3, "Factor of the step size of the rewards, of PR and QD-learning.", most=1)
    a_independent: float = option(0.5, "The same of independent learners.", most=1)
    b: float = option(0.4, "Factor of the step size of the pull to the others' values.", most=1)
    kappa_same: float = option(0.5, "Weight of the same state beside the adjacent ones.", most=1)
    anneal_adjacency: float = option(0.5, "Decay of the adjacent states' weight in the annealed series.")


@dataclass(frozen=True)
class BlockerOptions(WorldOptions):
    """Settings of ``pr-blocker``."""

    episodes: int = option(200_000, "Episodes of each method.")
    hidden: str = option("gap", "The coordinate whose values the adjacent states run through.")
    blockers: int = option(2, "Number of blockers k; there are k + 1 agents and 3k + 1 columns.")


@dataclass(frozen=True)
class LandmarksOptions(WorldOptions):
    """Settings of ``pr-landmarks``."""

    agents: int = option(2, "Number of agents, 25 at most; the paper shows 2 and 10.")


@dataclass(frozen=True)
class NavigationOptions(WorldOptions):
    """Settings of ``pr-navigation``."""

    b: float = option(0.3, "Factor of the step size of the pull to the others' values.", most=1)
    agents: int = option(3, "Number of agents.")


class WorldExperiment(ABC):
    """A world learnt by five methods one after the other; each begins with the same generator."""

    metrics: ClassVar[dict[str, Metric]] = {
        "return": Metric("Mean return of the agents while they learn (Figure 4)", "reward an episode", "episodes"),
        "greedy": Metric("Mean return of the greedy agents, exact", "reward an episode", "episodes"),
        "lambda_2": LAMBDA_2,
    }
    unit = "episodes"

    @staticmethod
    @abstractmethod
    def world(options: Any) -> TabularWorld:
        """The world that the options describe; raises ``UserError``."""

    @staticmethod
    @abstractmethod
    def best(world: TabularWorld) -> Array:
        """``[K]``: the largest return from each of ``world.starts``."""

    def __init__(self, options: Any, seed: int) -> None:
        check_ranges(options)
        self._options = options
        self._play_seed, links = np.random.SeedSequence(seed).spawn(2)
        self._world = self.world(options)
        entries = self._world.agents * self._world.states * self._world.actions
        if entries > LARGEST:
            raise UserError(
                f"{self._world.name} with {self._world.agents} agents needs tables of {entries} entries, more than "
                f"{LARGEST}; take fewer agents"
            )
        self._network = make_network(options.network, self._world.agents, seed=links)
        self._adjacency = self._world.adjacency(options.hidden)
        self.total = options.episodes * len(METHODS)
        self.done = 0
        self._begin()

    def advance(self) -> Sequence[Row]:
        """One method's next point."""
        options = self._options
        rows = [*connection_rows(self._network), *self._optimum()] if self.done == 0 else []
        method, episode = divmod(self.done, options.episodes)
        count = min(math.ceil(options.episodes / options.points), options.episodes - episode)
        returns = play(self._world, self._learner, self._rng, count, options.epsilon)
        x = float(episode + count)
        rows.append(Row(METHODS[method], "return", x, float(returns.mean())))
        rows.append(Row(METHODS[method], "greedy", x, float(greedy_returns(self._world, self._learner).mean())))
        self.done += count
        if self.done % options.episodes == 0 and self.done < self.total:
            self._begin()
        return rows

    def state_dict(self) -> State:
        return {
            "done": self.done,
            "rng": self._rng.bit_generator.state,
            "learner": self._learner.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        self.done = int(state["done"])
        if self.done < self.total:
            self._begin()
            self._rng.bit_generator.state = state["rng"]
            self._learner.load_state_dict(state["learner"])

    @staticmethod
    def findings(table: Table, options: Any) -> Sequence[Finding]:
        """Final and mean returns of each method, and what PR gains over independent learners of either step size."""
        found = []
        unit = "reward an episode"
        for metric, what in (
            ("greedy", "final greedy return"),
            ("return", "return while learning, mean of all points"),
        ):
            values = {
                series: table[series, metric][1][:, -1] if metric == "greedy" else table[series, metric][1].mean(1)
                for series in METHODS
            }
            found += [Finding(f"{series}: {what}", each, unit) for series, each in values.items()]
            found += [
                Finding(f"{ANNEALED} minus {other}: {what}", values[ANNEALED] - values[other], unit)
                for other in (QD, ALONE, SAME_STEP)
            ]
        if (OPTIMUM, "greedy") in table:
            found.append(Finding(f"{OPTIMUM}: greedy return", table[OPTIMUM, "greedy"][1][:, -1], unit))
        return [*found, *connection_findings(table)]

    def _begin(self) -> None:
        """New tables and generator for the method that comes next."""
        self._rng = np.random.default_rng(self._play_seed)
        self._learner = self._make(METHODS[self.done // self._options.episodes])

    def _make(self, method: str) -> TabularQ:
        options, world, network = self._options, self._world, self._network
        shape = (world.agents, world.states, world.actions)
        if method in (ALONE, SAME_STEP):
            return IndependentQ(*shape, options.gamma, a=options.a if method == SAME_STEP else options.a_independent)
        if method == QD:
            return QDLearning(*shape, options.gamma, network, a=options.a, b=options.b / (network.most_neighbours + 1))
        learner = PolicyReciprocityQ(
            *shape, options.gamma, network, self._adjacency, a=options.a, b=options.b,
            kappa_same=options.kappa_same, anneal_adjacency=options.anneal_adjacency,
        )  # fmt: skip
        if method == CONSTANT:  # what the figure is about, so without the warning
            learner.rule = learner.rule._replace(decay=0.0)
        return learner

    def _optimum(self) -> list[Row]:
        best = float(self.best(self._world).mean())
        return [Row(OPTIMUM, "greedy", float(x), best) for x in (0, self._options.episodes)]


class PRBlocker(WorldExperiment):
    """Blocker; the optimum is that of a planner who moves all agents together."""

    Options = BlockerOptions

    @staticmethod
    def world(options: BlockerOptions) -> TabularWorld:
        return make_blocker(options.blockers, options.horizon)

    @staticmethod
    def best(world: TabularWorld) -> Array:
        return blocker.best_returns(world)


class PRLandmarks(WorldExperiment):
    """Landmarks, each agent its own."""

    Options = LandmarksOptions

    @staticmethod
    def world(options: LandmarksOptions) -> TabularWorld:
        return make_landmarks(options.agents, options.horizon)

    @staticmethod
    def best(world: TabularWorld) -> Array:
        return landmarks.best_returns(world)


class PRNavigation(WorldExperiment):
    """Navigation, one landmark for all."""

    Options = NavigationOptions

    @staticmethod
    def world(options: NavigationOptions) -> TabularWorld:
        return make_navigation(options.agents, options.horizon)

    @staticmethod
    def best(world: TabularWorld) -> Array:
        return landmarks.best_returns(world)
