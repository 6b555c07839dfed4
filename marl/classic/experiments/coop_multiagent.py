"""Algorithm 2 between its baselines: scalarised regret, the front that is recovered, rounds, floats and bytes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from marl.classic.experiments.base import Finding, Metric, Row, Table
from marl.classic.experiments.cooperation import communication_findings, grid, last, regret_findings
from marl.classic.fronts import bayes_regret, domination, hypervolume, maximum_utility_loss
from marl.classic.instances import make_linear_multiagent
from marl.classic.lsvi import LINEAR_FROM, Bonus
from marl.classic.multiagent_lsvi import MultiagentCoopLSVI, flat_threshold
from marl.classic.planning import convex_coverage_set
from marl.config import check_ranges, option
from marl.types import State, UserError

SERIES = ("cooperating", "isolated", "centralised")

SHORTER = (8, 4, 2)
"""Runs of T / 8, T / 4 and T / 2 episodes, each with the threshold of its own T, show how the rounds depend on T."""

PIECE = 4000
"""Episodes in one ``advance`` at most."""


@dataclass(frozen=True)
class MultiagentOptions:
    """Options of ``coop-lsvi-multiagent``."""

    episodes: int = option(20_000, "Episodes, T.", least=16)
    instance: int = option(0, "Seed of the process, the same for all seeds of the learners.", least=0)
    beta: float | None = option(2.0, "Width of the confidence intervals; none: by theory, times scale.")
    scale: float = option(1.0, "Factor of theory's beta, where beta is none.")
    regulariser: float = option(0.1, "lambda of the ridge regressions.", least=1e-3)
    width: Literal["spectral", "weighted"] = option(
        "spectral", "What beta multiplies: (Phi' L^-1 Phi)^1/2 or that of v."
    )
    threshold: float | None = option(None, "S of the trigger; none: (1 + M T / d)^(1 / budget).")
    budget: float = option(8.0, "C: at most (d C + 1) H rounds if lambda is 1, where threshold is none.", least=0.1)
    weights: int = option(201, "Scalarisations on the simplex for which a policy is recovered.", least=2)
    reference: float = option(0.0, "Reference point of the hypervolume, in each objective; below the exact front.")


class MultiagentExperiment:
    """One random process of two agents; the same weights and the same draws of the world for every series.

    The front that is ``recovered``: for each weight of a grid the policy that is greedy without a bonus, its values
    exact. The Bayes regret is that of the policies played so far (equation (12)), the mean over the same grid.
    """

    Options: ClassVar[type] = MultiagentOptions
    metrics: ClassVar[Mapping[str, Metric]] = {
        "regret": Metric("Cumulative scalarised regret", "return", "episodes", y_scale="symlog"),
        "front": Metric("The exact front and the recovered ones", "return of agent 2", "return of agent 1", "points"),
        "hypervolume": Metric("Hypervolume of the recovered front", "part of the exact front's", "episodes"),
        "rounds": Metric("Synchronisations", "rounds", "episodes", y_scale="symlog"),
        "rounds_whole": Metric("Rounds of a whole run", "rounds", "T, episodes of the run", x_scale="log"),
        "utility_loss": Metric("Maximum utility loss of the recovered front", "return", "episodes", "none"),
        "domination": Metric("Most by which the exact front dominates a recovered point", "return", "episodes", "none"),
        "bayes_regret": Metric("Bayes regret of the policies played", "return", "episodes", "none"),
        "floats": Metric("Communication, both ways", "numbers", "episodes", "none"),
        "bytes": Metric("Communication, both ways", "bytes", "episodes", "none"),
        "pair_bytes": Metric("Had pairs (agent, reward) been sent", "bytes", "episodes", "none"),
    }
    unit: ClassVar[str] = "episodes"

    def __init__(self, options: MultiagentOptions, seed: int) -> None:
        check_ranges(options)
        self._options = options
        mdp = make_linear_multiagent(options.instance)
        self._front = convex_coverage_set(mdp).values
        reference = np.full(mdp.agents, options.reference)
        if not (self._front > reference).all():
            lowest = self._front.min()
            raise UserError(
                f"reference: expected less than the front's lowest, {lowest:.4g}, got {options.reference:g}"
            )
        self._reference = reference
        share = np.linspace(0, 1, options.weights)
        self._weights = np.stack([share, 1 - share], axis=1)
        settings: dict[str, Any] = {
            "bonus": Bonus(beta=options.beta, scale=options.scale),
            "width": options.width,
            "regulariser": options.regulariser,
            "seed": seed,
        }

        def cooperating(episodes: int) -> MultiagentCoopLSVI:
            dim = mdp.dim
            flat = flat_threshold(episodes, mdp.agents, dim, options.budget)
            threshold = flat if options.threshold is None else options.threshold
            return MultiagentCoopLSVI(mdp, threshold=threshold, **settings)

        self._learners = {
            **{f"cooperating / {part}": cooperating(options.episodes // part) for part in SHORTER},
            "cooperating": cooperating(options.episodes),
            "isolated": MultiagentCoopLSVI(mdp, isolated=True, **settings),
            "centralised": MultiagentCoopLSVI(mdp, threshold=1.0, **settings),
        }
        self._regret = dict.fromkeys(SERIES, 0.0)
        self._quarters = np.zeros((3, 2))  # last episode in each of three quarters, cooperating agents' regret by then
        self._played = {name: np.zeros((0, mdp.agents)) for name in SERIES}
        self.total = sum(self._length(series) for series in self._learners)

    def _length(self, series: str) -> int:
        return self._options.episodes // int(series.partition(" / ")[2] or 1)

    @property
    def done(self) -> int:
        return sum(learner.episodes for learner in self._learners.values())

    def advance(self) -> Sequence[Row]:
        for series, learner in self._learners.items():
            length = self._length(series)
            if learner.episodes < length:
                marks = [x for x in grid(length) if x > learner.episodes] if series in SERIES else [length]
                return self._fit(series, learner, marks[0])
        return []

    def _fit(self, series: str, learner: MultiagentCoopLSVI, mark: int) -> list[Row]:
        played = learner.fit(min(mark - learner.episodes, PIECE))
        if series in SERIES:
            self._regret[series] += float(played.regret(self._front).sum())
            known = np.concatenate([self._played[series], played.values])
            best = np.unique(np.argmax(self._weights @ known.T, axis=1))  # nobody will miss the others
            self._played[series] = known[best]
        if series == "cooperating":
            self._look_back(learner.episodes)
        if learner.episodes < mark:
            return []
        rows = self._measure(series, learner) if series in SERIES else []
        if learner.episodes == self._length(series) and series.startswith("cooperating"):
            rows.append(Row("cooperating", "rounds_whole", mark, learner.communication.rounds))
        return rows

    def _measure(self, series: str, learner: MultiagentCoopLSVI) -> list[Row]:
        recovered = np.unique(learner.recover(self._weights), axis=0)
        exact, said = self._front, learner.communication
        measured = {
            "regret": self._regret[series],
            "hypervolume": hypervolume(recovered, self._reference) / hypervolume(exact, self._reference),
            "rounds": said.rounds,
            "utility_loss": maximum_utility_loss(recovered, exact),
            "domination": max(0.0, float(domination(recovered, exact).max())),
            "bayes_regret": bayes_regret(self._played[series], exact, self._weights),
            "floats": said.floats,
            "bytes": said.bytes,
            "pair_bytes": said.transition_bytes,
        }
        rows = [Row(series, metric, learner.episodes, value) for metric, value in measured.items()]
        if learner.episodes == self._options.episodes:
            fronts = {"exact": exact, series: recovered} if series == SERIES[0] else {series: recovered}
            rows += [Row(name, "front", *map(float, point)) for name, points in fronts.items() for point in points]
        return rows

    def _look_back(self, episodes: int) -> None:
        """Has an episode of the last quarter cost as much as one of the second, and .3 % of the best return?"""
        whole, total = self._options.episodes, self._regret["cooperating"]
        for quarter in (1, 2, 3):
            if 4 * episodes <= quarter * whole:
                self._quarters[quarter - 1] = episodes, total
        if episodes < whole or whole < LINEAR_FROM:
            return
        lengths, costs = np.diff([*self._quarters, (episodes, total)], axis=0).T
        early, _, late = costs / lengths
        if late > 0.9 * early and late > 3e-3 * self._front.max():
            learner = self._learners["cooperating"]
            mdp = learner.mdp
            beta = learner.bonus.at(episodes, mdp.dim, mdp.horizon, mdp.agents)
            logging.getLogger("marl").warning(
                f"after {episodes} episodes regret still grows linearly ({late:.3g} an episode) with "
                f"beta = {beta:.3g}: exploration failed or is not over; try another beta (1 to 4 are useful) or a "
                "smaller regulariser"
            )

    def state_dict(self) -> State:
        """Of all learners, and what was measured of them so far."""
        return {
            "learners": {series: learner.state_dict() for series, learner in self._learners.items()},
            "regret": dict(self._regret),
            "quarters": self._quarters.copy(),
            "played": {series: points.copy() for series, points in self._played.items()},
        }

    def load_state_dict(self, state: State) -> None:
        for series, learner in self._learners.items():
            learner.load_state_dict(state["learners"][series])
        self._quarters = np.array(state["quarters"])
        for series in SERIES:
            self._regret[series] = float(state["regret"][series])
            self._played[series] = np.array(state["played"][series])

    @staticmethod
    def findings(table: Table, options: MultiagentOptions) -> Sequence[Finding]:
        return [
            *regret_findings(table, SERIES, "return"),
            *(Finding(f"hypervolume, {x}", 100 * last(table, x, "hypervolume"), "% of the exact") for x in SERIES),
            *(Finding(f"maximum utility loss, {x}", last(table, x, "utility_loss"), "return") for x in SERIES),
            *(Finding(f"Bayes regret, {x}", last(table, x, "bayes_regret"), "return") for x in SERIES),
            Finding("dominated by the exact front, cooperating", last(table, "cooperating", "domination"), "return"),
            *communication_findings(table, "kB", 1e3),
        ]
