"""MADDPG: one actor per agent on its own observation, one critic per agent that sees everybody (Lowe et al. 2017).

Actions are continuous, or discrete through the straight-through Gumbel-softmax. Rewards may be individual or shared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from marl.algos.common import Metrics, as_read, load_parts, readable, save_parts
from marl.config import option
from marl.envs.base import EnvSpec
from marl.modules.critics import Critic, JointValues, joint, joint_input
from marl.modules.optim import StackedAdam
from marl.modules.reciprocity import ReciprocityConfig, make_reciprocity
from marl.modules.stacked import StackedMLP
from marl.ops.discrete import greedy, gumbel, gumbel_softmax, mask_logits
from marl.ops.exploration import noisy, sometimes_random
from marl.ops.losses import row_mean, sum_of_means
from marl.ops.returns import td_target
from marl.population import per_member
from marl.replay import Replay
from marl.streams import Streams
from marl.types import Acted, Batch, State, View


@dataclass(frozen=True)
class MADDPGConfig:
    """Settings of MADDPG; the defaults are the ones published for MPE with policy reciprocity."""

    gamma: float = option(0.95, "Discount of one step.", sweep=True, most=1)
    tau: float = option(0.01, "Fraction by which the targets follow at each update.", sweep=True, most=1)
    actor_lr: float = option(1e-4, "Adam's learning rate of the actors.", sweep=True)
    critic_lr: float = option(1e-3, "Adam's learning rate of the critics.", sweep=True)
    noise: float = option(0.1, "Standard deviation of the exploration noise; continuous actions.", sweep=True)
    epsilon: float = option(0.1, "Probability of a uniformly random action; continuous actions.", sweep=True, most=1)
    action_l2: float = option(1e-3, "Weight of the mean square of the actors' outputs in their loss.", sweep=True)
    hidden: tuple[int, ...] = option((64, 64, 64), "Widths of the hidden layers.")
    shared: bool = option(False, "One actor and one critic for all agents of a member instead of one each.")
    max_grad_norm: float | None = option(None, "Clip each network's gradient to this Euclidean norm.")
    batch_size: int = option(256, "Transitions per update.")
    buffer_size: int = option(500_000, "Transitions that the replay holds, per member.")
    warmup: int = option(1_000, "Environment steps with uniformly random actions before the first update.")
    update_every: int = option(1, "Environment steps per update.")
    reciprocity: ReciprocityConfig = option(ReciprocityConfig(), "Policy reciprocity.")


class MADDPG:
    """The learner. Shapes: P members, N agents, B rows, D and A the widest observation and action.

    Args:
        spec: the environment's.
        configs: one per member; they may differ in the settings marked ``sweep``.
        seeds: one per member.
    """

    Config = MADDPGConfig
    Buffer = Replay
    memory_size = 0

    def __init__(self, spec: EnvSpec, configs: Sequence[MADDPGConfig], seeds: Sequence[int]) -> None:
        self.config = config = configs[0]
        self.spec = spec
        self.gamma, self.tau, self.noise = (per_member(configs, name) for name in ("gamma", "tau", "noise"))
        self.epsilon, self.action_l2 = per_member(configs, "epsilon"), per_member(configs, "action_l2")
        init = Streams(seeds, "init")
        n, networks = spec.n_agents, 1 if config.shared else spec.n_agents
        self.obs_size, self.action_size, self.discrete = spec.obs_size, spec.action_size, spec.discrete
        self.actor = StackedMLP(init, networks, [spec.obs_size, *config.hidden, spec.action_size])
        everything = torch.cat([spec.obs_mask.view(1, -1), spec.action_mask.view(1, -1)], dim=-1)
        reads = None if config.shared else everything  # to a shared critic, the agents come in changing order
        self.critic = Critic(init, networks, everything.shape[-1], config.hidden, reads=reads)
        self.target_actor, self.target_critic = self.actor.target_copy(), self.critic.target_copy()
        self.actor_optimizer = StackedAdam(self.actor, per_member(configs, "actor_lr"), config.max_grad_norm)
        self.critic_optimizer = StackedAdam(self.critic, per_member(configs, "critic_lr"), config.max_grad_norm)
        self.explore, self.relaxation = Streams(seeds, "explore"), Streams(seeds, "relaxation")
        self.action_mask = None if spec.action_mask.all() else spec.action_mask
        self.others = ~torch.eye(n, dtype=torch.bool).view(n, n, 1, 1)
        kappas = [c.reciprocity.kappa for c in configs]
        self.reciprocity = make_reciprocity(config.reciprocity, kappas, seeds, n, spec.obs_mask.view(1, -1))

    def actor_output(self, actor: StackedMLP, obs: Tensor, avail: Tensor | None) -> Tensor:
        """Logits, or actions before the tanh: ``[P, N, B, A]``; what an agent may not do is out of reach, or 0."""
        output = actor(obs)
        if avail is not None:
            return mask_logits(output, avail)
        if self.action_mask is None:
            return output
        return mask_logits(output, self.action_mask) if self.discrete else output * self.action_mask[:, None]

    @torch.no_grad()
    def act(self, view: View, explore: bool) -> Acted:
        """Actions ``[P, N, E, A]`` in [-1, 1], or ``[P, N, E]`` int64."""
        output = self.actor_output(self.actor, as_read(view.obs, self.spec), view.avail)
        if self.discrete:
            noise = gumbel(self.explore.uniform(*output.shape[1:])) if explore else 0.0
            return Acted((output + noise).argmax(-1))
        action = torch.tanh(output)
        if explore:
            action = sometimes_random(noisy(action, self.explore, self.noise), self.explore, self.epsilon)
            action = action if self.action_mask is None else action * self.action_mask[:, None]
        return Acted(action)

    def update(self, batch: Batch, further: Callable[[Tensor], Tensor] | None = None) -> Metrics:
        """One gradient step of every critic and actor, and of their targets; ``further``: see ``compute_loss_pi``."""
        batch = readable(batch, self.spec)
        if self.discrete:
            batch = batch._replace(action=one_hot(batch.action, self.action_size).float())
        target = self.compute_target(batch)
        q = self.critic(joint_input(batch.obs, batch.action.unsqueeze(1), self.critic.networks == 1))
        critic_loss = (q - target).square()
        critic_norm = self.critic_optimizer.step(sum_of_means(critic_loss, batch.valid))

        noise = gumbel(self.relaxation.uniform(*batch.action.shape[1:])) if self.discrete else None
        actor_loss = self.compute_loss_pi(batch, noise, further)
        actor_norm = self.actor_optimizer.step(sum_of_means(actor_loss, batch.valid))

        self.target_critic.follow(self.critic, self.tau)
        self.target_actor.follow(self.actor, self.tau)
        return {
            "loss/critic": row_mean(critic_loss, batch.valid),
            "loss/actor": row_mean(actor_loss, batch.valid),
            "value/q_mean": row_mean(q, batch.valid),
            "value/target_mean": row_mean(target, batch.valid),
            **self.reciprocity.metrics(batch.valid),
            "grad/critic_norm": critic_norm.expand(-1, q.shape[1]),
            "grad/actor_norm": actor_norm.expand(-1, q.shape[1]),
        }

    @torch.no_grad()
    def compute_target(self, batch: Batch) -> Tensor:
        """``r_i + gamma (1 - terminated) Z*_i(s', mu'_1(o'_1), ..., mu'_N(o'_N))``: ``[P, N, B]``."""
        output = self.actor_output(self.target_actor, batch.next_obs, batch.next_avail)
        next_action = greedy(output) if self.discrete else torch.tanh(output)
        values = JointValues(self.target_critic, next_action, self.obs_size)
        value = self.reciprocity(values, joint(batch.next_obs))
        return td_target(batch.reward, self.gamma, batch.terminated, value)

    def compute_loss_pi(
        self, batch: Batch, noise: Tensor | None, further: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """``-Q_i(s, a_1, ..., mu_i(o_i), ..., a_N) + action_l2 |output|^2``: ``[P, N, B]``.

        Args:
            batch: its actions are those that were taken, as vectors.
            noise: Gumbel noise ``[P, N, B, A]`` for discrete actions.
            further: another loss to add, ``[P, N, B]``, of the actors' outputs ``[P, N, B, A]``.
        """
        output = self.actor_output(self.actor, batch.obs, batch.avail)
        action = torch.tanh(output) if noise is None else gumbel_softmax(output, noise)
        actions = torch.where(self.others, batch.action.unsqueeze(1), action.unsqueeze(1))  # [P, N_i, N, B, A]
        q = self.critic(joint_input(batch.obs, actions, self.critic.networks == 1))
        loss = self.action_l2 * self.mean_square(output, batch.avail) - q
        return loss if further is None else loss + further(output)

    def mean_square(self, output: Tensor, avail: Tensor | None) -> Tensor:
        """Mean of the squared output over what an agent has and may do (``avail`` ``[P, N, B, A]``): ``[P, N, B]``."""
        mask = avail if avail is not None else None if self.action_mask is None else self.action_mask[:, None]
        if mask is None:
            return output.square().mean(-1)
        return output.masked_fill(~mask, 0.0).square().sum(-1) / mask.sum(-1)

    def state_dict(self) -> State:
        return save_parts(self, self.PARTS)

    def load_state_dict(self, state: State) -> None:
        load_parts(self, self.PARTS, state)

    PARTS = (
        "actor",
        "critic",
        "target_actor",
        "target_critic",
        "actor_optimizer",
        "critic_optimizer",
        "explore",
        "relaxation",
        "reciprocity",
    )
