"""``distmt-lsvi``: episodes per agent against the number of agents, for tasks without names."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from marl.classic.distmt import DistMTLSVI, Exploration
from marl.classic.distmt_constants import PracticalConstants, TheoryConstants, learning_rounds
from marl.classic.distmt_server import Linkage, SameRound
from marl.classic.experiments.base import Array, Finding, Metric, Row, Table
from marl.classic.instances import make_lock_family
from marl.config import option
from marl.types import State, UserError

PAPER, TIGHT, STOPPED, ORACLE = "T of the paper", "T tight", "stopped once covered", "names known"
SERIES: dict[Exploration, str] = {"expph": "ExpPh", "uniform": "uniform actions"}
ASSIGNMENTS = 16
"""Done by one ``advance``: rounds times agents, or one round."""


@dataclasses.dataclass(frozen=True)
class DistMTOptions:
    """Settings of ``distmt-lsvi``; returns are in units of reward."""

    agents: tuple[int, ...] = option((1, 2, 4, 8, 16), "Numbers N of agents, each a run of its own.")
    tasks: int = option(8, "M, combination locks that share their features.")
    separation: float = option(0.36, "Between the neighbouring optimal values of the tasks; 0: all tasks look alike.")
    c_sep: float = option(
        0.34, "c_sep that the server is told; Assumption 2 holds if it is below the separation.", least=1e-9
    )
    positions: int = option(3, "Positions of each lock.")
    horizon: int = option(6, "H, steps an episode; more than the positions.")
    slip: float = option(0.04, "Probability that the right action leads back all the same.", most=0.99)
    k1: int = option(4000, "K_1, episodes that identify a task.")
    k2: int = option(2000, "K_2, episodes that learn a new task.")
    beta_explore: float = option(1.0, "Scale of the bonus in ExpPh.")
    beta_plan: float = option(0.1, "Scale of the bonus in the plan whose value is the task's fingerprint.")
    beta_deploy: float = option(0.1, "Scale of the bonus in the policy that is returned.")
    epsilon: float = option(0.1, "How far below optimal a returned policy may be.", least=1e-9)
    delta: float = option(0.1, "Probability with which T rounds may miss a task.", most=1)
    linkage: Linkage = option("complete", "A fingerprint joins a group if near to all values in it, or to their mean.")
    same_round: SameRound = option("split", "Two agents that solve a task in one round: first one's sums, or both's.")


class DistMTExperiment:
    """One run of ``DistMTLSVI`` for each N, and one with uniformly random exploration; see ``Experiment``."""

    Options: ClassVar[type] = DistMTOptions
    unit: ClassVar[str] = "assignments"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "episodes": Metric(
            "episodes per agent, not covered by Theorem 1", "episodes", "agents N", x_scale="log", y_scale="log"
        ),
        "accuracy": Metric("assignments given the label of their task", "fraction", "agents N", x_scale="log"),
        "groups": Metric("labels opened", "labels", "agents N", x_scale="log"),
        "epsilon": Metric("V* - V^pi at s_0, worst task", "return", "agents N", x_scale="log"),
        "optimal": Metric("assignments left with an epsilon-optimal policy", "fraction", "agents N", kind="none"),
        "busiest": Metric("episodes of the busiest agent", "episodes", "agents N", kind="none"),
        "covered": Metric("tasks with a label of their own", "tasks", "agents N", kind="none"),
        "merged": Metric("tasks that share a label with another", "tasks", "agents N", kind="none"),
        "ambiguous": Metric("fingerprints that several labels fitted", "fingerprints", "agents N", kind="none"),
        "spread": Metric("largest spread of a task's fingerprints over c_sep / 2", "ratio", "agents N", kind="none"),
        "task_epsilon": Metric("V* - V^pi at s_0", "return", "task", kind="none"),
        "rounds": Metric("rounds T", "rounds", "agents N", kind="none"),
        "theory": Metric("episodes that Theorem 1 asks, its factors taken as 1", "episodes", "agents N", kind="none"),
    }  # fmt: skip

    def __init__(self, options: DistMTOptions, seed: int) -> None:
        if not options.agents or len(set(options.agents)) < len(options.agents):
            raise UserError(f"agents: expected different numbers, got {','.join(map(str, options.agents)) or 'none'}")
        self.options = options
        self._tasks = make_lock_family(
            options.tasks, options.separation, options.positions, options.horizon, options.slip
        )
        self._runs: list[tuple[int, Exploration]] = [(n, how) for n in sorted(options.agents) for how in SERIES]
        self._seeds = np.random.SeedSequence(seed).spawn(len(self._runs))
        self._at = 0
        self._model = self._begin()
        self.total = sum(n * learning_rounds(options.tasks, n, options.delta) for n, _ in self._runs)
        self.done = 0

    def advance(self) -> Sequence[Row]:
        model = self._model
        rounds = min(model.total_rounds - model.rounds, math.ceil(ASSIGNMENTS / model.agents))
        model.fit(rounds)
        self.done += rounds * model.agents
        if model.rounds < model.total_rounds:
            return []
        rows = self._rows(*self._runs[self._at])
        self._at += 1
        if self._at < len(self._runs):
            self._model = self._begin()
        return rows

    def state_dict(self) -> State:
        return {"done": self.done, "at": self._at, "model": self._model.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.done, self._at = state["done"], state["at"]
        if self._at < len(self._runs):
            self._model = self._begin()
            self._model.load_state_dict(state["model"])

    @staticmethod
    def findings(table: Table, options: DistMTOptions) -> Sequence[Finding]:
        agents, episodes = table[PAPER, "episodes"]
        first, last = int(agents[0]), int(agents[-1])
        covered, stopped = table.get((STOPPED, "episodes"), (np.zeros(1), episodes))
        defined = (covered[0], covered[-1]) == (first, last)  # a run that missed a task has no such episodes

        def scaled(values: Array, i: int) -> Array:
            return values[:, i] * agents[i] / (values[:, 0] * agents[0])

        return [
            *(
                Finding(f"N x episodes per agent, N = {int(n)} over N = {first}, {PAPER}", scaled(episodes, i), "ratio")
                for i, n in enumerate(agents)
                if i
            ),
            Finding(
                f"N x T, N = {last} over N = {first}, by rounding T up", scaled(table[PAPER, "rounds"][1], -1), "ratio"
            ),
            *([Finding(f"N x episodes per agent, N = {last} over N = {first}, {STOPPED}", scaled(stopped, -1), "ratio")]
              if defined else []),
            *(
                Finding(f"assignments labelled right, {name}, worst N", table[name, "accuracy"][1].min(1), "fraction")
                for name in SERIES.values()
            ),
            *(
                Finding(f"V* - V^pi, {name}, worst task and N", table[name, "epsilon"][1].max(1), "return")
                for name in SERIES.values()
            ),
            Finding("tasks merged with another, ExpPh, worst N", table[SERIES["expph"], "merged"][1].max(1), "tasks"),
            *(
                Finding(f"{k} that Theorem 1 asks (factors 1), here {here}", table[k, "theory"][1][:, 0], "episodes")
                for k, here in (("K_1", options.k1), ("K_2", options.k2))
            ),
        ]  # fmt: skip

    def _begin(self) -> DistMTLSVI:
        agents, exploration = self._runs[self._at]
        o = self.options
        return DistMTLSVI(
            self._tasks,
            agents,
            o.c_sep,
            PracticalConstants(o.k1, o.k2, o.beta_explore, o.beta_plan, o.beta_deploy),
            epsilon=o.epsilon,
            delta=o.delta,
            linkage=o.linkage,
            same_round=o.same_round,
            exploration=exploration,
            seed=self._seeds[self._at],
        )

    def _rows(self, n: int, how: Exploration) -> list[Row]:
        """What a finished run showed. One run tells of every T: the shorter ones are its beginning."""
        model, report, name = self._model, self._model.report(), SERIES[how]
        merged = len({task for tasks in report.merges.values() for task in tasks})
        found = {
            "accuracy": report.accuracy,
            "groups": report.groups,
            "epsilon": np.nanmax(report.task_gap),
            "optimal": report.optimal,
            "merged": merged,
            "ambiguous": report.ambiguous,
            "spread": 2 * np.nanmax(report.spread) / self.options.c_sep,
        }
        rows = [Row(name, metric, n, float(value)) for metric, value in found.items()]
        rows += [
            Row(f"{name}, N = {n}", "task_epsilon", task, float(gap))
            for task, gap in enumerate(report.task_gap)
            if np.isfinite(gap)
        ]
        if how == "uniform":
            return rows
        tight = min(learning_rounds(self.options.tasks, n, self.options.delta, "tight"), model.rounds)
        counted = {PAPER: report.episodes, TIGHT: model.episodes(tight), STOPPED: report.episodes_covered}
        for series, episodes in counted.items():
            if episodes is not None:
                rows += [Row(series, "episodes", n, episodes.mean()), Row(series, "busiest", n, episodes.max())]
        rows += [Row(ORACLE, "episodes", n, report.episodes_oracle)]
        rows += [Row(PAPER, "rounds", n, model.rounds), Row(TIGHT, "rounds", n, tight)]
        asked = TheoryConstants().implied(model.problem)
        rows += [Row(k, "theory", n, phase.episodes) for k, phase in zip(("K_1", "K_2"), asked, strict=True)]
        rows += [Row(PAPER, "covered", n, report.covered), Row(TIGHT, "covered", n, model.covered(tight))]
        return rows
