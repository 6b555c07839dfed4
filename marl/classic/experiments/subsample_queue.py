"""A dispatcher that looks at k of its n queues: what that costs, at light and at heavy load (Figure 2)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from marl.classic.experiments.base import Finding, Metric, Row, Table
from marl.classic.subsample.dispatch import Queues, rule_gap, shortest_of
from marl.classic.subsample.queueing import QueueModel, QueueTable, Rule
from marl.classic.subsample.system import check_sizes
from marl.config import option
from marl.types import State, UserError

CHUNK_SECONDS = 0.5
LONG_RUNS = 4
SERIES = "sub-sampled"


@dataclass(frozen=True)
class QueueOptions:
    """Settings of the queueing experiment."""

    ks: tuple[int, ...] = option((1, 2, 3), "Numbers k of queues that are looked at; 4 and 5 fit as well.")
    agents: int = option(50, "Queues n.")
    p: float = option(0.8, "Chance that a queue serves a job in a step, in the light setting.")
    load: float = option(0.9, "Share of time that queues are busy in the heavy setting, which is slow to serve.")
    capacity: int = option(30, "The longest that a queue gets (c of the paper).")
    overflow: Literal["lost", "paper"] = option("lost", "A job without room costs 10, or nothing as in the paper.")
    thin: bool = option(True, "Tables are learnt with arrivals thinned to k / n, so that their load is the true one.")
    tolerance: float = option(1e-5, "Distance to the fixed point at which a table is done.")
    runs: int = option(100, "Copies of the n queues, per seed.")
    steps: int = option(100, "Steps of an execution (T' of the paper).")
    settle: int = option(
        20_000, "Steps before, and again while, lengths in the long run are measured; 0: not.", least=0
    )
    small: int = option(4, "Queues of the system in which the gap is exact, for k up to it; 0: none.", least=0)
    small_capacity: int = option(6, "The longest that a queue of that system gets.")


class SubsampleQueue:
    """One seed: it draws initial lengths, subsets, arrivals and services; tables and exact gaps have no randomness.

    For the light and then the heavy setting: first the rules without learning, then a table for each k. All rules of a
    seed start from the same lengths and see the same arrivals and services.
    """

    Options: ClassVar[type] = QueueOptions
    metrics: ClassVar[Mapping[str, Metric]] = {
        "gap": Metric("Figure 2: worst V* - V^pi among few queues", "reward", "queues looked at k", y_scale="symlog"),
        "mean_gap": Metric("V* - V^pi, uniform lengths", "reward", "queues looked at k", kind="none"),
        "behind": Metric("Return behind join-shortest-queue", "reward", "queues looked at k", y_scale="symlog"),
        "light_return": Metric("Discounted return, light load", "reward", "queues looked at k"),
        "heavy_return": Metric("Discounted return, heavy load", "reward", "queues looked at k", kind="none"),
        "light_length": Metric("Jobs in a queue in the long run, light", "jobs", "queues looked at k", kind="none"),
        "heavy_length": Metric("Jobs in a queue in the long run, heavy", "jobs", "queues looked at k", y_scale="log"),
        "light_lost": Metric("Lost jobs in the long run, light", "jobs/step", "queues looked at k", kind="none"),
        "heavy_lost": Metric("Lost jobs in the long run, heavy", "jobs/step", "queues looked at k", kind="none"),
        "states": Metric("States of the table", "states", "queues looked at k", kind="none"),
        "sweeps": Metric("Bellman sweeps", "sweeps", "queues looked at k", kind="none"),
    }
    unit: ClassVar[str] = "rules"

    def __init__(self, options: QueueOptions, seed: int) -> None:
        o = options
        if min(o.ks, default=0) < 1 or len(set(o.ks)) < len(o.ks):
            raise UserError(f"ks: expected different numbers from 1 on, got {','.join(map(str, o.ks)) or 'none'}")
        check_sizes(max(o.ks), o.agents)
        self.options, self.seed = options, seed
        self.models = {
            "light": QueueModel(o.agents, o.p, o.capacity, overflow=o.overflow),
            "heavy": QueueModel.with_load(o.agents, o.load, o.capacity, overflow=o.overflow),
        }
        QueueTable(self.models["light"], max(o.ks))  # raises where that does not fit, as the other one below
        self.few: dict[str, QueueModel] = {}
        if o.small:
            self.few = {
                "light": QueueModel(o.small, o.p, o.small_capacity, overflow=o.overflow),
                "heavy": QueueModel.with_load(o.small, o.load, o.small_capacity, overflow=o.overflow),
            }
            QueueTable(self.few["heavy"], o.small)
        self.jobs = [(setting, k) for setting in self.models for k in (0, *o.ks)]  # 0: the rules without learning
        self.total = len(self.jobs)
        self.done = 0
        self._table: QueueTable | None = None
        self._best = {setting: 0.0 for setting in self.models}  # the return of join-shortest-queue
        self._whole: dict[str, QueueTable] = {}

    def advance(self) -> Sequence[Row]:
        """Some sweeps of the present table; once it is learnt, what it is worth."""
        if self.done == self.total:
            return []
        setting, k = self.jobs[self.done]
        if k == 0:
            rows = self._known_rules(setting)
        elif self._learn(setting, k):
            rows = self._measure(setting, k)
        else:
            return []
        self.done, self._table = self.done + 1, None
        return rows

    def state_dict(self) -> State:
        table = self._table.state_dict() if self._table else None
        return {"done": self.done, "best": dict(self._best), "table": table}

    def load_state_dict(self, state: State) -> None:
        self.done, self._best = int(state["done"]), {name: float(best) for name, best in state["best"].items()}
        self._table = None
        if state["table"]:
            setting, k = self.jobs[self.done]
            self._table = self._new_table(setting, k)
            self._table.load_state_dict(state["table"])

    @staticmethod
    def findings(table: Table, options: QueueOptions) -> Sequence[Finding]:
        """For each k: the gap, how far behind join-shortest-queue, and the length under heavy load."""
        found = []
        for setting in ("light", "heavy"):
            for metric, name in (("gap", "worst gap among few"), ("behind", "return behind the shortest queue")):
                if (setting, metric) in table:
                    ks, values = table[setting, metric]
                    found += [
                        Finding(f"{setting}: {name}, k = {k:g}", values[:, i], "reward") for i, k in enumerate(ks)
                    ]
        for (series, metric), (ks, values) in table.items():
            if metric == "heavy_length":
                some = enumerate(ks) if series == SERIES else [(0, None)]  # the others do not depend on k
                for i, k in some:
                    name = f"heavy: jobs in a queue, {series}" + ("" if k is None else f", k = {k:g}")
                    found.append(Finding(name, values[:, i], "jobs"))
        return found

    def _new_table(self, setting: str, k: int) -> QueueTable:
        return QueueTable(self.models[setting], k, self.options.thin)

    def _learn(self, setting: str, k: int) -> bool:
        """Sweeps for half a second; whether the table is learnt."""
        began, tolerance = time.perf_counter(), self.options.tolerance
        self._table = self._table or self._new_table(setting, k)
        while time.perf_counter() - began < CHUNK_SECONDS:
            if self._table.solve(tolerance, max_sweeps=1).error <= tolerance:
                return True
        return False

    def _known_rules(self, setting: str) -> list[Row]:
        """Each is a horizontal line: it does not know k."""
        n, rows = self.options.agents, []
        for name, looks in (("shortest queue", n), ("two choices", 2), ("random", 1)):
            if looks <= n:
                found = self._play(setting, shortest_of(looks))
                if name == "shortest queue":
                    self._best[setting] = found[f"{setting}_return"]
                rows += [Row(name, metric, k, value) for metric, value in found.items() for k in self.options.ks]
        return rows

    def _measure(self, setting: str, k: int) -> list[Row]:
        table = self._table
        assert table is not None
        found: dict[str, float] = {}
        if setting == "light":
            found = {"states": table.values.size, "sweeps": table.sweeps}
        found |= self._play(setting, table.rule())
        rows = [Row(SERIES, metric, k, value) for metric, value in found.items()]
        rows.append(Row(setting, "behind", k, self._best[setting] - found[f"{setting}_return"]))
        if k <= self.options.small:
            few = self.few[setting]
            if setting not in self._whole:
                self._whole[setting] = QueueTable(few, few.n).solve(1e-7)
            learnt = QueueTable(few, k, self.options.thin).solve(1e-7)
            worst, mean = rule_gap(self._whole[setting], learnt.rule())
            rows += [Row(setting, "gap", k, max(0.0, worst)), Row(setting, "mean_gap", k, max(0.0, mean))]
        return rows

    def _play(self, setting: str, rule: Rule) -> dict[str, float]:
        """The return from uniform lengths; the lengths and losses in the long run, from empty queues."""
        o, model = self.options, self.models[setting]
        start, long = np.random.SeedSequence([self.seed, list(self.models).index(setting)]).spawn(2)
        found = {f"{setting}_return": float(Queues(model, o.runs, start).play(rule, o.steps).discounted.mean())}
        if o.settle:
            queues = Queues(model, LONG_RUNS, long, empty=True)
            queues.play(rule, o.settle)
            seen = queues.play(rule, o.settle)
            found |= {f"{setting}_length": float(seen.length.mean()), f"{setting}_lost": float(seen.lost.mean())}
        return found
