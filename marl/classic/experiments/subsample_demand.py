"""Demand response at scale: time to learn, what sampling costs exactly, returns of n agents (Figure 1)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from marl.classic.experiments.base import Array, Finding, Metric, Row, Table
from marl.classic.subsample.bounds import bellman_noise, frequencies, frequency_bound, optimality_bound
from marl.classic.subsample.cells import Cells
from marl.classic.subsample.demand import consumption_groups, demand_response
from marl.classic.subsample.evaluate import gap
from marl.classic.subsample.execute import Crowd, Policy, execute
from marl.classic.subsample.histogram_dqn import HistogramDQN
from marl.classic.subsample.system import LocalGlobalSystem, check_sizes
from marl.classic.subsample.table import SubsampleQ
from marl.config import option
from marl.types import State, UserError

CHUNK_SECONDS = 0.5
DELTA = 0.05
"""The chance with which Theorem 4.3's bound may fail."""

NETWORK_CHUNK = 100
"""Gradient steps between which a run may be stopped."""


@dataclass(frozen=True)
class DemandOptions:
    """Settings of the demand-response experiment."""

    ks: tuple[int, ...] = option((1, 2, 3), "Numbers k of sampled agents.")
    backup: Literal["exact", "frozen", "resample"] = option("frozen", "Expectation, m samples kept, m samples anew.")
    m: int = option(50, "Samples of a cell.")
    sweeps: int = option(300, "Sweeps with backup resample (T of the paper).")
    tolerance: float = option(1e-3, "Distance to the fixed point at which exact and frozen tables are done.")
    reward: Literal["informative", "paper"] = option("informative", "The paper's reward, or one that k matters for.")
    state: Literal["full", "lumped"] = option("full", "Tables see type, consumption and desire, or consumption alone.")
    small: int = option(
        3, "Agents of the system in which the gap is computed exactly, for k up to it; 0: none.", least=0
    )
    agents: int = option(50, "Agents of the system in which tables are executed.")
    runs: int = option(100, "Copies of it, per seed.")
    steps: int = option(300, "Steps of an execution (T' of the paper).")
    network_ks: tuple[int, ...] = option((), "Numbers k for which a network learns too, any size; needs torch.")
    network_steps: int = option(3000, "Gradient steps of each network.")
    crowd: int | None = option(None, "Agents of one more execution, with the largest k; none: not done.")
    threads: int = option(1, "Threads that learn a table.")


