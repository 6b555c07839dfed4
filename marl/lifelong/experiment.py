"""``marl lifelong``: one seed of lifelong agents that share through a hub, and of the isolated agent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from marl.checkpoint import flatten, unflatten
from marl.classic.experiments.base import Array, Finding, Metric, Row, Table
from marl.envs import all_options, make_env
from marl.envs.base import EnvSpec
from marl.lifelong.abreast import Abreast
from marl.lifelong.agent import Team
from marl.lifelong.metrics import Curve, agent_reward, agent_time, forgetting, normalised
from marl.lifelong.options import LifelongOptions
from marl.lifelong.play import random_return
from marl.lifelong.records import agent_series, task_series
from marl.types import State, UserError

SHARED, ISOLATED, RANDOM = "shared", "isolated", "random"
FORGETFUL = ", no EWC"
"""What a team's name ends with where it has no penalty against forgetting."""

RANDOM_EPISODES = 4
"""Times ``eval_episodes``, for the random policy."""


class Lifelong:
    """The isolated agent and the team with a hub, one after the other; with ``isolated`` a team without a hub alone.

    Their first agents meet the same tasks in the same order and begin with the same weights.
    """

    Options: ClassVar[type] = LifelongOptions
    metrics: ClassVar[dict[str, Metric]] = {
        "return": Metric("Return on a task, mean over agents", "return per episode", "rounds"),
        "frames": Metric("Frames played by all agents", "frames", "rounds"),
        "traffic": Metric("Between agents and hub, compressed", "bytes", "rounds"),
        "updates": Metric("Gradient updates of all networks", "updates", "rounds", kind="none"),
        "right": Metric("Tasks recognised rightly, or as new", "meetings", "rounds", kind="none"),
        "wrong": Metric("Tasks taken for others, or for new", "meetings", "rounds", kind="none"),
        "agent_return": Metric("Return of an agent on a task", "return per episode", "rounds", kind="none"),
        "task": Metric("The task of a round", "number of the task, from 0", "rounds", kind="none"),
        "learning_return": Metric("Return while a task is learnt", "return per episode", "evaluations", kind="none"),
        "learning_frames": Metric("Frames for a task, identifying it included", "frames", "evaluations", kind="none"),
    }
    unit: ClassVar[str] = "steps"

    def __init__(self, options: LifelongOptions, seed: int) -> None:
        check(options)
        self.options, self.seed = options, seed
        self.spec, self.skip = common_spec(options)
        self.folder: Path | None = None
        rounds = options.rounds or len(options.tasks)
        steps = -(-options.frames // (self.skip * options.copies)) * options.copies
        self.plan = teams(options)
        self.total, self.over, self.turn = len(self.plan) * rounds * steps, 0, 0
        self.team: Team | None = None

    @property
    def done(self) -> int:
        return self.over + (self.team.done if self.team else 0)

    def house(self, folder: Path) -> None:
        """Where the hubs are to be; to be called before the first ``advance`` or ``load_state_dict``."""
        self.folder = folder

    def advance(self) -> Sequence[Row]:
        rows = [] if self.done else self._random()
        self.team = self.team or self._make()
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
        agents = self.options.agents if name.startswith(SHARED) or self.options.isolated else 1
        ewc = 0.0 if name.endswith(FORGETFUL) else self.options.ewc
        place = self.folder / name.replace(", ", "-").replace(" ", "-").lower()
        shared = name.startswith(SHARED)
        return Team(self.options, self.seed, self.spec, self.skip, name, agents, shared, ewc, place)

    def _random(self) -> list[Row]:
        episodes = RANDOM_EPISODES * self.options.eval_episodes
        found = {task: random_return(self.spec, task, self.seed, episodes) for task in self.options.tasks}
        return [Row(task_series(RANDOM, task), "agent_return", 0, value) for task, value in found.items()]

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
    def findings(table: Table, options: LifelongOptions) -> Sequence[Finding]:
        found = []
        reference = Reference(table, options)
        for team in teams(options):
            found += _of_team(team, table, options, reference)
        return found


def teams(options: LifelongOptions) -> list[str]:
    """Who runs, in this order."""
    plain = [ISOLATED] if options.isolated else [ISOLATED, SHARED]
    return [*plain, *(name + FORGETFUL for name in plain)] if options.without_ewc else plain


def check(options: LifelongOptions) -> None:
    """Raise ``UserError`` for options that make no sense together."""
    if not options.tasks or len(set(options.tasks)) < len(options.tasks):
        raise UserError(f"tasks: expected one or more different ones, got {','.join(options.tasks) or 'none'}")
    if options.without_ewc and options.ewc == 0:
        raise UserError("without_ewc: there is nothing to compare with where ewc is 0")


def common_spec(options: LifelongOptions) -> tuple[EnvSpec, int]:
    """What all tasks have in common, and the frames of a step; raises ``UserError`` naming two that differ."""
    parts = []
    try:
        parts = [make_env(task, seeds=[0]) for task in options.tasks]
        spec = Abreast(parts).spec
    finally:
        for part in parts:
            part.close()
    if spec.n_agents != 1:
        raise UserError(f"{options.tasks[0]} has {spec.n_agents} agents: lifelong tasks need one")
    skips = [int(all_options(task, {}).get("frame_skip", 1)) for task in options.tasks]
    for task, skip in zip(options.tasks, skips, strict=True):
        if skip != skips[0]:
            raise UserError(f"a step of {task} is {skip} frames, one of {options.tasks[0]} {skips[0]}: expected equal")
    return spec, skips[0]


class Reference:
    """The scale of the metrics: random and isolated agents, mean over seeds.

    Attributes:
        random: ``[M]``; None: some seed has no rows yet.
        isolated: ``[S, M]``, in the end.
    """

    def __init__(self, table: Table, options: LifelongOptions) -> None:
        self.random = np.array([table[task_series(RANDOM, m), "agent_return"][1].mean() for m in options.tasks])
        self.isolated = np.stack([table[task_series(ISOLATED, m), "return"][1][:, -1] for m in options.tasks], axis=1)


def _of_team(team: str, table: Table, options: LifelongOptions, reference: Reference) -> list[Finding]:
    agents = range(1 if team.startswith(ISOLATED) and not options.isolated else options.agents)
    tasks = options.tasks
    after = np.stack(  # [S, N, T, M]
        [[table[agent_series(team, m, i), "agent_return"][1] for m in tasks] for i in agents], axis=0
    ).transpose(2, 0, 3, 1)
    found = [
        Finding(f"{team}: {name}", table[team, name][1][:, -1], Lifelong.metrics[name].unit)
        for name in ("frames", "updates", "traffic", "right", "wrong")
    ]
    found += [Finding(f"{task_series(team, m)}", after[:, :, -1, k].mean(1), "return in the end, per episode")
              for k, m in enumerate(tasks)]  # fmt: skip
    scores = normalised(after, reference.random, reference.isolated.mean(0))
    who = np.stack([table[f"{team}, agent {i}", "task"][1] for i in agents], axis=1).astype(int)  # [S, N, T]
    lost = [[_mean(forgetting(scores[s, i], who[s, i])) for i in agents] for s in range(len(scores))]
    found.append(Finding(f"{team}: forgetting", np.array([_mean(np.array(each)) for each in lost]), "of 1, isolated"))
    if team != ISOLATED:
        reward = agent_reward(after[:, :, -1], reference.random, reference.isolated)
        found.append(Finding(f"{team}: AR", np.array([_mean(row) for row in reward.scores]), "1: isolated, 0: random"))
        if reward.best_of_5 is not None:
            best = np.array([_mean(reward.best_of_5)])
            found.append(Finding(f"{team}: AR, best of 5 seeds", best, "1: isolated, 0: random"))
    if options.draws == "permutation":
        found += _times(team, table, options, reference, agents)
    return found


def _times(
    team: str, table: Table, options: LifelongOptions, reference: Reference, agents: Sequence[int]
) -> list[Finding]:
    """AT: mean over agents and tasks of each seed, tasks on which isolated agents learn nothing left out."""
    shares, late = [], []
    levels: tuple[float, ...] = ()
    isolated = reference.isolated.mean(0)
    for k, task in enumerate(options.tasks):
        curves = [
            (table[agent_series(team, task, i), "learning_frames"][1],
             table[agent_series(team, task, i), "learning_return"][1]) for i in agents
            if (agent_series(team, task, i), "learning_return") in table
        ]  # fmt: skip
        if not curves or isolated[k] <= reference.random[k]:
            continue
        runs = [[Curve(frames[s], values[s]) for frames, values in curves] for s in range(len(curves[0][0]))]
        time = agent_time(runs, float(reference.random[k]), float(isolated[k]), options.frames)
        levels = time.levels
        shares.append(time.time.mean(1))
        late.append(time.censored.mean(1))
    found = []
    for j, level in enumerate(levels):
        share, never = (np.mean([each[:, j] for each in x], axis=0) for x in (shares, late))
        name = f"{team}: AT {100 * level:g} %"
        found.append(Finding(name + (" (lower bound)" if never.any() else ""), share, "of the isolated agent's frames"))
        if never.any():
            found.append(Finding(f"{name} never reached", never, "share of agents and tasks"))
    return found


def _mean(values: Array) -> float:
    """Of what is defined; nan if nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
