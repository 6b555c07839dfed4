"""``marl lifelong``: one seed of lifelong agents that share through a hub, and of the isolated agent."""

from __future__ import annotations

import atexit
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch

from marl.algos.dqn import DQN
from marl.checkpoint import flatten, unflatten
from marl.classic.experiments.base import Curves, Finding, Metric, Row, Table
from marl.engines import Engine, make_engine
from marl.lifelong.agent import Plan, Team
from marl.lifelong.findings import FORGETFUL, METRICS, RANDOM, SHARED, findings, size_of, teams, transfers
from marl.lifelong.options import LifelongOptions
from marl.lifelong.picture import draw
from marl.lifelong.play import random_return
from marl.lifelong.records import task_series
from marl.lifelong.simnet import STEPS, check_steps
from marl.lifelong.tasks import Tasks
from marl.lifelong.weights import team_folder
from marl.types import State, UserError

log = logging.getLogger("marl")

RANDOM_EPISODES = 4
"""Times ``eval_episodes``, for the random policy."""


class Lifelong:
    """The isolated agent and the team with a hub, one after the other; with ``isolated`` a team without a hub alone.

    Their first agents meet the same tasks in the same order and begin with the same weights.
    """

    Options: ClassVar[type] = LifelongOptions
    metrics: ClassVar[Mapping[str, Metric]] = METRICS
    unit: ClassVar[str] = "steps"

    def __init__(self, options: LifelongOptions, seed: int) -> None:
        check(options)
        self.options, self.seed = options, seed
        self.tasks = Tasks.of(options.tasks, options.env)
        DQN(self.tasks.spec, [options.dqn], [seed])  # raises where its networks do not fit the tasks
        check_budget(options, self.tasks)
        self.engine = engine(options)
        self.folder: Path | None = None
        rounds = options.rounds or len(options.tasks)
        self.plan = teams(options)
        self.total = len(self.plan) * rounds * self.tasks.steps(options.frames, options.copies)
        self.over = self.turn = 0
        self.team: Team | None = None

    @property
    def done(self) -> int:
        return self.over + (self.team.done if self.team else 0)

    def house(self, folder: Path) -> None:
        """Where the hubs are to be; to be called before the first ``advance`` or ``load_state_dict``."""
        self.folder = folder.absolute()  # the process of the hub may have been started elsewhere

    def advance(self) -> Sequence[Row]:
        rows: list[Row] = []
        if self.team is None:
            rows += self._random() if self.turn == 0 else []
            self.team = self._make()
        rows += self.team.advance()
        if self.team.done >= self.team.total:
            self.over += self.team.total
            self.team.close()
            self.team, self.turn = None, self.turn + 1
        return rows

    def _make(self) -> Team:
        if self.folder is None:
            raise RuntimeError("call house(folder) first: the hub needs a folder")
        name = self.plan[self.turn]
        ewc = 0.0 if name.endswith(FORGETFUL) else self.options.ewc
        plan = Plan(name, size_of(name, self.options), name.startswith(SHARED), ewc)
        folder = team_folder(self.folder, name)
        return Team(self.options, self.seed, self.tasks, plan, folder, self.engine)

    def _random(self) -> list[Row]:
        """A random policy on every task."""
        episodes = RANDOM_EPISODES * self.options.eval_episodes
        tasks = self.tasks
        found = {name: random_return(tasks.spec, name, self.seed, episodes, tasks.env) for name in tasks.names}
        return [Row(task_series(RANDOM, name), "agent_return", 0, value) for name, value in found.items()]

    def state_dict(self) -> State:
        team = None if self.team is None else self.team.state_dict()
        tensors, values = flatten({"over": self.over, "turn": self.turn, "team": team})
        return {"values": values, "tensors": {path: tensor.numpy() for path, tensor in tensors.items()}}

    def load_state_dict(self, state: State) -> None:
        tensors = {path: torch.from_numpy(array.copy()) for path, array in state["tensors"].items()}
        whole = unflatten(tensors, state["values"])
        self.over, self.turn, self.team = whole["over"], whole["turn"], None
        if whole["team"] is not None:
            self.team = self._make()
            self.team.load_state_dict(whole["team"])

    @staticmethod
    def distributed(options: LifelongOptions) -> bool:
        """See ``marl.classic.experiments.base.Distributed``."""
        return options.engine != "local"

    @staticmethod
    def findings(table: Table, options: LifelongOptions) -> Sequence[Finding]:
        return findings(table, options)

    @staticmethod
    def uneven_findings(curves: Curves, options: LifelongOptions) -> Sequence[Finding]:
        """See ``marl.classic.experiments.base.Uneven``."""
        return transfers(curves, options)

    @staticmethod
    def draw(curves: Curves, options: LifelongOptions, command: str, out: Path) -> None:
        draw(curves, options, command, out)


def check(options: LifelongOptions) -> None:
    """Raise ``UserError`` for options that make no sense together."""
    if options.without_ewc and options.ewc == 0:
        raise UserError("without_ewc: there is nothing to compare with where ewc is 0")
    if options.identify == "told" and options.threshold is not None:
        raise UserError(f"threshold {options.threshold:g}: expected --identify simnet with it, got told")
    if options.isolated and options.threshold is not None:
        raise UserError(f"threshold {options.threshold:g}: expected a hub to use it, got --isolated")
    if options.isolated and options.hub_bytes is not None:
        raise UserError(f"hub_bytes {options.hub_bytes}: expected a hub to use it, got --isolated")
    if options.rehearse > 0 and not int(options.dqn.batch_size * options.rehearse):
        raise UserError(
            f"rehearse: expected 0, or a row or more of a batch of {options.dqn.batch_size}, got {options.rehearse:g}"
        )
    if options.identify == "simnet" and not options.isolated:
        check_steps("identify_steps", options.identify_steps)
        if options.identify_steps != STEPS and options.threshold is None:
            log.warning(
                "identify_steps %d: the threshold is made for %d; give --threshold", options.identify_steps, STEPS
            )
    if options.engine != "ray" and options.address is not None:
        raise UserError(f"address {options.address}: expected --engine ray with it")


def check_budget(options: LifelongOptions, tasks: Tasks) -> None:
    """Raise ``UserError`` where a round is too short for its evaluations, or for a single update."""
    frames, copies, learner = options.frames, options.copies, options.dqn
    moments = tasks.steps(frames, copies) // copies
    if options.evals > moments:
        raise UserError(f"evals: expected {moments} or fewer, the steps of a copy in a round, got {options.evals}")
    least = max(-(-(learner.warmup + learner.update_every) // copies), 2)  # at the first step nothing can be drawn yet
    if moments < least:
        raise UserError(
            f"frames: expected more than {(least - 1) * copies * tasks.skip} (dqn.warmup {learner.warmup}, "
            f"copies {copies}), else nobody learns anything, got {frames}"
        )


def engine(options: LifelongOptions) -> Engine:
    """Where the agents live; one for all seeds that this process runs."""
    return _engine(options.engine, options.address)


@functools.cache
def _engine(name: str, address: str | None) -> Engine:
    made = make_engine(name, address)
    atexit.register(made.close)
    return made
