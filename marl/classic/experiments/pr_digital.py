"""Figures 2 and 3 of the policy reciprocity paper: do agents that share values agree, and on what?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from marl.classic.adjacency import Adjacency
from marl.classic.digital import Digital
from marl.classic.experiments.base import Array, Finding, Metric, Row, Table
from marl.classic.networks import Kind, Network, failing_links, make_network
from marl.classic.tabular import IndependentQ, PolicyReciprocityQ, QDLearning, TabularQ
from marl.config import check_ranges, option
from marl.types import State

SAME, CONSTANT, ANNEALED, QD, ALONE = "PR, same states", "PR, constant", "PR, annealed", "QD-learning", "independent"
CHUNK = 10_000
"""Steps simulated at once; bounds memory."""


@dataclass(frozen=True)
class ProcessOptions:
    """The process, who talks to whom and how; of both experiments on Digital."""

    agents: int = option(20, "Number of agents.")
    states: int = option(20, "Number of states.")
    gamma: float = option(0.8, "Discount, below 1.", most=0.999999)
    shared_rewards: bool = option(False, "All agents have the same mean rewards, so that their mean is not flat.")
    network: Kind = option("complete", "Who talks to whom.")
    link_failure: float = option(0.0, "Probability that a link is down at a step.", most=0.999)
    adjacency: Literal["ring", "line"] = option("ring", "Which states are adjacent: one below and one above.")
    a: float = option(0.3, "Factor of the step size of the rewards.", most=1)
    b: float = option(0.3, "Factor of the step size of the pull to the others' values.", most=1)
    tau1: float = option(0.65, "Decay of the step size of the rewards.", most=1)
    tau2: float = option(0.35, "Decay of the step size of the pull.", most=1)
    kappa_same: float = option(0.5, "Weight of the same state beside the adjacent ones.", most=1)
    anneal_adjacency: float = option(0.5, "Decay of the adjacent states' weight in the annealed series.")


@dataclass(frozen=True)
class PRDigitalOptions(ProcessOptions):
    """Settings of ``pr-digital``."""

    steps: int = option(1_000_000, "Steps of the process.")
    temperature: float = option(1.0, "Of the Boltzmann policies that are compared.", least=1e-6)


class Setting(NamedTuple):
    """What ``ProcessOptions`` describe, drawn for one seed."""

    world: Digital
    network: Network
    adjacency: Adjacency


def draw(options: ProcessOptions, seed: int) -> Setting:
    """The world, and networks from generators of their own; raises ``UserError`` for what makes no sense."""
    check_ranges(options)
    links, failures = np.random.SeedSequence(seed).spawn(3)[1:]
    world = Digital(
        options.agents, options.states, gamma=options.gamma, shared_rewards=options.shared_rewards, seed=seed
    )
    network = make_network(options.network, options.agents, seed=links)
    if options.link_failure:
        network = failing_links(network, options.link_failure, seed=failures)
    adjacency = Adjacency.ring(options.states) if options.adjacency == "ring" else Adjacency.line(options.states)
    return Setting(world, network, adjacency)


def reciprocity(options: ProcessOptions, setting: Setting, kappa_same: float, constant: bool) -> PolicyReciprocityQ:
    """The learner; ``constant`` without its warning, since that is what these experiments are about."""
    world, network, adjacency = setting
    learner = PolicyReciprocityQ(
        world.agents, world.states, world.actions, options.gamma, network, adjacency,
        options.a, options.b, options.tau1, options.tau2, kappa_same, options.anneal_adjacency,
    )  # fmt: skip
    if constant:
        learner.rule = learner.rule._replace(decay=0.0)
    return learner


def measured_at(total: int, first: int = 100, per_decade: int = 16) -> list[int]:
    """Steps at which to measure, evenly spaced on a logarithmic axis, the last one ``total``."""
    count = max(round(np.log10(total / first) * per_decade), 1) if total > first else 0
    return sorted({*np.geomspace(first, total, count + 1).round().astype(int).tolist(), total} if count else {total})


LAMBDA_2 = Metric("Second smallest eigenvalue of the mean Laplacian", "eigenvalue", "step", "none")
"""Assumption 3 asks for more than 0. Of the series ``network``, once, at x = 0."""


def connection_rows(network: Network) -> list[Row]:
    """``lambda_2``; nothing for one agent, who has none."""
    return [Row("network", "lambda_2", 0.0, network.lambda_2)] if network.agents > 1 else []


def connection_findings(table: Table) -> list[Finding]:
    """``lambda_2`` of each seed's network."""
    key = ("network", "lambda_2")
    return (
        [Finding("network: lambda_2 of the mean Laplacian", last(table, *key), LAMBDA_2.unit)] if key in table else []
    )


def shared_rows(series: str, x: int, learner: TabularQ, setting: Setting) -> list[Row]:
    """What both experiments measure, on the tables and on their average."""
    world, _, adjacency = setting
    q, best = learner.average, world.optimum
    values = {
        "error": np.abs(q - best).max(),
        "gap": np.abs(learner.q - q).max(),
        "bellman": world.bellman_residual(q),
        "bias": np.abs(adjacency.average(q) - q).max(),
        "spread_ratio": q.std(0).mean() / best.std(0).mean() if world.states > 1 else 1.0,
        "wrong": (q.argmax(-1) != best.argmax(-1)).mean(),
    }
    return [Row(series, name, float(x), float(value)) for name, value in values.items()]


