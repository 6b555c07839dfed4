"""What a lifelong run's table says: agent reward and time, forward transfer, forgetting, seed by seed.

``docs/lifelong/metrics.md`` has the formulas. S seeds, N agents, T rounds, M tasks, L levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from marl.classic.experiments.base import Array, Curves, Finding, Metric, Table
from marl.classic.results import shared
from marl.lifelong.metrics import (
    LEVELS,
    AgentReward,
    AgentTime,
    Curve,
    agent_reward,
    agent_time,
    defined_mean,
    forgetting,
    forward_transfer,
    normalised,
)
from marl.lifelong.options import LifelongOptions
from marl.lifelong.records import agent_series, task_series
from marl.types import UserError

SHARED, ISOLATED, RANDOM = "shared", "isolated", "random"
FORGETFUL = ", no EWC"
"""What a team's name ends with where it has no penalty against forgetting."""

METRICS = {
    "return": Metric("Return on a task, mean over agents", "return per episode", "rounds"),
    "frames": Metric("Frames played by all agents", "frames", "rounds"),
    "traffic": Metric("Between agents and hub, compressed", "bytes", "rounds"),
    "updates": Metric("Gradient updates of all networks", "updates", "rounds", kind="none"),
    "right": Metric("Tasks recognised rightly, or as new", "meetings", "rounds", kind="none"),
    "wrong": Metric("Tasks taken for others, or for new", "meetings", "rounds", kind="none"),
    "agent_return": Metric("Return of an agent on a task", "return per episode", "rounds", kind="none"),
    "agent_traffic": Metric("Between an agent and the hub, compressed", "bytes", "rounds", kind="none"),
    "task": Metric("The task of a round", "number of the task, from 0", "rounds", kind="none"),
    "learning_return": Metric("Return while a task is learnt", "return per episode", "evaluations", kind="none"),
    "learning_frames": Metric("Frames for a task, identifying it included", "frames", "evaluations", kind="none"),
}
"""What a lifelong run measures."""

TRANSFER = "1: perfect from the start, 0: as a fresh agent"
"""The scale of forward transfer."""

WHOLE = 0.9
"""The part of the isolated agent's mean over all tasks that the paper's AT asks for."""


def teams(options: LifelongOptions) -> list[str]:
    """Who runs, in this order."""
    plain = [ISOLATED] if options.isolated else [ISOLATED, SHARED]
    return [*plain, *(name + FORGETFUL for name in plain)] if options.without_ewc else plain


def size_of(team: str, options: LifelongOptions) -> int:
    """How many agents the team has."""
    return options.agents if team.startswith(SHARED) or options.isolated else 1


class Reference:
    """The scale of the metrics: random and isolated agents.

    Attributes:
        random: ``[M]``, mean over seeds.
        isolated: ``[S, M]``, in the end.
        frames: that an isolated agent had for one task: in whole steps of all copies, so that they may be a few more
            than were asked for.

    Raises:
        UserError: the table lacks a task, an agent or a seed of the options', as ``config.json`` was edited.
    """

    def __init__(self, table: Table, options: LifelongOptions) -> None:
        _require(table, options)
        self.random = np.array([table[task_series(RANDOM, m), "agent_return"][1].mean() for m in options.tasks])
        self.isolated = np.stack([table[task_series(ISOLATED, m), "return"][1][:, -1] for m in options.tasks], axis=1)
        self.frames = float(table[ISOLATED, "frames"][1][:, 0].mean()) / size_of(ISOLATED, options)

    @property
    def defined(self) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """``[M]``, whether the isolated agent learnt anything of a task, so that it is a measure of others."""
        return np.asarray(self.isolated.mean(0) > self.random)


def _require(table: Table, options: LifelongOptions) -> None:
    if not options.tasks:
        raise UserError("config.json: tasks: expected one or more, got none")
    wanted = [(task_series(RANDOM, task), "agent_return") for task in options.tasks]
    for team in teams(options):
        agents = range(size_of(team, options))
        wanted += [(team, "frames")]
        wanted += [(agent_series(team, task, i), "agent_return") for task in options.tasks for i in agents]
    for series, metric in wanted:
        if (series, metric) not in table:
            raise UserError(f"the results lack {metric} of {series} for all seeds of config.json: was it edited?")


