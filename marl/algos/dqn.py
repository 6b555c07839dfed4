"""DQN: one network of action values per agent, each on its own observation (Mnih et al. 2015).

Double Q-learning (van Hasselt et al. 2016), duelling networks (Wang et al. 2016) and n-step returns are settings. With
N > 1 this is N independent learners; reciprocity lets them read each other's target networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from marl.algos.common import Metrics, load_parts, save_parts
from marl.config import option
from marl.envs.base import EnvSpec
from marl.modules.conv import ConvName
from marl.modules.optim import StackedAdam
from marl.modules.q_values import ActionValues, QNetwork
from marl.modules.reciprocity import ReciprocityConfig, make_reciprocity
from marl.ops.discrete import mask_logits, pick
from marl.ops.exploration import epsilon_greedy
from marl.ops.losses import huber, row_mean, sum_of_means
from marl.ops.returns import td_target, window_target
from marl.population import per_member
from marl.replay import Replay
from marl.streams import Streams
from marl.types import Acted, Batch, State, UserError, View

Penalty: TypeAlias = Callable[[Mapping[str, Tensor]], Tensor]
"""From a stack's parameters by name, ``[P, N, ...]`` each, to one number: a sum over its networks."""


@dataclass(frozen=True)
class DQNConfig:
    """Settings of DQN; the defaults are those of the lifelong agent (``docs/algorithms/dqn.md`` says whose each is)."""

    gamma: float = option(0.99, "Discount of one step.", sweep=True, most=1)
    lr: float = option(5e-4, "Adam's learning rate.", sweep=True)
    double: bool = option(True, "The online network chooses the next action that the target network values.")
    duelling: bool = option(False, "Networks end in a value and an advantage for each action.")
    n_step: int = option(1, "Rewards in the target before it bootstraps; fewer at an episode's end.")
    epsilon_final: float = option(0.01, "Probability of a random action in the end; 1 at first.", sweep=True, most=1)
    epsilon_decay: float = option(
        30_000.0, "Environment steps after the warm-up in which what is above that falls to 1/e.", sweep=True, least=1
    )
    target_interval: int = option(500, "Updates between copies to the target networks.")
    huber_delta: float | None = option(
        1.0, "Error up to which the loss is a square, linear beyond; none: a square.", least=1e-6
    )
    hidden: tuple[int, ...] = option((128, 128), "Widths of the hidden layers, behind convolutions if there are any.")
    conv: ConvName = option("auto", "Convolutions of pictures; auto: nature from 36 x 36 pixels on, else small.")
    max_grad_norm: float | None = option(10.0, "Clip each network's gradient to this Euclidean norm.")
    batch_size: int = option(128, "Transitions per update.")
    buffer_size: int = option(100_000, "Transitions that the replay holds, per member.")
    warmup: int = option(1_000, "Environment steps with random actions before the first update.")
    update_every: int = option(4, "Environment steps per update.")
    reciprocity: ReciprocityConfig = option(ReciprocityConfig(), "Policy reciprocity.")


