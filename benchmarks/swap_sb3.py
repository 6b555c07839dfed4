"""Learners of stable-baselines3, as they are and with reciprocity in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.pair import Work
from marl.reciprocity import HookedCritics

LEARNERS, ROWS = 3, 10_000


def updates(algorithm: str, **reciprocity: Any) -> Work:
    """Updates of three learners on Pendulum-v1, networks (400, 300) and batch (256) as by default.

    One piece of work is a whole round of updates: of TD3's only the last moves the actor and costs more.

    Args:
        algorithm: ``td3`` or ``ddpg``.
        reciprocity: of ``HookedCritics``; nothing: without.
    """
    from stable_baselines3 import DDPG, TD3
    from stable_baselines3.common.logger import Logger

    torch.manual_seed(0)
    learner = {"td3": TD3, "ddpg": DDPG}[algorithm]
    models = [learner("MlpPolicy", "Pendulum-v1", buffer_size=ROWS, seed=i) for i in range(LEARNERS)]
    rng = np.random.default_rng(0)
    for model in models:
        model.set_logger(Logger(None, []))
        memory = model.replay_buffer
        for rows in (memory.observations, memory.next_observations, memory.actions, memory.rewards):
            rows[:] = rng.normal(size=rows.shape)
        memory.full = True
    if reciprocity:
        HookedCritics([model.critic_target for model in models], **reciprocity)

    round_length = models[0].policy_delay

    def work() -> float:
        for _ in range(round_length):
            for model in models:
                model.train(gradient_steps=1, batch_size=model.batch_size)
        return float(round_length)

    for _ in range(10):
        work()
    return work
