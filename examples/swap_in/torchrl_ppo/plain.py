"""Three agents, each with pendulums of its own, learn to swing up with TorchRL's ClipPPOLoss and GAE."""

from __future__ import annotations

import argparse
import math

import torch
from tensordict import TensorDict
from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MultiAgentMLP, ProbabilisticActor, TanhNormal
from torchrl.objectives import ClipPPOLoss, ValueEstimators

AGENTS, COPIES, EPISODE, ROLLOUT, EPOCHS, MINIBATCHES, GAMMA, LAMBDA = 3, 32, 200, 50, 8, 4, 0.95, 0.9
OBSERVATION, VALUE = ("agents", "observation"), ("agents", "state_value")


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


def make_loss() -> ClipPPOLoss:
    parameters = [("agents", "loc"), ("agents", "scale")]
    mean = nn.Sequential(network(3, 1), AddStateIndependentNormalScale(1))
    actor = ProbabilisticActor(
        TensorDictModule(mean, in_keys=[OBSERVATION], out_keys=parameters),
        in_keys=parameters,
        out_keys=[("agents", "action")],
        distribution_class=TanhNormal,
        return_log_prob=True,
        log_prob_key=("agents", "action_log_prob"),
    )
    critic = TensorDictModule(network(3, 1), in_keys=[OBSERVATION], out_keys=[VALUE])
    loss = ClipPPOLoss(
        actor, critic, entropy_coeff=0.0, normalize_advantage=True, normalize_advantage_exclude_dims=(1,)
    )
    names = ("action", "reward", "done", "terminated")
    loss.set_keys(value=VALUE, sample_log_prob=("agents", "action_log_prob"), **{k: ("agents", k) for k in names})
    loss.make_value_estimator(ValueEstimators.GAE, gamma=GAMMA, lmbda=LAMBDA)
    return loss


def train(steps: int, seed: int) -> ClipPPOLoss:
    """After each ``ROLLOUT`` steps of the copies, ``EPOCHS`` passes over them; rewards are divided by 16."""
    torch.manual_seed(seed)
    loss = make_loss()
    optimiser = torch.optim.Adam(loss.parameters(), lr=1e-3)
    never = torch.zeros(COPIES, AGENTS, 1, dtype=torch.bool)
    state, rollout = start(COPIES), []
    for step in range(1, steps + 1):
        now = act(loss, state)
        following, reward = swing(state, now["agents", "action"])
        limit = never | (step % EPISODE == 0)  # a time limit is no end
        after = {"observation": observe(following), "reward": reward / 16, "done": limit, "terminated": never}
        now["next"] = TensorDict({"agents": after}, [COPIES])
        rollout.append(now)
        state = start(COPIES) if step % EPISODE == 0 else following
        if len(rollout) == ROLLOUT:
            learn(loss, optimiser, torch.stack(rollout, 1))  # [E, T]
            rollout = []
    return loss


def learn(loss: ClipPPOLoss, optimiser: torch.optim.Optimizer, data: TensorDict) -> None:
    for _ in range(EPOCHS):
        with torch.no_grad():
            parameters = {"params": loss.critic_network_params, "target_params": loss.target_critic_network_params}
            loss.value_estimator(data, **parameters)
        rows = data.reshape(-1)
        for part in torch.randperm(len(rows)).chunk(MINIBATCHES):
            losses = loss(rows[part])
            optimiser.zero_grad()
            sum(value for key, value in losses.items() if key.startswith("loss_")).backward()
            optimiser.step()


@torch.no_grad()
def act(loss: ClipPPOLoss, state: Tensor, explore: bool = True) -> TensorDict:
    kind = ExplorationType.RANDOM if explore else ExplorationType.DETERMINISTIC
    with loss.actor_network_params.to_module(loss.actor_network), set_exploration_type(kind):
        return loss.actor_network(TensorDict({"agents": {"observation": observe(state)}}, [len(state)]))


def evaluate(loss: ClipPPOLoss) -> float:
    """Mean return of an episode without noise, over the agents and 32 starts that are always the same."""
    state, total = start(32, torch.Generator().manual_seed(0)), 0.0
    for _ in range(EPISODE):
        state, reward = swing(state, act(loss, state, explore=False)["agents", "action"])
        total += reward.mean().item()
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("return", evaluate(train(arguments.steps, arguments.seed)))
