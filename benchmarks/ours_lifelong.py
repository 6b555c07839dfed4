"""This project's side of the rows of ``lifelong.py``."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.pair import Work
from benchmarks.terms import AtariTerms
from marl.algos.dqn import DQN, DQNConfig
from marl.envs.base import Step
from marl.lifelong.codec import pack, raw_size
from marl.lifelong.hub import Hub
from marl.lifelong.options import LifelongOptions
from marl.lifelong.round import Round
from marl.lifelong.simnet import THRESHOLD, Fingerprint, initial_weights
from marl.lifelong.tasks import Tasks
from marl.processes import keep_memory

ATARI = DQNConfig(hidden=(128, 128), lr=5e-4, batch_size=128)
"""The learner of ``docs/lifelong/index.md``'s Atari column; all else is DQN's default."""


def atari_frames(**settings: Any) -> Work:
    """Frames of the game, learning included, of one lifelong agent that learns its first task."""
    terms = AtariTerms(**settings)
    options = {
        "frame_skip": terms.frame_skip,
        "noop_max": terms.noop_max,
        "repeat_action_probability": terms.sticky,
    }
    config = DQNConfig(
        double=False,
        hidden=tuple(terms.hidden),
        lr=terms.lr,
        gamma=terms.gamma,
        batch_size=terms.batch,
        buffer_size=terms.replay,
        warmup=terms.warmup,
        update_every=terms.update_every,
        target_interval=terms.target_every,
        epsilon_final=terms.epsilon,
        epsilon_decay=1.0,
        max_grad_norm=terms.max_grad_norm,
    )
    now, learner = learning([f"atari/{terms.game}-ram"], config, terms.copies, options, terms.workers)

    def work() -> float:
        before = now.done
        while now.done < before + terms.chunk:
            now.advance(learner)
        return float((now.done - before) * terms.frame_skip)

    return work


def atari_steps(agents: int, copies: int, emulator: bool) -> Work:
    """Steps of ``marl lifelong`` on Krull's memory: every agent acts in all its copies, remembers, draws and learns.

    A unit is one update of every network, with its share of the acting.

    Args:
        agents: stacked.
        copies: of each agent's game.
        emulator: play the game; False: what 64 steps of it have shown comes again and again.
    """
    now, learner = learning(["atari/Krull-ram"] * agents, ATARI, copies, {})
    if not emulator:
        now.env = Again(now)  # type: ignore[assignment]

    def work() -> float:
        before = now.updates
        while now.updates == before:
            now.advance(learner)
        return float(now.updates - before)

    return work


def learning(
    tasks: Sequence[str], config: DQNConfig, copies: int, env: dict[str, Any], workers: int = 0
) -> tuple[Round, DQN]:
    """A round whose warm-up is over twice, one task for each agent, and its learner."""
    keep_memory()  # as `marl lifelong` does
    known = Tasks.of(list(dict.fromkeys(tasks)), env)
    seeds = list(range(len(tasks)))
    learner = DQN(known.spec, [config] * len(tasks), seeds)
    options = LifelongOptions(tasks=known.names, frames=10**9, copies=copies, env_workers=workers, dqn=config)
    now = Round(tasks, seeds, [0] * len(tasks), {}, [[] for _ in tasks], known, options)
    while now.done < 2 * config.warmup:
        now.advance(learner)
    return now, learner


class Again:
    """Stands for a round's environment: says what 64 of its steps, with random actions, said."""

    def __init__(self, now: Round) -> None:
        assert now.env is not None
        self.spec, agents = now.env.spec, len(now.tasks)
        actions = torch.randint(self.spec.action_size, (64, agents, 1, now.copies))
        self.steps = itertools.cycle([now.env.step(action) for action in actions])

    def step_async(self, action: torch.Tensor) -> None:
        pass

    def step_wait(self) -> Step:
        return next(self.steps)

    def events(self) -> list[str]:
        return []


def hub_milliseconds(tasks: int, questions: int = 100) -> tuple[float, float, float]:
    """Of a hub with so many tasks of Atari's SimNet: to open it, its first query, and the slowest of many others."""
    spec = Tasks.of(["atari/Krull-ram"], {}).spec
    shapes = {name: w.shape for name, w in initial_weights(spec).items()}
    generator = torch.Generator().manual_seed(0)

    def fingerprint() -> Fingerprint:
        parts = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        norm = torch.cat([x.flatten() for x in parts.values()]).norm()
        return {name: x / norm for name, x in parts.items()}

    with tempfile.TemporaryDirectory() as folder:
        with Hub(Path(folder), THRESHOLD) as hub:
            known = [fingerprint() for _ in range(tasks)]
            numbers = [hub.meet(each, "agent").task for each in known]
        start = time.perf_counter()
        with Hub(Path(folder), THRESHOLD) as hub:
            times = [time.perf_counter() - start]
            for k in range(1 + questions):
                start = time.perf_counter()
                match = hub.query(known[k % tasks])
                times.append(time.perf_counter() - start)
                assert match is not None and match.task == numbers[k % tasks]
    return 1e3 * times[0], 1e3 * times[1], 1e3 * max(times[2:])


def compression(games: Sequence[str], steps: int, copies: int = 8) -> dict[str, float]:
    """How many times smaller each game's replay is on its way to the hub than in memory, an observation stored once.

    Args:
        games: whose memories are played, an agent each.
        steps: that each agent plays and learns.
        copies: of each game.
    """
    config = DQNConfig(hidden=(128, 128), lr=5e-4, batch_size=128, epsilon_decay=steps / 4)
    now, learner = learning([f"atari/{game}-ram" for game in games], config, copies, {})
    while now.done < steps:
        now.advance(learner)
    bundles = [now.experience(k) for k in range(len(games))]
    return {game: raw_size(bundle) / len(pack(bundle)) for game, bundle in zip(games, bundles, strict=True)}