class SubsampleDemand:
    """One seed: it draws the samples of frozen and resampled tables, and what happens in the executions.

    Tables of 1, 2, ..., max(ks) agents are learnt one after the other, each lifted from the one before; with backup
    resample, which lifts nothing, tables of ks alone. Then networks.
    """

    Options: ClassVar[type] = DemandOptions
    metrics: ClassVar[Mapping[str, Metric]] = {
        "seconds": Metric("Figure 1a: processor time to learn", "s", "sampled agents k", y_scale="log"),
        "gap": Metric("Figure 1b: worst V* - V^pi among few agents", "reward", "sampled agents k", y_scale="symlog"),
        "mean_gap": Metric("V* - V^pi, uniform start", "reward", "sampled agents k", y_scale="symlog"),
        "bound": Metric("Theorem 3.2's bound on the gap", "reward", "sampled agents k", kind="none"),
        "apart": Metric("Largest |F_Delta - F_n|, 95 % quantile", "frequency", "sampled agents k", kind="none"),
        "apart_bound": Metric("Theorem 4.3's bound on it", "frequency", "sampled agents k", kind="none"),
        "noise": Metric("Bellman noise of Assumption 3.1", "reward", "sampled agents k", kind="none"),
        "discounted": Metric("Figure 1c: discounted return among many agents", "reward", "sampled agents k"),
        "sweeps": Metric("Bellman sweeps", "sweeps", "sampled agents k", kind="none"),
        "cells": Metric("Cells of the table", "cells", "sampled agents k", kind="none"),
        "crowd_discounted": Metric("Discounted return of the crowd", "reward", "agents", kind="none"),
        "crowd_milliseconds": Metric("Time of a step of the crowd", "ms", "agents", kind="none"),
    }
    unit: ClassVar[str] = "tables and networks"

    def __init__(self, options: DemandOptions, seed: int) -> None:
        if min(options.ks, default=0) < 1 or len(set(options.ks)) < len(options.ks):
            raise UserError(f"ks: expected different numbers from 1 on, got {_listed(options.ks)}")
        self.options, self.seed = options, seed
        if min(options.network_ks, default=1) < 1 or len(set(options.network_ks)) < len(options.network_ks):
            raise UserError(f"network_ks: expected different numbers from 1 on, got {_listed(options.network_ks)}")
        largest = max(options.ks)
        self._lifts = options.backup != "resample"
        self._sizes = range(1, largest + 1) if self._lifts else sorted(options.ks)
        self.tables = len(self._sizes)
        self.total = self.tables + len(options.network_ks)
        check_sizes(max(options.ks + options.network_ks), options.agents)
        if options.crowd is not None:
            check_sizes(largest, options.crowd)
        lumped = options.state == "lumped"
        self.system = demand_response(options.reward)
        self.learnt_on = demand_response(options.reward, lumped=True) if lumped else self.system
        self.view = consumption_groups() if lumped else None
        for name, k in (("ks", largest), ("small", options.small)):
            if k:
                _check_fits(name, self.learnt_on, k)
        self.done = 0
        self._seconds = 0.0
        self._compiled = False
        self._table = self._new_table(self._sizes[0])
        self._network: HistogramDQN | None = None
        self._optimum: SubsampleQ | None = None

    def advance(self) -> Sequence[Row]:
        """Sweeps of the present table, or steps of the present network; once it has learnt, what it is worth."""
        if self.done == self.total:
            return []
        if self.done >= self.tables:
            return self._advance_network()
        if not self._learn():
            return []
        table, series = self._table, self.options.backup
        self.done += 1
        found: dict[str, float] = {}
        if table.k in self.options.ks:
            found = {"seconds": self._seconds, "sweeps": table.sweeps, "cells": table.cells.size}
            found |= self._compare() | self._play(table)
        rows = [Row(series, metric, table.k, value) for metric, value in found.items()]
        if self.done == self.tables:
            return rows + self._crowd()
        self._table = self._new_table(self._sizes[self.done], table)
        if not self._lifts:
            self._seconds = 0.0
        return rows

    def state_dict(self) -> State:
        return {
            "done": self.done,
            "seconds": self._seconds,
            "table": self._table.state_dict(),
            "network": self._network.state_dict() if self._network else None,
        }

    def load_state_dict(self, state: State) -> None:
        self.done, self._seconds = int(state["done"]), float(state["seconds"])
        self._table = self._new_table(self._sizes[min(self.done, self.tables - 1)])
        self._table.load_state_dict(state["table"])
        self._network = None
        if state["network"]:
            self._network = self._new_network()
            self._network.load_state_dict(state["network"])

    @staticmethod
    def findings(table: Table, options: DemandOptions) -> Sequence[Finding]:
        """For each k: the gap and the return; and what the largest k gains over the smallest."""
        found = []
        for metric, name, unit in (("gap", "worst gap", "reward"), ("discounted", "discounted return", "reward")):
            if (options.backup, metric) not in table:
                continue
            ks, values = table[options.backup, metric]
            found += [Finding(f"{name}, k = {k:g}", values[:, i], unit) for i, k in enumerate(ks)]
            if len(ks) > 1:
                difference: Array = values[:, -1] - values[:, 0]
                found.append(Finding(f"{name}, k = {ks[-1]:g} less k = {ks[0]:g}", difference, unit))
        if ("network", "discounted") in table:
            ks, values = table["network", "discounted"]
            found += [
                Finding(f"discounted return, network, k = {k:g}", values[:, i], "reward") for i, k in enumerate(ks)
            ]
        if (options.backup, "crowd_discounted") in table:
            agents, values = table[options.backup, "crowd_discounted"]
            found.append(Finding(f"discounted return of {agents[0]:g} agents", values[:, 0], "reward"))
        return found

    def _new_table(self, k: int, smaller: SubsampleQ | None = None) -> SubsampleQ:
        o = self.options
        table = SubsampleQ(self.learnt_on, k, o.backup, o.m, self.seed, threads=o.threads)
        if smaller and self._lifts:
            table.lift_from(smaller)
        return table

    def _new_network(self) -> HistogramDQN:
        return HistogramDQN(self.learnt_on, self.options.network_ks[self.done - self.tables], seed=self.seed)

    def _advance_network(self) -> list[Row]:
        self._network = network = self._network or self._new_network()
        network.fit(min(NETWORK_CHUNK, self.options.network_steps - network.steps))
        if network.steps < self.options.network_steps:
            return []
        self.done += 1
        self._network = None
        return [Row("network", metric, network.k, value) for metric, value in self._play(network).items()]

    def _learn(self) -> bool:
        """A sweep or more, for half a second; whether the table is learnt."""
        if not self._compiled:  # also where a run goes on in another process; Figure 1a is not about that
            self._new_table(1).fit(1)
            self._compiled = True
        began, table = time.process_time(), self._table
        while True:
            if self._lifts:
                learnt = table.solve(self.options.tolerance, max_sweeps=1, lifted=False).error <= self.options.tolerance
            else:
                learnt = table.fit(1).sweeps >= self.options.sweeps
            if learnt or time.process_time() - began > CHUNK_SECONDS:
                break
        self._seconds += time.process_time() - began
        return learnt

    def _compare(self) -> dict[str, float]:
        """With the exact table of the same k, and with the optimum among few agents."""
        table, small = self._table, self.options.small
        found = {}
        noise = 0.0
        if self.options.backup != "exact":
            exact = SubsampleQ(self.learnt_on, table.k, threads=self.options.threads).solve(self.options.tolerance)
            noise = found["noise"] = bellman_noise(table, exact)
        if table.k <= small:
            if self._optimum is None:
                self._optimum = SubsampleQ(self.learnt_on, small, threads=self.options.threads).solve()
            found["gap"], found["mean_gap"] = (max(0.0, value) for value in gap(table, self._optimum))
            found["bound"] = optimality_bound(self.learnt_on, small, table.k, noise)
        return found

    def _play(self, policy: Policy) -> dict[str, float]:
        o = self.options
        crowd = Crowd(self.system, o.agents, o.runs, np.random.SeedSequence([self.seed, 1]))
        states = self.system.local_states
        parts, wholes = (
            frequencies(seen, states) for seen in (crowd.sample(policy.k), crowd.local_state.astype(np.int64))
        )
        return {
            "discounted": float(execute(crowd, policy, o.steps, self.view).discounted.mean()),
            "apart": float(np.quantile(np.abs(parts - wholes).max(-1), 1 - DELTA)),
            "apart_bound": frequency_bound(states, o.agents, policy.k, DELTA),
        }

    def _crowd(self) -> list[Row]:
        o = self.options
        if o.crowd is None:
            return []
        crowd = Crowd(self.system, o.crowd, 1, np.random.SeedSequence([self.seed, 2]))
        began = time.perf_counter()
        worth = execute(crowd, self._table, o.steps, self.view).discounted.mean()
        took = 1000 * (time.perf_counter() - began) / (o.steps + 1)
        return [
            Row(o.backup, "crowd_discounted", o.crowd, float(worth)),
            Row(o.backup, "crowd_milliseconds", o.crowd, took),
        ]


def _listed(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers)) or "none"


def _check_fits(option_name: str, system: LocalGlobalSystem, k: int) -> None:
    """Raises ``UserError`` for a table beyond the caps, with the option that asks for it and what there is instead."""
    try:
        Cells(system, k)
    except UserError as error:
        raise UserError(f"{option_name}: {error}; --state lumped and --network-ks go further") from None
