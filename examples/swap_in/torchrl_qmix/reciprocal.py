"""Three agents, each with pendulums of its own, learn to swing up as a team with TorchRL's QMixerLoss."""

from __future__ import annotations

import argparse
import math

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.modules import MultiAgentMLP, QMixer, QValueModule, SafeSequential
from torchrl.objectives import QMixerLoss, SoftUpdate, ValueEstimators

from marl.reciprocity import Reciprocal
from marl.swap.torchrl import blend_targets

AGENTS, COPIES, EPISODE, BATCH, GAMMA = 3, 4, 200, 128, 0.95


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


def make_loss() -> QMixerLoss:
    observation, values = ("agents", "observation"), ("agents", "action_value")
    chosen, action = ("agents", "chosen_action_value"), ("agents", "action")
    local = SafeSequential(
        TensorDictModule(network(3, 3), in_keys=[observation], out_keys=[values]),
        QValueModule(action_value_key=values, out_keys=[action, values, chosen], action_space="categorical"),
    )
    mixer = TensorDictModule(
        QMixer(state_shape=(AGENTS, 3), mixing_embed_dim=32, n_agents=AGENTS, device="cpu"),
        in_keys=[chosen, observation],
        out_keys=["chosen_action_value"],
    )
    loss = QMixerLoss(local, mixer, action_space="categorical", delay_value=True)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
    return loss


def train(steps: int, seed: int, kappa: float = 0.5) -> QMixerLoss:
    """One update for each step of the copies; the team earns the agents' mean reward, divided by 16."""
    torch.manual_seed(seed)
    loss = make_loss()
    blend_targets(loss, Reciprocal(AGENTS, kappa, adjacency="gaussian"))
    targets, optimiser = SoftUpdate(loss, tau=0.01), torch.optim.Adam(loss.parameters(), lr=1e-3)
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(200_000), batch_size=BATCH)
    never = torch.zeros(COPIES, 1, dtype=torch.bool)  # a time limit is no end
    state = start(COPIES)
    for step in range(1, steps + 1):
        random = torch.rand(COPIES, AGENTS) < max(0.1, 1 - step / 1000)
        action = torch.where(random, torch.randint(3, (COPIES, AGENTS)), act(loss, state))
        following, reward = swing(state, action.unsqueeze(-1) - 1)
        now, then = {"observation": observe(state), "action": action}, {"observation": observe(following)}
        after = {"agents": then, "reward": reward.mean(1) / 16, "done": never, "terminated": never}
        replay.extend(TensorDict({"agents": now, "next": after}, [COPIES]))
        state = start(COPIES) if step % EPISODE == 0 else following
        if len(replay) >= 2 * BATCH:
            value = loss(replay.sample())["loss"]
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            targets.step()
    return loss


@torch.no_grad()
def act(loss: QMixerLoss, state: Tensor) -> Tensor:
    """``[E, N]``: 0, 1 or 2."""
    with loss.local_value_network_params.to_module(loss.local_value_network):
        seen = TensorDict({"agents": {"observation": observe(state)}}, [len(state)])
        return loss.local_value_network(seen)["agents", "action"]


def evaluate(loss: QMixerLoss) -> float:
    """Mean return of an episode without noise, over the agents and 32 starts that are always the same."""
    state, total = start(32, torch.Generator().manual_seed(0)), 0.0
    for _ in range(EPISODE):
        state, reward = swing(state, act(loss, state).unsqueeze(-1) - 1)
        total += reward.mean().item()
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kappa", type=float, default=0.5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("return", evaluate(train(arguments.steps, arguments.seed, arguments.kappa)))
