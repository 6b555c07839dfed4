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

    def work() -> float:
        for model in models:
            model.train(gradient_steps=1, batch_size=model.batch_size)
        return 1.0

    for _ in range(20):
        work()
    return work