class DQN:
    """The learner. Shapes: P members, N agents, B rows, D the widest observation, A the most actions.

    Args:
        spec: the environment's; its actions must be discrete.
        configs: one per member; they may differ in the settings marked ``sweep``.
        seeds: one per member.

    Attributes:
        penalties: of the online networks' parameters, added to the loss of every update. Whoever adds one saves it.
    """

    Config = DQNConfig
    Buffer = Replay
    memory_size = 0

    def __init__(self, spec: EnvSpec, configs: Sequence[DQNConfig], seeds: Sequence[int]) -> None:
        if not spec.discrete:
            raise UserError(f"dqn needs discrete actions, those of {spec.id} are continuous; td3 handles these")
        self.config = config = configs[0]
        self.action_mask = spec.action_mask
        self.alike = bool(self.action_mask.all())  # every agent has every action: nothing to mask
        self.gamma, self.final, self.decay = (
            per_member(configs, name) for name in ("gamma", "epsilon_final", "epsilon_decay")
        )
        self.critic = QNetwork(Streams(seeds, "init"), spec, config.hidden, config.conv, config.duelling)
        self.target_critic = self.critic.target_copy()
        self.optimizer = StackedAdam(self.critic, per_member(configs, "lr"), config.max_grad_norm)
        self.explore = Streams(seeds, "explore")
        self.steps = self.updates = 0
        self.newest = -1, self.final  # steps, and epsilon then
        self.penalties: list[Penalty] = []
        kappas = [c.reciprocity.kappa for c in configs]
        self.reciprocity = make_reciprocity(config.reciprocity, kappas, seeds, spec.n_agents, spec.obs_mask)

    @torch.no_grad()
    def act(self, view: View, explore: bool) -> Acted:
        """Actions ``[P, N, E]`` int64."""
        avail = self._available(view.avail)
        values = self.critic(view.obs) if avail is None else mask_logits(self.critic(view.obs), avail)
        if not explore:
            return Acted(values.argmax(-1))
        action = epsilon_greedy(values, avail, self.explore, self.epsilon())
        self.steps += view.obs.shape[2]
        return Acted(action)

    def epsilon(self) -> Tensor:
        """The probability of a random action now: final + (1 - final) exp(-steps / decay), ``[P, 1, 1]``."""
        if self.newest[0] != self.steps:  # it is asked for again with every update
            self.newest = self.steps, self.final + (1 - self.final) * torch.exp(-self.steps / self.decay)
        return self.newest[1]

    def update(self, batch: Batch, lesson: Tensor | None = None) -> Metrics:
        """One gradient step of every network; at every ``target_interval``-th the targets become copies.

        Args:
            batch: the transitions.
            lesson: ``[P, N, B, A]``, a teacher's action values, to be learnt by least squares where they are no NaN, in
                place of the TD target.
        """
        target = self.compute_target(batch)
        values = self.critic(batch.obs)
        q = pick(values, batch.action)
        loss = huber(q - target, self.config.huber_delta)
        if lesson is not None:
            missed = (values - lesson.nan_to_num()).masked_fill(~self.action_mask.unsqueeze(1), 0.0)
            taught = missed.square().sum(-1) / 2
            loss = torch.where(lesson[..., 0].isnan(), loss, taught)
        parameters = dict(self.critic.named_parameters()) if self.penalties else {}
        norm = self.optimizer.step(
            sum((penalty(parameters) for penalty in self.penalties), sum_of_means(loss, batch.valid))
        )
        self.updates += 1
        if self.updates % self.config.target_interval == 0:
            self.target_critic.follow(self.critic, torch.ones_like(self.gamma))
        return {
            "loss/critic": row_mean(loss, batch.valid),
            "value/q_mean": row_mean(q, batch.valid),
            "value/target_mean": row_mean(target, batch.valid),
            **self.reciprocity.metrics(batch.valid),
            "grad/critic_norm": norm,
            "explore/epsilon": self.epsilon().squeeze(-1).expand_as(norm),
        }

    @torch.no_grad()
    def compute_target(self, batch: Batch) -> Tensor:
        """``r + gamma (1 - terminated) Z*(s', a*)`` or its n-step form, a* the best available action: ``[P, N, B]``."""
        avail = self._available(batch.next_avail)
        values = (self.critic if self.config.double else self.target_critic)(batch.next_obs)
        values = values if avail is None else mask_logits(values, avail)
        if self.config.double or not self.reciprocity.off:
            asked = ActionValues(self.target_critic, values.argmax(-1), self.action_mask)
            value = self.reciprocity(asked, batch.next_obs)
        else:  # these are the target networks' values already
            value = values.amax(-1)
        if batch.rewards is None or batch.steps is None:
            return td_target(batch.reward, self.gamma, batch.terminated, value)
        return window_target(batch.rewards, batch.steps, self.gamma, batch.terminated, value)

    def _available(self, avail: Tensor | None) -> Tensor | None:
        """Which actions may be taken; None: all of them."""
        return self.action_mask.unsqueeze(1) if avail is None and not self.alike else avail

    def state_dict(self) -> State:
        return {**save_parts(self, self.PARTS), "steps": self.steps, "updates": self.updates}

    def load_state_dict(self, state: State) -> None:
        load_parts(self, self.PARTS, state)
        self.steps, self.updates = state["steps"], state["updates"]

    PARTS = ("critic", "target_critic", "optimizer", "explore", "reciprocity")
