"""What Theorem 3 of the policy reciprocity paper claims, checked without noise.

Every state and action is updated once a sweep, with expectations in place of samples. A constant ``kappa_same`` below 1
ends at ``adjacency_limit`` and not at Q*; annealed, it ends at Q*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from marl.classic.experiments.base import Array, Finding, Metric, Row, Table
from marl.classic.experiments.pr_digital import (
    ProcessOptions,
    Setting,
    connection_findings,
    connection_rows,
    draw,
    last,
    measured_at,
    reciprocity,
    shared_metrics,
    shared_rows,
)
from marl.classic.tabular import PolicyReciprocityQ, adjacency_limit
from marl.config import option
from marl.types import State, UserError

SECONDS_WORTH = 2_000
"""Sweeps of one series between two returns of ``advance`` at most."""


@dataclass(frozen=True)
class PRTheorem3Options(ProcessOptions):
    """Settings of ``pr-theorem3``; ``kappa_same`` is that of the annealed series."""

    sweeps: int = option(8_000, "Expected updates of every state and action.")
    kappas: tuple[float, ...] = option((1.0, 0.9, 0.5, 0.0), "The constant kappa_same of the series.", most=1)


class PRTheorem3:
    """Expected updates with several constant ``kappa_same``, and one that is annealed."""

    Options = PRTheorem3Options
    metrics: ClassVar[Mapping[str, Metric]] = {
        **shared_metrics("updates of each entry"),
        "limit_distance": Metric(
            "From the predicted limit, max |mean Q - c|", "value", "updates of each entry", "line", "log", "log"
        ),
    }
    unit = "sweeps"

    def __init__(self, options: PRTheorem3Options, seed: int) -> None:
        if not options.kappas:
            raise UserError("kappas: expected one number from 0 to 1 or more, got none")
        if len({constant(kappa) for kappa in options.kappas}) < len(options.kappas):
            got = ",".join(map(str, options.kappas))
            raise UserError(f"kappas: expected numbers that differ in their first six digits, got {got}")
        self.total = options.sweeps
        self.done = 0
        self._setting = draw(options, seed)
        self._measure = sorted({*measured_at(options.sweeps), *range(SECONDS_WORTH, options.sweeps, SECONDS_WORTH)})
        self._learners: dict[str, PolicyReciprocityQ] = {
            constant(kappa): reciprocity(options, self._setting, kappa, constant=True) for kappa in options.kappas
        }
        self._learners[annealed(options)] = reciprocity(options, self._setting, options.kappa_same, constant=False)
        self._limit = common_limit(self._setting)

    def advance(self) -> Sequence[Row]:
        """On to the next measurement."""
        world = self._setting.world
        until = next(x for x in self._measure if x > self.done)
        rows = connection_rows(self._setting.network) if self.done == 0 else []
        for series, learner in self._learners.items():
            for _ in range(until - self.done):
                learner.expected_sweep(world.transition, world.reward)
            rows += shared_rows(series, until, learner, self._setting)
            if self._limit is not None and learner.rule.spread > 0 and learner.rule.decay == 0:
                distance = np.abs(learner.average - self._limit).max()
                rows.append(Row(series, "limit_distance", float(until), float(distance)))
        self.done = until
        return rows

    def state_dict(self) -> State:
        return {"done": self.done, "learners": {name: each.state_dict() for name, each in self._learners.items()}}

    def load_state_dict(self, state: State) -> None:
        self.done = int(state["done"])
        for name, learner in self._learners.items():
            learner.load_state_dict(state["learners"][name])

    @staticmethod
    def findings(table: Table, options: PRTheorem3Options) -> Sequence[Finding]:
        series = [*(constant(kappa) for kappa in options.kappas), annealed(options)]
        errors = [
            Finding(f"{name}: max |mean Q - Q*| at the end", last(table, name, "error"), "value") for name in series
        ]
        distances = [
            Finding(f"{name}: max |mean Q - c| at the end", last(table, name, "limit_distance"), "value")
            for name in series
            if (name, "limit_distance") in table
        ]
        return [*errors, *distances, *connection_findings(table)]


def common_limit(setting: Setting) -> Array | None:
    """c, ``[S, A]``, which all agents' tables tend to; None where some agents never hear of each other."""
    world, network, adjacency = setting
    if len(network.components) > 1:
        return None
    return adjacency_limit(world.transition, agreed_reward(setting), world.gamma, adjacency)


def agreed_reward(setting: Setting) -> Array:
    """``[S, A]``: the agents' mean rewards, each agent weighing as much as it is heard.

    Its weight is its share of the stationary law of the walk that steps from an agent to one that it hears: on a fixed
    graph 1 + its number of neighbours over the sum of these.
    """
    world, network, _ = setting
    heard = network.graphs | np.eye(network.agents, dtype=bool)
    sizes = heard.sum(-1)
    if (sizes == sizes[0, 0]).all():
        return world.mean.reward
    walk = np.einsum("tij,ti->ij", heard, 1 / sizes) / network.period
    balance = np.vstack([walk.T - np.eye(network.agents), np.ones(network.agents)])
    weights = np.linalg.lstsq(balance, np.eye(network.agents + 1)[-1], rcond=None)[0]
    reward: Array = np.einsum("n,nsa->sa", weights, world.reward)
    return reward


def constant(kappa: float) -> str:
    """The name of a series."""
    return f"kappa_same {kappa:g}"


def annealed(options: PRTheorem3Options) -> str:
    """The name of the annealed series."""
    return f"annealed from {options.kappa_same:g}"
