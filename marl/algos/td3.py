"""TD3: DDPG with twin critics, smoothed targets and delayed actors (Fujimoto, van Hoof, Meger 2018).

With N > 1 this is N independent learners; reciprocity blends each twin, then the minimum is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from marl.algos.common import Metrics, as_read, load_parts, readable, require_continuous, save_parts
from marl.config import option
from marl.envs.base import EnvSpec
from marl.modules.critics import Critic, OwnValues
from marl.modules.optim import StackedAdam
from marl.modules.reciprocity import ReciprocityConfig, make_reciprocity
from marl.modules.stacked import StackedMLP
from marl.ops.exploration import noisy
from marl.ops.losses import row_mean, sum_of_means
from marl.ops.returns import td_target
from marl.population import per_member
from marl.replay import Replay
from marl.streams import Streams
from marl.types import Acted, Batch, State, View


@dataclass(frozen=True)
class TD3Config:
    """Settings of TD3; the defaults are the ones published for MuJoCo with policy reciprocity (tau = .008 on Ant)."""

    gamma: float = option(0.99, "Discount of one step.", sweep=True, most=1)
    tau: float = option(0.005, "Fraction by which the targets follow at each update of the actors.", sweep=True, most=1)
    actor_lr: float = option(3e-4, "Adam's learning rate of the actors.", sweep=True)
    critic_lr: float = option(3e-4, "Adam's learning rate of the critics.", sweep=True)
    noise: float = option(0.1, "Standard deviation of the exploration noise; actions span [-1, 1].", sweep=True)
    target_noise: float = option(0.2, "Standard deviation of the noise that smooths the target action.", sweep=True)
    target_noise_clip: float = option(0.5, "Largest absolute value of that noise.", sweep=True)
    policy_delay: int = option(2, "Critic updates per update of actors and targets.")
    hidden: tuple[int, ...] = option((256, 256), "Widths of the hidden layers.")
    max_grad_norm: float | None = option(None, "Clip each network's gradient to this Euclidean norm.")
    batch_size: int = option(256, "Transitions per update.")
    buffer_size: int = option(1_000_000, "Transitions that the replay holds, per member.")
    warmup: int = option(10_000, "Environment steps with uniformly random actions before the first update.")
    update_every: int = option(1, "Environment steps per update.")
    reciprocity: ReciprocityConfig = option(ReciprocityConfig(), "Policy reciprocity.")


class TD3:
    """The learner. Shapes: P members, N agents, B rows, D and A the widest observation and action.

    Args:
        spec: the environment's; its actions must be continuous.
        configs: one per member; they may differ in the settings marked ``sweep``.
        seeds: one per member.
    """

    Config = TD3Config
    Buffer = Replay
    memory_size = 0

    def __init__(self, spec: EnvSpec, configs: Sequence[TD3Config], seeds: Sequence[int]) -> None:
        require_continuous("td3", spec)
        self.config = config = configs[0]
        self.spec = spec
        self.gamma, self.tau, self.noise = (per_member(configs, name) for name in ("gamma", "tau", "noise"))
        self.target_noise = per_member(configs, "target_noise").unsqueeze(-1)
        self.target_noise_clip = per_member(configs, "target_noise_clip").unsqueeze(-1)
        init = Streams(seeds, "init")
        n = spec.n_agents
        self.actor = StackedMLP(init, n, [spec.obs_size, *config.hidden, spec.action_size])
        reads = torch.cat([spec.obs_mask, spec.action_mask], dim=-1)
        self.critic = Critic(init, n, reads.shape[-1], config.hidden, heads=2, reads=reads)
        self.target_actor, self.target_critic = self.actor.target_copy(), self.critic.target_copy()
        self.actor_optimizer = StackedAdam(self.actor, per_member(configs, "actor_lr"), config.max_grad_norm)
        self.critic_optimizer = StackedAdam(self.critic, per_member(configs, "critic_lr"), config.max_grad_norm)
        self.explore, self.smoothing = Streams(seeds, "explore"), Streams(seeds, "smoothing")
        self.action_mask = None if spec.action_mask.all() else spec.action_mask[:, None]
        kappas = [c.reciprocity.kappa for c in configs]
        self.reciprocity = make_reciprocity(config.reciprocity, kappas, seeds, n, spec.obs_mask)
        self.updates = 0
        self.actor_metrics: Metrics = {}

    def policy(self, actor: StackedMLP, obs: Tensor) -> Tensor:
        """``[P, N, B, D]`` -> ``[P, N, B, A]`` in [-1, 1]."""
        return self.own(torch.tanh(actor(obs)))

    def own(self, action: Tensor) -> Tensor:
        """``[P, N, B, A]`` with the components that an agent does not have set to 0."""
        return action if self.action_mask is None else action * self.action_mask

    @torch.no_grad()
    def act(self, view: View, explore: bool) -> Acted:
        """Actions ``[P, N, E, A]`` in [-1, 1]."""
        action = self.policy(self.actor, as_read(view.obs, self.spec))
        return Acted(self.own(noisy(action, self.explore, self.noise)) if explore else action)

    def update(self, batch: Batch) -> Metrics:
        """One gradient step of every critic; every ``policy_delay``-th call also of the actors and the targets."""
        self.updates += 1
        batch = readable(batch, self.spec)
        noise = self.smoothing.normal(*batch.action.shape[1:])
        target = self.compute_target(batch, noise)
        q = self.critic(torch.cat([batch.obs, batch.action], dim=-1))
        critic_loss = (q - target.unsqueeze(-1)).square().sum(-1)
        critic_norm = self.critic_optimizer.step(sum_of_means(critic_loss, batch.valid))
        if self.updates % self.config.policy_delay == 0:
            actor_loss = self.compute_loss_pi(batch)
            actor_norm = self.actor_optimizer.step(sum_of_means(actor_loss, batch.valid))
            self.target_critic.follow(self.critic, self.tau)
            self.target_actor.follow(self.actor, self.tau)
            self.actor_metrics = {"loss/actor": row_mean(actor_loss, batch.valid), "grad/actor_norm": actor_norm}
        return {
            "loss/critic": row_mean(critic_loss, batch.valid),
            "value/q_mean": row_mean(q.mean(-1), batch.valid),
            "value/target_mean": row_mean(target, batch.valid),
            **self.reciprocity.metrics(batch.valid),
            "grad/critic_norm": critic_norm.unflatten(1, (-1, 2)).amax(-1),
            **self.actor_metrics,
        }

    @torch.no_grad()
    def compute_target(self, batch: Batch, noise: Tensor) -> Tensor:
        """``r + gamma (1 - terminated) min_k Z*_k(s', a')``, a' smoothed by ``noise`` (standard normal): [P, N, B]."""
        smooth = (self.target_noise * noise).clamp(-self.target_noise_clip, self.target_noise_clip)
        next_action = self.own((self.policy(self.target_actor, batch.next_obs) + smooth).clamp(-1, 1))
        value = self.reciprocity(OwnValues(self.target_critic, next_action), batch.next_obs).amin(-1)
        return td_target(batch.reward, self.gamma, batch.terminated, value)

    def compute_loss_pi(self, batch: Batch) -> Tensor:
        """``-Q_1(s, mu(s))`` of each agent's own first critic: ``[P, N, B]``."""
        action = self.policy(self.actor, batch.obs)
        return -self.critic.first(torch.cat([batch.obs, action], dim=-1))

    def state_dict(self) -> State:
        counters = {"updates": self.updates, "actor_metrics": self.actor_metrics}
        return {**save_parts(self, self.PARTS), **counters}

    def load_state_dict(self, state: State) -> None:
        load_parts(self, self.PARTS, state)
        self.updates, self.actor_metrics = state["updates"], state["actor_metrics"]

    PARTS = (
        "actor",
        "critic",
        "target_actor",
        "target_critic",
        "actor_optimizer",
        "critic_optimizer",
        "explore",
        "smoothing",
        "reciprocity",
    )
