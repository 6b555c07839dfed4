"""An algorithm of one's own: independent Q-learners for discrete actions (Tan 1993, with the networks of DQN).

``python examples/add_algorithm.py`` trains it on simple_spread for a minute. The page
``docs/howto/add-an-algorithm.md`` explains the parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import marl
from marl import registry
from marl.algos.common import Metrics, load_parts, save_parts
from marl.config import option
from marl.envs.base import EnvSpec
from marl.modules.optim import StackedAdam
from marl.modules.stacked import StackedMLP
from marl.ops.discrete import mask_logits
from marl.ops.losses import sum_of_means
from marl.ops.returns import td_target
from marl.population import per_member
from marl.replay import Replay
from marl.streams import Streams
from marl.types import Acted, Batch, State, View


@dataclass(frozen=True)
class IQLConfig:
    """Settings of independent Q-learning."""

    gamma: float = option(0.95, "Discount of one step.", sweep=True, most=1)
    tau: float = option(0.01, "Fraction by which the targets follow at each update.", sweep=True, most=1)
    lr: float = option(1e-3, "Adam's learning rate.", sweep=True)
    epsilon: float = option(0.1, "Probability of a random action while training.", sweep=True, most=1)
    hidden: tuple[int, ...] = option((64, 64), "Widths of the hidden layers.")
    batch_size: int = option(128, "Transitions per update.")
    buffer_size: int = option(100_000, "Transitions that the replay holds, per member.")
    warmup: int = option(1_000, "Environment steps with random actions before the first update.")
    update_every: int = option(1, "Environment steps per update.")


class IQL:
    """P x N Q-networks in one stack; each learns from its own agent's observations, actions and rewards."""

    Config = IQLConfig
    Buffer = Replay
    memory_size = 0  # it notes nothing from step to step
    PARTS = ("q", "target", "optimizer", "explore")

    def __init__(self, spec: EnvSpec, configs: Sequence[IQLConfig], seeds: Sequence[int]) -> None:
        if not spec.discrete:
            raise marl.UserError(f"iql needs discrete actions, {spec.id} has continuous ones; ddpg handles those")
        self.config = configs[0]
        self.gamma, self.tau, self.epsilon = (per_member(configs, name) for name in ("gamma", "tau", "epsilon"))
        sizes = [spec.obs_size, *self.config.hidden, spec.action_size]
        self.q = StackedMLP(Streams(seeds, "init"), spec.n_agents, sizes)
        self.target = self.q.target_copy()
        self.optimizer = StackedAdam(self.q, per_member(configs, "lr"))
        self.explore = Streams(seeds, "explore")
        self.mask = spec.action_mask

    def best(self, q: Tensor, avail: Tensor | None) -> Tensor:
        """Values ``[P, N, B, A]`` with those of actions that may not be taken out of reach."""
        return mask_logits(q, self.mask if avail is None else avail)

    @torch.no_grad()
    def act(self, view: View, explore: bool) -> Acted:
        """``[P, N, E]`` int64."""
        value = self.best(self.q(view.obs), view.avail)
        if explore:
            chance = self.explore.uniform(*value.shape[1:3]) < self.epsilon
            luck = self.best(self.explore.uniform(*value.shape[1:]), view.avail)
            value = torch.where(chance.unsqueeze(-1), luck, value)
        return Acted(value.argmax(-1))

    def update(self, batch: Batch) -> Metrics:
        """One gradient step towards ``r + gamma (1 - terminated) max_a Q'(s', a)``."""
        with torch.no_grad():
            value = self.best(self.target(batch.next_obs), batch.next_avail).amax(-1)
            target = td_target(batch.reward, self.gamma, batch.terminated, value)
        q = self.q(batch.obs).gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
        loss = (q - target).square()
        norm = self.optimizer.step(sum_of_means(loss))
        self.target.follow(self.q, self.tau)
        return {
            "loss/critic": loss.detach().mean(-1),
            "value/q_mean": q.detach().mean(-1),
            "value/target_mean": target.mean(-1),
            "grad/critic_norm": norm,
        }

    def state_dict(self) -> State:
        return save_parts(self, self.PARTS)

    def load_state_dict(self, state: State) -> None:
        load_parts(self, self.PARTS, state)


registry.ALGORITHMS["iql"] = f"{__name__}:IQL"


def main(**settings: Any) -> Mapping[str, Any]:
    """Train two members and evaluate them."""
    chosen = {"steps": 10_000, "eval_every": 2_000, **settings}
    run = marl.train("iql", "mpe/simple_spread_v3", seeds=[0, 1], env={"continuous": False}, **chosen)
    return marl.evaluate(run, episodes=100)


if __name__ == "__main__":
    print(main(progress=True))
