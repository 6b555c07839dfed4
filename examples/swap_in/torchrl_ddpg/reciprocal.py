"""Three agents, each with pendulums of its own, learn to swing up with TorchRL's DDPGLoss or TD3Loss."""

from __future__ import annotations

import argparse
import math

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.modules import MultiAgentMLP
from torchrl.objectives import DDPGLoss, LossModule, SoftUpdate, TD3Loss, ValueEstimators

from marl.reciprocity import Reciprocal
from marl.swap.torchrl import blend_targets

AGENTS, COPIES, EPISODE, BATCH, GAMMA = 3, 4, 200, 128, 0.95
KEYS = {name: ("agents", name) for name in ("state_action_value", "reward", "done", "terminated")}


def start(copies: int, generator: torch.Generator | None = None) -> Tensor:
    """Angles and speeds, ``[E, N, 2]``."""
    low, high = torch.tensor([-math.pi, -1.0]), torch.tensor([math.pi, 1.0])
    return low + (high - low) * torch.rand(copies, AGENTS, 2, generator=generator)


def observe(state: Tensor) -> Tensor:
    angle, speed = state.unbind(-1)
    return torch.stack([angle.cos(), angle.sin(), speed / 8], -1)


def swing(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """One step of Gymnasium's Pendulum-v1; actions ``[E, N, 1]`` in [-1, 1]. Next states and rewards ``[E, N, 1]``."""
    (angle, speed), torque = state.unbind(-1), 2 * action.squeeze(-1)
    off = (angle + math.pi) % (2 * math.pi) - math.pi
    cost = off.square() + 0.1 * speed.square() + 0.001 * torque.square()
    speed = (speed + (15 * angle.sin() + 3 * torque) * 0.05).clamp(-8, 8)
    return torch.stack([angle + speed * 0.05, speed], -1), -cost.unsqueeze(-1)


def network(n_in: int, n_out: int) -> MultiAgentMLP:
    return MultiAgentMLP(
        n_agent_inputs=n_in, n_agent_outputs=n_out, n_agents=AGENTS, centralized=False, share_params=False,
        depth=2, num_cells=64, activation_class=nn.ReLU,
    )  # fmt: skip


def make_loss(name: str) -> LossModule:
    observation, action = ("agents", "observation"), ("agents", "action")
    actor = TensorDictModule(nn.Sequential(network(3, 1), nn.Tanh()), in_keys=[observation], out_keys=[action])
    critic = TensorDictModule(network(4, 1), in_keys=[observation, action], out_keys=[KEYS["state_action_value"]])
    if name == "ddpg":
        loss = DDPGLoss(actor, critic, delay_actor=True)
        loss.set_keys(**KEYS)
    else:
        loss = TD3Loss(actor, critic, bounds=(-1.0, 1.0))
        loss.set_keys(action=action, **KEYS)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
    return loss


def train(steps: int, seed: int, name: str = "ddpg", kappa: float = 0.5) -> LossModule:
    """One update for each step of the copies; rewards are divided by 16 for the critics' sake."""
    torch.manual_seed(seed)
    loss = make_loss(name)
    blend_targets(loss, Reciprocal(AGENTS, kappa, adjacency="gaussian"))
    targets, optimiser = SoftUpdate(loss, tau=0.01), torch.optim.Adam(loss.parameters(), lr=1e-3)
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(200_000), batch_size=BATCH)
    never = torch.zeros(COPIES, AGENTS, 1, dtype=torch.bool)  # a time limit is no end
    state = start(COPIES)
    for step in range(1, steps + 1):
        action = (act(loss, state) + 0.2 * torch.randn(COPIES, AGENTS, 1)).clamp(-1, 1)
        following, reward = swing(state, action)
        after = {"observation": observe(following), "reward": reward / 16, "done": never, "terminated": never}
        now = {"observation": observe(state), "action": action}
        replay.extend(TensorDict({"agents": now, "next": {"agents": after}}, [COPIES]))
        state = start(COPIES) if step % EPISODE == 0 else following
        if len(replay) >= 2 * BATCH:
            losses = loss(replay.sample())
            optimiser.zero_grad()
            sum(value for key, value in losses.items() if key.startswith("loss_")).backward()
            optimiser.step()
            targets.step()
    return loss


@torch.no_grad()
def act(loss: LossModule, state: Tensor) -> Tensor:
    with loss.actor_network_params.to_module(loss.actor_network):
        return loss.actor_network(TensorDict({"agents": {"observation": observe(state)}}, [len(state)]))[
            "agents", "action"
        ]


def evaluate(loss: LossModule) -> float:
    """Mean return of an episode without noise, over the agents and 32 starts that are always the same."""
    state, total = start(32, torch.Generator().manual_seed(0)), 0.0
    for _ in range(EPISODE):
        state, reward = swing(state, act(loss, state))
        total += reward.mean().item()
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loss", choices=["ddpg", "td3"], default="ddpg")
    parser.add_argument("--kappa", type=float, default=0.5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("return", evaluate(train(arguments.steps, arguments.seed, arguments.loss, arguments.kappa)))