def returns_after(team: str, table: Table, options: LifelongOptions) -> Array:
    """Returns of every agent on every task after every round, ``[S, N, T, M]``."""
    return np.stack([
        np.stack([table[agent_series(team, task, i), "agent_return"][1] for task in options.tasks], axis=-1)
        for i in range(size_of(team, options))
    ], axis=1)  # fmt: skip


def tasks_met(team: str, table: Table, options: LifelongOptions) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Numbers of the rounds' tasks, ``[S, N, T]``."""
    met = [table[f"{team}, agent {i}", "task"][1] for i in range(size_of(team, options))]
    return np.stack(met, axis=1).astype(np.int64)


def reward_of(team: str, table: Table, options: LifelongOptions, reference: Reference) -> AgentReward:
    """AR in the end."""
    after = returns_after(team, table, options)
    return agent_reward(after[:, :, -1], reference.random, reference.isolated)


def forgetting_of(team: str, table: Table, options: LifelongOptions, reference: Reference) -> Array:
    """What agents forgot, mean over agents of the mean over their tasks, ``[S]``."""
    scores = normalised(returns_after(team, table, options), reference.random, reference.isolated.mean(0))
    met = tasks_met(team, table, options)
    lost = [[defined_mean(forgetting(scores[s, i], met[s, i])) for i in range(met.shape[1])] for s in range(len(met))]
    return np.array([defined_mean(np.array(each)) for each in lost])


def transfer_of(team: str, curves: Curves, options: LifelongOptions, reference: Reference) -> Array:
    """Forward transfer, the mean over agents and over the tasks that they met first after the first round, ``[S]``.

    The fresh agent's curve is the mean over the isolated agents, of any seed, whose first task it was; tasks with which
    none began are left out, nan where nothing is left. Time is the part of the time for the task that is over, so that
    whoever borrows, and plays no frames, has a curve too.
    """
    time, isolated = np.linspace(0.0, 1.0, options.evals + 1), reference.isolated.mean(0)
    seeds = sorted(curves[team, "frames"])

    def visits(team: str) -> Iterator[tuple[int, int, bool, Array]]:
        """The first visit of each agent to each task: seed 0 .. S - 1, task, if the agent began with it, the curve."""
        for s, i, k in np.ndindex(len(seeds), size_of(team, options), len(options.tasks)):
            measured = curves.get((agent_series(team, options.tasks[k], i), "learning_return"), {})
            if seeds[s] in measured:
                curve = measured[seeds[s]][1][: len(time)]
                began = curves[f"{team}, agent {i}", "task"][seeds[s]][1][0] == k
                yield s, k, bool(began), normalised(curve, reference.random[k], isolated[k])

    fresh: dict[int, list[Array]] = {}
    for _, k, began, curve in visits(ISOLATED):
        if began:
            fresh.setdefault(k, []).append(curve)
    spared: list[list[float]] = [[] for _ in seeds]
    for s, k, began, curve in visits(team):
        if k in fresh and not began:
            alone = Curve(time, np.mean(fresh[k], axis=0))
            spared[s].append(forward_transfer(Curve(time, curve), alone, 1.0))
    return np.array([defined_mean(np.array(each)) for each in spared])


def times_of(team: str, table: Table, options: LifelongOptions, reference: Reference) -> dict[str, AgentTime]:
    """AT of each task at ``LEVELS``, in the isolated agent's frames for one task.

    The clock of a task goes on when an agent is given it once more.

    Tasks are left out on which the isolated agent learns nothing. There is none at all where agents are not given all
    tasks equally often: with ``uniform`` draws, or where ``rounds`` is no multiple of the tasks.
    """
    times: dict[str, AgentTime] = {}
    if options.draws != "permutation" or (options.rounds or 0) % len(options.tasks):
        return times
    for k, task in enumerate(options.tasks):
        curves = [
            (_clock(table[series, "learning_frames"][1], options), table[series, "learning_return"][1])
            for series in (agent_series(team, task, i) for i in range(size_of(team, options)))
        ]
        if reference.defined[k]:
            runs = [[Curve(frames[s], values[s]) for frames, values in curves] for s in range(len(curves[0][0]))]
            alone = float(reference.isolated[:, k].mean())
            times[task] = agent_time(runs, float(reference.random[k]), alone, reference.frames)
    return times


