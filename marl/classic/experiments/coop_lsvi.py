"""CoopLSVI beside agents that never speak and agents that always do: exact regret, rounds, floats and bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from marl.classic.coop_lsvi import CoopLSVI, HeterogeneousCoopLSVI, default_threshold
from marl.classic.experiments.base import Finding, Metric, Row, Table
from marl.classic.experiments.cooperation import communication_findings, grid, regret_findings
from marl.classic.instances import (
    make_chain,
    make_combination_lock,
    make_heterogeneous_locks,
    make_riverswim,
    make_simplex_mdp,
    make_soft_block_lock,
)
from marl.classic.lsvi import Bonus, CooperativeLSVI
from marl.classic.mdp import LinearMDP
from marl.classic.ridge import LogDetTrigger
from marl.config import check_ranges, option
from marl.types import State, UserError

INSTANCES: Mapping[str, Callable[[], LinearMDP]] = {
    "lock": make_combination_lock,
    "riverswim": make_riverswim,
    "chain": make_chain,
    "softblock": make_soft_block_lock,
    "simplex": make_simplex_mdp,
}

SHORTER = (8, 4, 2)
"""Runs of T / 8, T / 4 and T / 2 episodes, with a threshold of their own, show how the rounds depend on T."""

PIECE = 500
"""Episodes that a team plays between two moments at which the run may be stopped."""


@dataclass(frozen=True)
class LSVIOptions:
    """What both experiments are told."""

    episodes: int = option(5000, "Episodes of each agent, T.", least=16)
    agents: int = option(8, "Agents, M.")
    beta: float | None = option(4.0, "Width of the confidence intervals; none: by theory, times scale.")
    scale: float = option(1.0, "Factor of theory's beta, where beta is none.")
    threshold: float | None = option(None, "S of the trigger; none: threshold_scale T log(M T) / (d M^2).")
    threshold_scale: float = option(0.06, "Factor of the paper's S, where threshold is none.")
    regulariser: float = option(1.0, "lambda of the ridge regressions.", least=1e-3)
    replan: float = option(1.2, "Growth of det Lambda after which an agent plans anew; 1: every episode.", least=1)


@dataclass(frozen=True)
class CoopLSVIOptions(LSVIOptions):
    """Options of ``coop-lsvi``."""

    instance: Literal["lock", "riverswim", "chain", "softblock", "simplex"] = option(
        "riverswim", "The process, of which every agent has a copy of its own."
    )


@dataclass(frozen=True)
class HeterogeneousOptions(LSVIOptions):
    """Options of ``coop-lsvi-heterogeneous``."""

    agents: int = option(6, "Agents, M.", least=2)
    groups: int = option(2, "Groups of agents; the locks of two groups differ in one position or two.", least=2)


class _LSVIExperiment:
    """Teams that run one after the other, each with its own part of the seed."""

    metrics: ClassVar[Mapping[str, Metric]] = {
        "regret": Metric(
            "Cumulative regret", "return, mean over agents", "episodes of each agent", x_scale="log", y_scale="symlog"
        ),
        "rounds": Metric("Synchronisations", "rounds", "episodes of each agent", y_scale="symlog"),
        "bytes": Metric("Communication, both ways", "bytes", "episodes of each agent", y_scale="symlog"),
        "rounds_whole": Metric("Rounds of a whole run", "rounds", "T, episodes of the run", x_scale="log"),
        "floats": Metric("Communication, both ways", "numbers", "episodes of each agent", kind="none"),
        "transition_bytes": Metric("Had transitions been sent", "bytes", "episodes of each agent", kind="none"),
        "upper": Metric("Upper value of the first state", "return, mean over agents", "episodes", kind="none"),
    }
    unit: ClassVar[str] = "episodes"

    def __init__(self, teams: Mapping[str, CooperativeLSVI], options: LSVIOptions) -> None:
        """``teams``: by series; ``<series> / k`` is run for the k-th part of the episodes only."""
        self._teams = dict(teams)
        self._options = options
        self.total = sum(self._length(series) for series in self._teams)

    def _length(self, series: str) -> int:
        _, _, part = series.partition(" / ")
        return self._options.episodes // int(part or 1)

    @property
    def done(self) -> int:
        return sum(team.episodes for team in self._teams.values())

    def advance(self) -> Sequence[Row]:
        for series, team in self._teams.items():
            length = self._length(series)
            if team.episodes < length:
                return self._measure(series, team, length)
        return []

    def _measure(self, series: str, team: CooperativeLSVI, length: int) -> list[Row]:
        rows = []
        end = min(length, team.episodes + PIECE)
        short = " / " in series
        for x in [end] if short else [x for x in grid(length) if team.episodes < x <= end]:
            team.fit(x - team.episodes)
            if not short:
                said = team.communication
                rows += [
                    Row(series, "regret", x, float(team.regret.mean())),
                    Row(series, "upper", x, float(team.upper.mean())),
                    Row(series, "rounds", x, said.rounds),
                    Row(series, "bytes", x, said.bytes),
                    Row(series, "floats", x, said.floats),
                    Row(series, "transition_bytes", x, said.transition_bytes),
                ]
        team.fit(end - team.episodes)
        if series.startswith("cooperating") and end == length:
            rows.append(Row("cooperating", "rounds_whole", length, team.communication.rounds))
        return rows

    def state_dict(self) -> State:
        return {series: team.state_dict() for series, team in self._teams.items()}

    def load_state_dict(self, state: State) -> None:
        for series, team in self._teams.items():
            team.load_state_dict(state[series])


class CoopLSVIExperiment(_LSVIExperiment):
    """Algorithm 1 between its two baselines: ``isolated``, ``cooperating``, ``centralised``."""

    Options: ClassVar[type] = CoopLSVIOptions

    def __init__(self, options: CoopLSVIOptions, seed: int) -> None:
        check_ranges(options)
        process = INSTANCES[options.instance]()
        series = _triggers(options, process.dim)
        seeds = np.random.SeedSequence(seed).spawn(len(series))
        settings = _settings(options)
        teams = {
            name: CoopLSVI(process, options.agents, trigger=trigger, seed=child, **settings)
            for (name, trigger), child in zip(series.items(), seeds, strict=True)
        }
        super().__init__(teams, options)

    @staticmethod
    def findings(table: Table, options: CoopLSVIOptions) -> Sequence[Finding]:
        return _findings(table, ("isolated", "cooperating", "centralised"))


class HeterogeneousExperiment(_LSVIExperiment):
    """Algorithm 3 on locks that differ: also ``pooled``, Algorithm 1 that takes all locks for the same."""

    Options: ClassVar[type] = HeterogeneousOptions

    def __init__(self, options: HeterogeneousOptions, seed: int) -> None:
        check_ranges(options)
        if options.groups > options.agents:
            raise UserError(f"groups: expected {options.agents} at most, one agent in each, got {options.groups}")
        processes = make_heterogeneous_locks(options.agents, options.groups)
        series = _triggers(options, processes.features.shape[-1])
        *seeds, pooled = np.random.SeedSequence(seed).spawn(len(series) + 1)
        settings = _settings(options)
        teams: dict[str, CooperativeLSVI] = {
            name: HeterogeneousCoopLSVI(processes, trigger=trigger, seed=child, **settings)
            for (name, trigger), child in zip(series.items(), seeds, strict=True)
        }
        blind = [LinearMDP.one_hot(member.tabular) for member in processes.members]
        teams["pooled"] = CoopLSVI(blind, trigger=series["cooperating"], seed=pooled, **settings)
        super().__init__(teams, options)

    @staticmethod
    def findings(table: Table, options: HeterogeneousOptions) -> Sequence[Finding]:
        pooled = table["pooled", "regret"][1][:, -1] / table["cooperating", "regret"][1][:, -1]
        both = _findings(table, ("isolated", "cooperating", "centralised", "pooled"))
        return [*both, Finding("regret, pooled / cooperating", pooled, "ratio")]


def _triggers(options: LSVIOptions, dim: int) -> dict[str, LogDetTrigger]:
    """Series -> when it synchronises."""

    def cooperating(episodes: int) -> LogDetTrigger:
        paper = default_threshold(episodes, options.agents, dim)
        return LogDetTrigger(options.threshold_scale * paper if options.threshold is None else options.threshold)

    shorter = {f"cooperating / {part}": cooperating(options.episodes // part) for part in SHORTER}
    return {
        **shorter,
        "cooperating": cooperating(options.episodes),
        "isolated": LogDetTrigger(math.inf),
        "centralised": LogDetTrigger(0.0),
    }


def _settings(options: LSVIOptions) -> dict[str, Any]:
    bonus = Bonus(beta=options.beta, scale=options.scale)
    return {"bonus": bonus, "regulariser": options.regulariser, "replan": options.replan}


def _findings(table: Table, series: Sequence[str]) -> list[Finding]:
    return [*regret_findings(table, series, "return, mean over agents"), *communication_findings(table, "MB", 1e6)]