def shared_metrics(x: str) -> dict[str, Metric]:
    """The metrics of ``shared_rows``; ``x`` is what the axis counts."""
    return {
        "error": Metric("Error of the average table, max |mean Q - Q*|", "value", x, "line", "log", "log"),
        "gap": Metric("Consensus gap, max |Q_i - mean Q|", "value", x, "line", "log", "log"),
        "bellman": Metric("Bellman residual on the mean reward", "value", x, "line", "log", "log"),
        "bias": Metric("Adjacency bias, max |Q# - Q| of the average table", "value", x, "line", "log", "log"),
        "spread_ratio": Metric("Spread over states, of mean Q / of Q* (0: collapsed)", "ratio", x, "line", "log"),
        "wrong": Metric("States whose greedy action is not optimal", "fraction", x, "line", "log"),
        "lambda_2": LAMBDA_2,
    }


def last(table: Table, series: str, metric: str) -> Array:
    """``[n]``: the final value of each seed."""
    return table[series, metric][1][:, -1]


class PRDigital:
    """Policy reciprocity (three ways), QD-learning and independent learners on one and the same random walk."""

    Options = PRDigitalOptions
    metrics: ClassVar[Mapping[str, Metric]] = {
        "policy_mse": Metric(
            "Policies against their average (Figure 2)",
            "probability squared", "steps", "line", "log", "log",
        ),
        **shared_metrics("steps"),
        "policy": Metric("Figure 2: PR, constant", "probability of action 0", "the average policy's", "points"),
        "policy_annealed": Metric("PR, annealed", "probability of action 0", "the average policy's", "points"),
        "policy_same": Metric(
            "Figure 3: PR, same states", "probability of action 0", "the average policy's", "points"
        ),
    }  # fmt: skip
    unit = "steps"

    def __init__(self, options: PRDigitalOptions, seed: int) -> None:
        self.options = options
        self.total = options.steps
        self.done = 0
        self._setting = draw(options, seed)
        self._rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(3)[0])
        self._state = 0
        self._measure = measured_at(options.steps)
        world, network, _ = self._setting
        sizes = (world.agents, world.states, world.actions)
        self._learners: dict[str, TabularQ] = {
            SAME: reciprocity(options, self._setting, 1.0, constant=True),
            CONSTANT: reciprocity(options, self._setting, options.kappa_same, constant=True),
            ANNEALED: reciprocity(options, self._setting, options.kappa_same, constant=False),
            QD: QDLearning(
                *sizes, options.gamma, network, options.a, options.b / (network.most_neighbours + 1),
                options.tau1, options.tau2,
            ),
            ALONE: IndependentQ(*sizes, options.gamma, tau1=options.tau1),
        }  # fmt: skip

    def advance(self) -> Sequence[Row]:
        """On to the next measurement."""
        until = next(x for x in self._measure if x > self.done)
        first = connection_rows(self._setting.network) if self.done == 0 else []
        while self.done < until:
            walk = self._setting.world.walk(self._rng, self._state, min(CHUNK, until - self.done))
            for learner in self._learners.values():
                learner.update_many(*walk)
            self._state = int(walk.next_state[-1, 0])
            self.done += len(walk.state)
        rows = first + [row for series, learner in self._learners.items() for row in self._rows(series, learner)]
        if self.done == self.total:
            rows += self._policies(CONSTANT, "policy", (6, 9, 12))
            rows += self._policies(ANNEALED, "policy_annealed", (6, 9, 12))
            rows += self._policies(SAME, "policy_same", (3, 6, 9, 12, 15, 18))
        return rows

    def _rows(self, series: str, learner: TabularQ) -> list[Row]:
        policies = self._boltzmann(learner)
        error = ((policies - policies.mean(0)) ** 2).mean()
        rows = shared_rows(series, self.done, learner, self._setting)
        return [Row(series, "policy_mse", float(self.done), float(error)), *rows]

    def _policies(self, series: str, metric: str, agents: Sequence[int]) -> list[Row]:
        """One dot for each state and agent (numbered from 1 as in the paper); all on the diagonal: consensus."""
        policies = self._boltzmann(self._learners[series])[..., 0]
        return [
            Row(f"agent {agent}", metric, float(average), float(own))
            for agent in agents
            if agent <= len(policies)
            for average, own in zip(policies.mean(0), policies[agent - 1], strict=True)
        ]

    def _boltzmann(self, learner: TabularQ) -> Array:
        """``[N, S, A]`` probabilities."""
        weights = np.exp((learner.q - learner.q.max(-1, keepdims=True)) / self.options.temperature)
        return weights / weights.sum(-1, keepdims=True)

    def state_dict(self) -> State:
        learners = {series: learner.state_dict() for series, learner in self._learners.items()}
        return {"done": self.done, "state": self._state, "rng": self._rng.bit_generator.state, "learners": learners}

    def load_state_dict(self, state: State) -> None:
        self.done, self._state = int(state["done"]), int(state["state"])
        self._rng.bit_generator.state = state["rng"]
        for series, learner in self._learners.items():
            learner.load_state_dict(state["learners"][series])

    @staticmethod
    def findings(table: Table, options: PRDigitalOptions) -> Sequence[Finding]:
        every = (SAME, CONSTANT, ANNEALED, QD, ALONE)
        final = [
            Finding(f"{series}: {what} at the end", last(table, series, metric), unit)
            for metric, what, unit in (
                ("error", "max |mean Q - Q*|", "value"),
                ("gap", "max |Q_i - mean Q|", "value"),
                ("policy_mse", "policies against their average", "probability squared"),
                ("wrong", "states with a wrong greedy action", "fraction"),
            )
            for series in every
        ] + connection_findings(table)
        x, gaps = table[SAME, "gap"]
        late = x >= x[-1] / 10
        if late.sum() < 2:
            return final
        slopes = np.array([np.polyfit(np.log(x[late]), np.log(gap[late] + 1e-300), 1)[0] for gap in gaps])
        return [*final, Finding(f"{SAME}: exponent of the gap over the last decade of steps", slopes, "exponent")]
