"""BenchMARL's MADDPG on VMAS: ``python plain.py --steps 40000 --seed 0``."""

from __future__ import annotations

import argparse
import tempfile

import torch
from benchmarl.algorithms import MaddpgConfig
from benchmarl.environments import VmasTask
from benchmarl.experiment import Callback, Experiment, ExperimentConfig
from benchmarl.models.mlp import MlpConfig

FRAMES = 1000  # environment steps of one of BenchMARL's iterations


class Returns(Callback):
    """Mean return of each evaluation: the same 50 starts each time, without exploration; a mean over agents."""

    def __init__(self) -> None:
        super().__init__()
        self.means: list[float] = []

    def on_evaluation_end(self, rollouts: list) -> None:
        rewards = [rollout["next", group, "reward"] for rollout in rollouts for group in self.experiment.group_map]
        self.means.append(torch.stack([reward.sum(0).mean() for reward in rewards]).mean().item())


def train(steps: int, seed: int) -> Experiment:
    """The finished experiment; its first callback knows the returns."""
    algorithm = MaddpgConfig.get_from_yaml()
    algorithm.share_param_critic = False
    config = ExperimentConfig.get_from_yaml()
    config.share_policy_params = False
    config.max_n_frames = steps
    config.gamma, config.lr = 0.95, 1e-3
    config.off_policy_collected_frames_per_batch = FRAMES
    config.off_policy_n_envs_per_worker = 10
    config.off_policy_n_optimizer_steps = 100
    config.off_policy_train_batch_size, config.off_policy_memory_size = 256, 100_000
    config.evaluation_interval, config.evaluation_episodes = max(steps // 10 // FRAMES, 1) * FRAMES, 50
    config.evaluation_static = config.create_json = True
    config.loggers, config.render = [], False
    task = VmasTask.SIMPLE_SPREAD.get_from_yaml()
    task.config["max_steps"] = 50
    with tempfile.TemporaryDirectory() as config.save_folder:
        experiment = Experiment(
            task,
            algorithm,
            MlpConfig(num_cells=[64, 64], layer_class=torch.nn.Linear, activation_class=torch.nn.ReLU),
            seed=seed,
            config=config,
            callbacks=[Returns()],
        )
        experiment.run()
    return experiment


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40_000, help="environment steps, a multiple of 1000")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    experiment = train(args.steps, args.seed)
    print("return", experiment.callbacks[0].means[-1])
