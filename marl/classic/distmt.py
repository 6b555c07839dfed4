"""DistMT-LSVI: agents that meet tasks without names and share what they learn of them (DistMT paper, Algorithm 1)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from marl.classic.distmt_constants import Constants, Phase, Problem, Rounds, TheoryConstants, learning_rounds
from marl.classic.distmt_server import Linkage, Message, SameRound, Server, Solved
from marl.classic.explore import (
    Integers,
    Plan,
    World,
    check_replan_growth,
    exp_ph,
    greedy_policy,
    planning,
    uniform_exploration,
)
from marl.classic.mdp import Array, LinearMDP
from marl.classic.planning import evaluate_policy, optimal_values
from marl.classic.ridge import RidgeStatistics
from marl.config import suggestion
from marl.types import State, UserError

Exploration = Literal["expph", "uniform"]


class History(NamedTuple):
    """What happened, ``[t, N]`` each: row t is a round, column i an agent.

    Attributes:
        task: the task drawn; neither agents nor server ever see it.
        label: the one that the server gave in the end.
        learned: whether the agent had to go through phase 2.
        value: ``V_1(s_0)`` of phase 1, the fingerprint.
        gap: ``V*(s_0) - V^pi(s_0)`` of the policy that the agent was left with, exact.
    """

    task: Integers
    label: Integers
    learned: NDArray[np.bool_]
    value: Array
    gap: Array


class Report(NamedTuple):
    """How a run went, judged with the knowledge that its agents did not have.

    Attributes:
        label: how results with these constants are to be named.
        rounds: rounds done.
        accuracy: fraction of all assignments labelled with their task's own label, the first that was opened for it;
            1 exactly where every task is one group and every group one task.
        groups: number of labels.
        merges: label -> the tasks in it, where there are several.
        ambiguous: how often several labels fitted a fingerprint.
        spread: ``[M]``, largest difference between two fingerprints of one task; phase 1 identifies if it is below
            ``c_sep / 2``. NaN: not met.
        covered: number of tasks for which some agent opened a label.
        episodes: ``[N]``, each agent's, in all rounds done.
        episodes_covered: ``[N]``, those of the rounds until every task had a label of its own; None: never.
        episodes_oracle: mean of each agent's if they knew the tasks' names: ``K_2`` for each task met, shared by N.
        task_gap: ``[M]``, ``V* - V^pi`` at ``s_0`` of the policy in F that the task is most often given. NaN: not met.
        optimal: fraction of assignments that left the agent with an epsilon-optimal policy.
    """

    label: str
    rounds: int
    accuracy: float
    groups: int
    merges: dict[int, list[int]]
    ambiguous: int
    spread: Array
    covered: int
    episodes: Array
    episodes_covered: Array | None
    episodes_oracle: float
    task_gap: Array
    optimal: float


class DistMTLSVI:
    """N agents, M tasks; in each round every agent is given a task at random and is left with a policy for it.

    Args:
        tasks: the M tasks; same features, states and horizon, and one fixed ``s_0`` for all of them.
        agents: N.
        c_sep: by how much the tasks' ``V*(s_0)`` differ at least. Tasks that are closer are merged: a warning says so.
        constants: ``PracticalConstants`` or ``TheoryConstants``.
        epsilon: how far below optimal a policy may be.
        delta: probability with which some task may be missed, or the guarantee fail.
        rounds: how T is computed; see ``learning_rounds``.
        linkage, same_round: see ``Server``.
        exploration: ``expph``, or ``uniform`` random actions instead, to compare.
        replan_growth: see ``exp_ph``.
        seed: of everything random.

    Attributes:
        optimal: ``[M]``, ``V*(s_0)``.
        total_rounds: T.
        server: G and F.
        identify, learn: the two phases.

    Raises:
        UserError: tasks that do not fit together, numbers that make no sense.
    """

    def __init__(
        self,
        tasks: Sequence[LinearMDP],
        agents: int,
        c_sep: float,
        constants: Constants,
        epsilon: float = 0.1,
        delta: float = 0.1,
        rounds: Rounds = "paper",
        linkage: Linkage = "complete",
        same_round: SameRound = "split",
        exploration: Exploration = "expph",
        replan_growth: float = 1.2,
        seed: int | np.random.SeedSequence = 0,
    ) -> None:
        _check_family(tasks)
        if agents < 1:
            raise UserError(f"agents: expected 1 or more, got {agents}")
        check_replan_growth(replan_growth)
        if exploration not in (choices := ("expph", "uniform")):
            raise UserError(f"exploration: {exploration!r} is not a choice{suggestion(exploration, choices)}")
        self.tasks, self.agents, self.constants = tuple(tasks), agents, constants
        self.problem = Problem(tasks[0].dim, tasks[0].horizon, len(tasks), delta, epsilon, c_sep)
        self.identify, self.learn = constants.phases(self.problem)
        self.exploration, self.replan_growth = exploration, replan_growth
        self.total_rounds = learning_rounds(len(tasks), agents, delta, rounds)
        self.server = Server(c_sep, linkage, same_round, lambda data: self._plan(data, self.learn).theta)
        self._worlds = [World.of(task) for task in tasks]
        self.optimal = np.array([optimal_values(t).v[0, w.start] for t, w in zip(tasks, self._worlds, strict=True)])
        self._warn_of_twins()
        root = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        drawing, *exploring = root.spawn(1 + agents)
        self._draw = np.random.default_rng(drawing)
        self._rngs = [np.random.default_rng(s) for s in exploring]
        none = np.zeros((0, agents), np.int64)
        self.history = History(none, none, none.astype(bool), none.astype(float), none.astype(float))

    @property
    def rounds(self) -> int:
        """Rounds done."""
        return len(self.history.task)

    def fit(self, n_rounds: int | None = None) -> DistMTLSVI:
        """So many rounds more; None: up to T."""
        if n_rounds is not None and n_rounds < 0:
            raise UserError(f"n_rounds: expected 0 or more, got {n_rounds}")
        for _ in range(max(0, self.total_rounds - self.rounds) if n_rounds is None else n_rounds):
            row = self._round()
            self.history = History(*(np.vstack([old, new]) for old, new in zip(self.history, row, strict=True)))
        return self

    def policy(self, label: int) -> Integers:
        """``[H, S]``: the policy that F holds for a label."""
        solved = self.server.table[label]
        features = self._worlds[0].features
        return greedy_policy(solved.theta, solved.data.inverse, features, self.learn.beta_plan)

    def episodes(self, rounds: int) -> Array:
        """``[N]``: the episodes that each agent ran in the first so many rounds."""
        learned = self.history.learned[:rounds]
        return self.identify.episodes * float(len(learned)) + self.learn.episodes * learned.sum(0)

    def covered(self, rounds: int) -> int:
        """For how many tasks some agent had opened a label after the first so many rounds."""
        return len(np.unique(self._founders(rounds)[0]))

    def report(self) -> Report:
        """Everything done so far; raises ``UserError`` before the first round."""
        if not self.rounds:
            raise UserError("report: no round was done yet; call fit first")
        task, label, _, value, gap = self.history
        founder, opened = self._founders(self.rounds)
        own = {m: int(np.argmax(founder == m)) for m in np.unique(founder).tolist()}
        wanted = np.array([own.get(m, -1) for m in range(len(self.tasks))])
        inside = {m: np.unique(task[label == m]).tolist() for m in range(len(founder))}
        all_covered = len(own) == len(self.tasks)
        until = 1 + max(int(opened[m]) for m in own.values())
        met = [task == m for m in range(len(self.tasks))]
        usual = [int(np.bincount(label[here]).argmax()) if here.any() else None for here in met]
        return Report(
            label=self.constants.label,
            rounds=self.rounds,
            accuracy=float((label == wanted[task]).mean()),
            groups=len(founder),
            merges={m: found for m, found in inside.items() if len(found) > 1},
            ambiguous=self.server.ambiguous,
            spread=np.array([np.ptp(value[here]) if here.any() else np.nan for here in met]),
            covered=len(own),
            episodes=self.episodes(self.rounds),
            episodes_covered=self.episodes(until) if all_covered else None,
            episodes_oracle=len(np.unique(task)) * self.learn.episodes / self.agents,
            task_gap=np.array([np.nan if m is None else self._gap(i, self.policy(m)) for i, m in enumerate(usual)]),
            optimal=float((gap <= self.problem.epsilon).mean()),
        )

    def theory(self) -> str:
        """One line: what Theorem 1 would ask, with all unknown factors taken as 1."""
        return TheoryConstants().describe(self.problem)

    def state_dict(self) -> State:
        rngs = {str(i): rng.bit_generator.state for i, rng in enumerate(self._rngs)}
        return {
            "server": self.server.state_dict(),
            "history": {name: array.copy() for name, array in self.history._asdict().items()},
            "draw": self._draw.bit_generator.state,
            "rngs": rngs,
        }

    def load_state_dict(self, state: State) -> None:
        self.server.load_state_dict(state["server"])
        self.history = History(**{name: np.array(array) for name, array in state["history"].items()})
        self._draw.bit_generator.state = state["draw"]
        for i, rng in enumerate(self._rngs):
            rng.bit_generator.state = state["rngs"][str(i)]

    def _round(self) -> tuple[NDArray[np.generic], ...]:
        """Lines 3 to 17 for all agents; the rows of ``History``. The server's tables stay as they are until Group."""
        given = self._draw.integers(len(self.tasks), size=self.agents)
        messages, policies = [], []
        for i, task in enumerate(given):
            first = self._plan(self._explore(i, task, self.identify), self.identify)
            value = float(first.value[0, self._worlds[task].start])
            told, solved = self.server.match(value), None
            if told is None:
                data = self._explore(i, task, self.learn)
                plan = self._plan(data, self.learn)
                solved = Solved(plan.theta, data)
            messages.append(Message(value, told, solved))
            policies.append(plan.policy if told is None else self.policy(told))
        labels = self.server.group(messages)
        gaps = [self._gap(task, policy) for task, policy in zip(given, policies, strict=True)]
        learned = [message.told is None for message in messages]
        values = [message.value for message in messages]
        return given, np.array(labels), np.array(learned), np.array(values), np.array(gaps)

    def _founders(self, rounds: int) -> tuple[Integers, Integers]:
        """For each label of the first so many rounds: the task of the agent that opened it, and in which round."""
        label = self.history.label[:rounds].ravel()
        opened = np.unique(label, return_index=True)[1]
        return self.history.task.ravel()[opened], opened // self.agents

    def _explore(self, agent: int, task: int, phase: Phase) -> RidgeStatistics:
        world, rng = self._worlds[task], self._rngs[agent]
        if self.exploration == "uniform":
            return uniform_exploration(world, phase.episodes, rng)
        return exp_ph(world, phase.beta_explore, phase.episodes, rng, self.replan_growth)

    def _plan(self, data: RidgeStatistics, phase: Phase) -> Plan:
        return planning(data, self._worlds[0].features, phase.beta_plan)

    def _gap(self, task: int, policy: Integers) -> float:
        """How far below optimal the policy is in that task, from ``s_0``; exact."""
        return float(self.optimal[task] - evaluate_policy(self.tasks[task], policy)[0, self._worlds[task].start])

    def _warn_of_twins(self) -> None:
        """Names the tasks that Assumption 2 forbids: their fingerprints need not differ."""
        v, c_sep = self.optimal, self.problem.c_sep
        twins = [(a, b) for a, b in combinations(range(len(v)), 2) if abs(v[a] - v[b]) <= c_sep]
        if twins:
            a, b = twins[0]
            others = {0: "", 1: " (as is 1 other pair)"}.get(len(twins) - 1, f" (as are {len(twins) - 1} other pairs)")
            logging.getLogger("marl").warning(
                f"tasks {a} and {b} have V*(s_0) = {v[a]:.4g} and {v[b]:.4g}, "
                f"not more than c_sep = {c_sep:g} apart{others}: they may be merged"
            )


def _check_family(tasks: Sequence[LinearMDP]) -> None:
    if not tasks:
        raise UserError("tasks: expected 1 or more, got none")
    for i, task in enumerate(tasks):
        if task.theta.shape != tasks[0].theta.shape or not np.array_equal(task.features, tasks[0].features):
            raise UserError(f"task {i}: expected the features and the horizon of task 0, which all tasks share")
        if World.of(task).start != World.of(tasks[0]).start:
            raise UserError(f"task {i}: expected the s_0 of task 0, which all tasks share")