def _clock(frames: Array, options: LifelongOptions) -> Array:
    """Frames for a task since it was first met, from those of each visit: ``[S, evaluations]`` both."""
    visits = frames.reshape(len(frames), -1, options.evals + 1)
    ends = visits[..., -1:]
    return (visits + ends.cumsum(1) - ends).reshape(frames.shape)


def whole_time_of(team: str, table: Table, options: LifelongOptions, reference: Reference) -> AgentTime | None:
    """AT at ``WHOLE`` of the mean over tasks, in the isolated agent's frames for all rounds.

    An agent's clock is the frames that it has played itself, and is read when a round ends. None where that cannot be
    told: no task has a scale, or with seeds that did not meet the same tasks equally often.
    """
    after, met = returns_after(team, table, options), tasks_met(team, table, options)
    ends = options.evals + 1  # evaluations of a round
    frames = np.zeros(met.shape)
    for s, i, t in np.ndindex(met.shape):
        series = agent_series(team, options.tasks[met[s, i, t]], i), "learning_frames"
        visit = int((met[s, i, :t] == met[s, i, t]).sum())
        if series not in table:
            return None
        frames[s, i, t] = table[series][1][s, (visit + 1) * ends - 1]
    kept = reference.defined
    if not kept.any():
        return None
    clock = frames.cumsum(-1)
    runs = [[Curve(clock[s, i], after[s, i][:, kept]) for i in range(met.shape[1])] for s in range(len(met))]
    budget = met.shape[2] * reference.frames
    return agent_time(runs, reference.random[kept], reference.isolated.mean(0)[kept], budget, (WHOLE,))


# ---- what is printed ----------------------------------------------------------------------------------------------


def findings(table: Table, options: LifelongOptions) -> list[Finding]:
    """The numbers to report of every team."""
    reference = Reference(table, options)
    return [finding for team in teams(options) for finding in _of_team(team, table, options, reference)]


def transfers(curves: Curves, options: LifelongOptions) -> list[Finding]:
    """Forward transfer of every team: seeds meet the tasks in orders of their own, and so share few of these curves."""
    reference = Reference(shared(curves, list(curves[ISOLATED, "frames"])), options)
    values = {team: transfer_of(team, curves, options, reference) for team in teams(options)}
    return [each for team in values for each in _defined(f"{team}: forward transfer", values[team], TRANSFER)]


def _of_team(team: str, table: Table, options: LifelongOptions, reference: Reference) -> list[Finding]:
    found = [
        Finding(f"{team}: {name}", table[team, name][1][:, -1], METRICS[name].unit)
        for name in ("frames", "updates", "traffic", "right", "wrong")
    ]
    after = returns_after(team, table, options)
    found += [Finding(f"{task_series(team, m)}", after[:, :, -1, k].mean(1), "return in the end, per episode")
              for k, m in enumerate(options.tasks)]  # fmt: skip
    found += _defined(f"{team}: forgetting", forgetting_of(team, table, options, reference), "of 1, isolated")
    if team != ISOLATED:
        reward = reward_of(team, table, options, reference)
        values = np.array([defined_mean(row) for row in reward.scores])
        found += _defined(f"{team}: AR", values, "1: isolated, 0: random")
        if reward.best_of_5 is not None:
            best = np.array([defined_mean(reward.best_of_5)])
            found += _defined(f"{team}: AR, best of 5 seeds", best, "1: isolated, 0: random")
    return found + _times(team, list(times_of(team, table, options, reference).values()))


def _defined(name: str, values: Array, unit: str) -> list[Finding]:
    """Nothing where a seed has no such number."""
    return [] if np.isnan(values).any() else [Finding(name, values, unit)]


def _times(team: str, times: Sequence[AgentTime]) -> list[Finding]:
    """AT: mean over agents and tasks of each seed; a lower bound is one number, as nobody knows its interval."""
    found = []
    for j, level in enumerate(LEVELS if times else ()):
        share = np.mean([each.time[..., j].mean(1) for each in times], axis=0)
        never = np.mean([each.censored[..., j].mean(1) for each in times], axis=0)
        name, unit = f"{team}: AT {100 * level:g} %", "of the isolated agent's frames"
        if never.any():
            seeds = f", mean of {len(share)} seeds" if len(share) > 1 else ""
            found.append(Finding(f"{name} (lower bound{seeds})", share.mean(keepdims=True), unit))
            found.append(Finding(f"{name} never reached", never, "share of agents and tasks"))
        else:
            found.append(Finding(name, share, unit))
    return found
