"""One stable-baselines3 learner on Pendulum-v1.

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


def train(steps: int, seed: int, algorithm: str = "td3", kappa: float = 0.5) -> TD3:
    """The learner after so many steps."""
    torch.set_num_threads(1)
    model = ALGORITHMS[algorithm](
        "MlpPolicy",
        make_vec_env("Pendulum-v1", seed=seed),
        learning_starts=200,
        batch_size=128,
        tau=0.02,
        gamma=0.98,
        action_noise=NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)),
        policy_kwargs={"net_arch": [64, 64]},
        seed=seed,
    )
    HookedCritics([model.critic_target], kappa, graph="self", adjacency="gaussian")
    return model.learn(steps)


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
    model = train(args.steps, args.seed, args.algorithm, args.kappa)
    print("return", evaluate(model))
