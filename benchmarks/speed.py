"""How fast this project is beside others: ``python benchmarks/speed.py [--json] [--only NAME ...]``.

Each row runs both sides in processes of their own that take turns, and reports the median of the turns' ratios. The
rivals come with ``pip install -e '.[bench]'`` or, those that need a virtual environment of their own, with ``python
benchmarks/venvs.py``; a rival that is not installed leaves its row without an answer.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import ours, plain, rivals, rivals_benchmarl, rivals_jaxmarl, rivals_torchrl, swap_rows
from benchmarks.duels import Duel, Row, main
from benchmarks.pair import Setup

SPREAD, HOPPER = "mpe/simple_spread_v3", "mujoco/Hopper-v5"
WITH, WITHOUT = {"reciprocity.kappa": 0.5}, {"reciprocity.kappa": 0.0}


def in_a_plain_loop(**reciprocity: Any) -> Duel:
    return Duel((plain.updates, reciprocity), (plain.updates, {}), "update", 1.15, cost=True)


def training(**settings: Any) -> tuple[Setup, Mapping[str, Any]]:
    return ours.training_steps, settings


DUELS: dict[str, Duel] = {
    "mpe, 1024 copies : mpe2": Duel(
        (ours.mpe_steps, {"copies": 1024}), (rivals.mpe2_steps, {}), "environment steps", 300
    ),
    "mpe, 1024 copies : JaxMARL, a call a step": Duel(
        (ours.mpe_steps, {"copies": 1024}),
        (rivals.jaxmarl_steps, {"copies": 1024, "unroll": False}),
        "environment steps",
        1,
    ),
    "mpe, 1024 copies : JaxMARL, 25 steps a call": Duel(
        (ours.mpe_steps, {"copies": 1024}),
        (rivals.jaxmarl_steps, {"copies": 1024, "unroll": True}),
        "environment steps",
        1,
    ),
    "maddpg, N = 3 : loop of networks": Duel(
        (ours.maddpg_updates, {"agents": 3}), (rivals.loop_maddpg_updates, {"agents": 3}), "updates", 2
    ),
    "maddpg, N = 6 : loop of networks": Duel(
        (ours.maddpg_updates, {"agents": 6}), (rivals.loop_maddpg_updates, {"agents": 6}), "updates", 2
    ),
    "td3, one learner : stable-baselines3": Duel(
        (ours.td3_updates, {"learners": 1}), (rivals.sb3_td3_updates, {}), "learner updates", 1
    ),
    "td3, four learners : stable-baselines3": Duel(
        (ours.td3_updates, {"learners": 4}), (rivals.sb3_td3_updates, {}), "learner updates", 1
    ),
    "td3, four learners : one learner": Duel(
        (ours.td3_updates, {"learners": 4}), (ours.td3_updates, {"learners": 1}), "learner updates", 1
    ),
    "reciprocity, maddpg on spread : without": Duel(
        training(algorithm="maddpg", environment=SPREAD, **WITH),
        training(algorithm="maddpg", environment=SPREAD, **WITHOUT),
        "training step",
        1.15,
        cost=True,
    ),
    "reciprocity, td3 on 3 Hoppers : without": Duel(
        training(algorithm="td3", environment=HOPPER, agents=3, **WITH),
        training(algorithm="td3", environment=HOPPER, agents=3, **WITHOUT),
        "training step",
        1.15,
        cost=True,
    ),
    "reciprocity, plain loop, complete : without": in_a_plain_loop(kappa=0.5),
    "reciprocity, plain loop, one neighbour : without": in_a_plain_loop(kappa=0.5, graph="nearest", neighbours=1),
    "reciprocity, plain loop, self : without": in_a_plain_loop(kappa=0.5, graph="self"),
    "reciprocity, plain loop, kappa 0 : without": in_a_plain_loop(kappa=0.0),
    **swap_rows.ROWS,
    "population of 8, maddpg on spread : of 1": Duel(
        training(algorithm="maddpg", environment=SPREAD, members=8),
        training(algorithm="maddpg", environment=SPREAD, members=1),
        "training step",
        5,
        cost=True,
    ),
    "mappo on spread : TorchRL's on VMAS": Duel(
        (ours.mappo_steps, {}), (rivals_torchrl.mappo_steps, {}), "environment steps", 3, venv="torchrl"
    ),
    "mappo on spread : BenchMARL's on VMAS": Duel(
        (ours.mappo_steps, {}), (rivals_benchmarl.mappo_steps, {}), "environment steps", 3, venv="benchmarl"
    ),
    "mappo on spread : in JAX on JaxMARL's": Duel(
        (ours.mappo_steps, {}), (rivals_jaxmarl.mappo_steps, {}), "environment steps", None
    ),
    "qmix on smax 3s_vs_5z : in JAX": Duel(
        (ours.qmix_updates, {}), (rivals_jaxmarl.qmix_updates, {}), "training steps", None
    ),
    "gru, N = 3, 100 steps : loop of nn.GRU": Duel((ours.gru_unrolls, {}), (rivals.loop_gru_unrolls, {}), "passes", 1),
}
MEMORY = "replay, a million Hopper transitions"
MEMORY_GOAL = 80.0


def memory() -> Row:
    """A fresh process fills a replay; there is no rival but the goal itself."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        used = pool.submit(ours.replay_megabytes).result()
    return Row(MEMORY, used, None, "MB", None, f"ours < {MEMORY_GOAL:g}", used < MEMORY_GOAL)


if __name__ == "__main__":
    main(__doc__ or "", DUELS, {MEMORY: memory})
