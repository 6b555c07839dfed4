"""TD3 on Pendulum-v1 in one file, as in CleanRL, for several learners side by side (--learners 1: one alone)."""

import argparse
import copy
import sys
from dataclasses import dataclass, fields
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn, optim

from marl.reciprocity import HookedCritics


@dataclass
class Args:
    steps: int = 6000  # of each learner
    seed: int = 0
    learners: int = 3
    kappa: float = 0.5
    env_id: str = "Pendulum-v1"
    hidden: int = 64
    learning_rate: float = 1e-3
    gamma: float = 0.99
    tau: float = 0.005
    batch_size: int = 256
    policy_noise: float = 0.2
    noise_clip: float = 0.5
    exploration_noise: float = 0.1
    learning_starts: int = 500
    policy_frequency: int = 2


class QNetwork(nn.Module):
    def __init__(self, env: Any, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(env.observation_space.shape[0] + env.action_space.shape[0], hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, 1)

    def forward(self, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(torch.cat([x, a], 1))))))


class Actor(nn.Module):
    def __init__(self, env: Any, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(env.observation_space.shape[0], hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc_mu = nn.Linear(hidden, env.action_space.shape[0])
        self.high = float(env.action_space.high[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc_mu(F.relu(self.fc2(F.relu(self.fc1(x))))).tanh() * self.high


class Learner:
    def __init__(self, args: Args, number: int) -> None:
        self.args, self.env = args, gym.make(args.env_id)
        self.env.action_space.seed(1000 * args.seed + number)
        self.obs, _ = self.env.reset(seed=1000 * args.seed + number)
        self.buffer: list[tuple[Any, ...]] = []
        self.actor = Actor(self.env, args.hidden)
        self.qf1, self.qf2 = QNetwork(self.env, args.hidden), QNetwork(self.env, args.hidden)
        self.target_actor = copy.deepcopy(self.actor)
        self.qf1_target, self.qf2_target = copy.deepcopy(self.qf1), copy.deepcopy(self.qf2)
        self.q_optimizer = optim.Adam([*self.qf1.parameters(), *self.qf2.parameters()], lr=args.learning_rate)
        self.actor_optimizer = optim.Adam(self.actor.parameters(), lr=args.learning_rate)

    @torch.no_grad()
    def step(self, random: bool) -> None:
        high = self.actor.high
        if random:
            action = self.env.action_space.sample()
        else:
            action = self.actor(torch.tensor(self.obs).unsqueeze(0)).squeeze(0)
            noise = torch.randn_like(action) * high * self.args.exploration_noise
            action = (action + noise).clamp(-high, high).numpy()
        next_obs, reward, terminated, truncated, _ = self.env.step(action)
        self.buffer.append((self.obs, next_obs, action, [float(reward)], [float(terminated)]))
        self.obs = self.env.reset()[0] if terminated or truncated else next_obs

    def sample(self) -> list[torch.Tensor]:
        rows = [self.buffer[k] for k in torch.randint(len(self.buffer), (self.args.batch_size,)).tolist()]
        return [torch.tensor(np.array(column), dtype=torch.float32) for column in zip(*rows, strict=True)]

    @torch.no_grad()
    def target(self, next_obs: torch.Tensor, rewards: torch.Tensor, dones: torch.Tensor) -> torch.Tensor:
        high = self.actor.high
        next_actions = self.target_actor(next_obs)
        noise = torch.randn_like(next_actions) * self.args.policy_noise
        noise = noise.clamp(-self.args.noise_clip, self.args.noise_clip) * high
        next_actions = (next_actions + noise).clamp(-high, high)
        qf1_next = self.qf1_target(next_obs, next_actions)
        qf2_next = self.qf2_target(next_obs, next_actions)
        return rewards + (1 - dones) * self.args.gamma * torch.min(qf1_next, qf2_next)

    def update(self, number: int, data: list[torch.Tensor]) -> None:
        obs, next_obs, actions, rewards, dones = data
        next_q_value = self.target(next_obs, rewards, dones)
        q_loss = F.mse_loss(self.qf1(obs, actions), next_q_value) + F.mse_loss(self.qf2(obs, actions), next_q_value)
        self.q_optimizer.zero_grad()
        q_loss.backward()
        self.q_optimizer.step()
        if number % self.args.policy_frequency == 0:
            actor_loss = -self.qf1(obs, self.actor(obs)).mean()
            self.actor_optimizer.zero_grad()
            actor_loss.backward()
            self.actor_optimizer.step()
            online = [*self.actor.parameters(), *self.qf1.parameters(), *self.qf2.parameters()]
            slow = [*self.target_actor.parameters(), *self.qf1_target.parameters(), *self.qf2_target.parameters()]
            for p, target in zip(online, slow, strict=True):
                target.data.lerp_(p.data, self.args.tau)


def train(steps: int, seed: int, **settings: Any) -> list[Learner]:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    args = Args(steps=steps, seed=seed, **settings)
    learners = [Learner(args, number) for number in range(args.learners)]
    HookedCritics([(each.qf1_target, each.qf2_target) for each in learners], args.kappa, adjacency="gaussian")
    for global_step in range(args.steps):
        for learner in learners:
            learner.step(random=global_step < args.learning_starts)
            if global_step >= args.learning_starts:
                learner.update(global_step, learner.sample())
    return learners


@torch.no_grad()
def evaluated(learner: Learner, episodes: int = 20) -> float:
    """The mean return without noise of as many episodes, from the same starts each time."""
    total, env = 0.0, gym.make(learner.args.env_id)
    for episode in range(episodes):
        obs, over = env.reset(seed=12345 + episode)[0], False
        while not over:
            action = learner.actor(torch.tensor(obs).unsqueeze(0)).squeeze(0).numpy()
            obs, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
    return total / episodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for setting in fields(Args):
        parser.add_argument(f"--{setting.name.replace('_', '-')}", type=type(setting.default), default=setting.default)
    returns = [evaluated(learner) for learner in train(**vars(parser.parse_args()))]
    print("of each learner:", *(round(value, 1) for value in returns), file=sys.stderr)
    print("return", sum(returns) / len(returns))


if __name__ == "__main__":
    main()
