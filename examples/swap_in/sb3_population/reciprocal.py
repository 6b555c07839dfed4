"""A population of stable-baselines3 learners on Pendulum-v1, each with an environment and a replay of its own.

By default TD3, otherwise DDPG: --algorithm ddpg.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from stable_baselines3 import DDPG, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.noise import NormalActionNoise

from marl.reciprocity import HookedCritics

ALGORITHMS = {"td3": TD3, "ddpg": DDPG}
LEARNERS, TURN = 3, 100


def train(steps: int, seed: int, algorithm: str = "td3", kappa: float = 0.5) -> list[TD3]:
    """The learners after so many steps each; they take turns of 100 steps."""
    torch.set_num_threads(1)
    models = [
        ALGORITHMS[algorithm](
            "MlpPolicy",
            make_vec_env("Pendulum-v1", seed=1000 * seed + i),
            learning_starts=200,
            batch_size=128,
            tau=0.02,
            gamma=0.98,
            action_noise=NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)),
            policy_kwargs={"net_arch": [64, 64]},
            seed=1000 * seed + i,
        )
        for i in range(LEARNERS)
    ]
    HookedCritics([model.critic_target for model in models], kappa, graph="nearest", neighbours=1, adjacency="gaussian")
    for done in range(0, steps, TURN):
        for model in models:
            model.learn(min(TURN, steps - done), reset_num_timesteps=False)
    return models


def evaluate(model: TD3) -> float:
    """Mean return of 20 episodes without exploration, which begin alike for all."""
    return float(evaluate_policy(model, make_vec_env("Pendulum-v1", 20, seed=10**6), n_eval_episodes=20)[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="td3")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kappa", type=float, default=0.5)
    args = parser.parse_args()
    models = train(args.steps, args.seed, args.algorithm, args.kappa)
    print("return", np.mean([evaluate(model) for model in models]))
