"""Options of a run of two games in small; and a finished run whose numbers are made up, for a reader to know them."""

import dataclasses

import numpy as np

from marl.algos.dqn import DQNConfig
from marl.classic.experiments.base import Row
from marl.classic.results import FORMAT, SeedLog, merge
from marl.config import to_json
from marl.lifelong.findings import METRICS, RANDOM, size_of, teams
from marl.lifelong.options import LifelongOptions
from marl.lifelong.records import agent_series, task_series
from marl.runfolder import write_config

TINY = LifelongOptions(
    tasks=("small/catch", "small/gather"),
    agents=2,
    frames=96,
    copies=4,
    identify="told",
    ewc_samples=4,
    evals=2,
    eval_episodes=2,
    dqn=DQNConfig(hidden=(8,), warmup=40, batch_size=8),
    env={"max_steps": 8},
)
"""A round is 24 steps of 4 copies. Updates come at 44, 48, ..., 96 steps: 14."""

OPTIONS = LifelongOptions(tasks=("small/catch", "small/gather"), agents=2, frames=1000, evals=2)


def made_up_run(folder, rewards, learning, options=OPTIONS, seeds=(0,), traffic=0.0, orders=None):
    """A run in which a random policy earns 0.

    Args:
        folder: to make.
        rewards: team -> seed -> return of every agent on every task after each round, ``[rounds, M]``.
        learning: team -> seed -> the evaluations of a round, as (frames, returns) of 3 numbers each.
        options: ``M`` tasks.
        seeds: of the run.
        traffic: bytes after each round of teams that share.
        orders: seed -> the task of every agent in each round; none: task t in round t, modulo M.
    """
    folder.mkdir()
    content = {"format": FORMAT, "experiment": "lifelong", "options": to_json(options), "seeds": list(seeds)}
    write_config(folder, content | {"command": "marl lifelong made up"})
    for seed in seeds:
        log = SeedLog(folder, seed, METRICS)
        log.write([Row(task_series(RANDOM, task), "agent_return", 0, 0.0) for task in options.tasks])
        for team in teams(options):
            after = np.array(rewards[team][seed])
            met = orders[seed] if orders else [t % len(options.tasks) for t in range(len(after))]
            log.write(list(_rows(team, after, learning[team][seed], options, traffic, met)))
        log.close()
    merge(folder, seeds)
    return folder


def _rows(team, rewards, learning, options, traffic, met):
    agents, (frames, returns) = size_of(team, options), learning
    for t, after in enumerate(rewards):
        totals = {"frames": agents * frames[-1] * (t + 1), "updates": 1, "right": 0, "wrong": 0}
        totals["traffic"] = traffic * (t + 1) if team.startswith("shared") else 0.0
        for name, value in totals.items():
            yield Row(team, name, t + 1, value)
        for m, task in enumerate(options.tasks):
            yield Row(task_series(team, task), "return", t + 1, after[m])
            for i in range(agents):
                yield Row(agent_series(team, task, i), "agent_return", t + 1, after[m])
        for i in range(agents):
            yield Row(f"{team}, agent {i}", "task", t + 1, met[t])
            name = agent_series(team, options.tasks[met[t]], i)
            behind = met[:t].count(met[t]) * len(frames)  # evaluations of visits before
            for x, (clock, value) in enumerate(zip(frames, returns, strict=True), behind):
                yield Row(name, "learning_frames", x, clock)
                yield Row(name, "learning_return", x, value)


def same(**changes):
    """``OPTIONS`` with other values."""
    return dataclasses.replace(OPTIONS, **changes)
