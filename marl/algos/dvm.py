"""DVM on MADDPG: agents learn apart, are distilled into one policy and one critic, and go on as copies of these
(Wadhwania et al. 2019, policy distillation and value matching). Frozen teachers may be distilled along with them.

A cycle is ``cycle_train`` updates of MADDPG and then ``cycle_distil`` updates in which the agents stand still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot

from marl.algos.common import Metrics, load_parts, readable, save_parts
from marl.algos.maddpg import MADDPG, MADDPGConfig
from marl.config import option
from marl.envs.base import EnvSpec
from marl.modules.critics import Critic, joint_input, swaps
from marl.modules.optim import StackedAdam
from marl.modules.stacked import StackedMLP
from marl.modules.teachers import Teacher, Teachers
from marl.ops.losses import row_mean, sum_of_means
from marl.population import per_member
from marl.replay import Replay
from marl.streams import Streams
from marl.types import Acted, Batch, State, UserError, View


@dataclass(frozen=True)
class DVMConfig(MADDPGConfig):
    """MADDPG's settings and those of the cycles."""

    cycle_train: int = option(4_000, "Updates of one cycle in which the agents learn.")
    cycle_distil: int = option(1_000, "Updates of one cycle in which one policy and one critic learn from them.")
    distil_lr: float = option(1e-3, "Adam's learning rate of the policy and the critic that are distilled.", sweep=True)
    permute: bool = option(True, "The distilled critic sees the agent that it speaks for first.")


class DVM:
    """The learner. Shapes: P members, N agents, B rows.

    Args:
        spec: the environment's.
        configs: one per member; they may differ in the settings marked ``sweep``.
        seeds: one per member.
        teachers: K frozen policies, whose weights come with ``load_state_dict`` or from ``marl.teaching``.

    Raises ``UserError`` where agents differ in size, or share one network already; and for teachers whose actions are
    of another kind.
    """

    Config = DVMConfig
    Buffer = Replay
    memory_size = 0

    takes_teachers = True

    def __init__(
        self, spec: EnvSpec, configs: Sequence[DVMConfig], seeds: Sequence[int], teachers: Sequence[Teacher] = ()
    ) -> None:
        self.config = config = configs[0]
        self.spec = spec
        for what, sizes in (("observations", spec.obs_sizes), ("actions", spec.action_sizes)):
            if len(set(sizes)) > 1:
                each = ", ".join(map(str, sizes))
                raise UserError(f"dvm needs agents of equal sizes, {spec.id} has {what} of {each}; choose maddpg")
        if config.shared:
            raise UserError("dvm needs networks of each agent's own, got shared=true; choose shared=false")
        self.base = MADDPG(spec, configs, seeds)
        self.teachers = Teachers(teachers, spec, len(seeds))
        self.agents, self.obs_size, self.action_size = spec.n_agents, spec.obs_size, spec.action_size
        self.discrete = spec.discrete
        init, width = Streams(seeds, "distil/init"), spec.n_agents * (spec.obs_size + spec.action_size)
        self.distilled_actor = StackedMLP(init, 1, [spec.obs_size, *config.hidden, spec.action_size])
        self.distilled_critic = Critic(init, 1, width, config.hidden)
        rate = per_member(configs, "distil_lr")
        self.distilled_actor_optimizer = StackedAdam(self.distilled_actor, rate, config.max_grad_norm)
        self.distilled_critic_optimizer = StackedAdam(self.distilled_critic, rate, config.max_grad_norm)
        self.updates = 0

    def act(self, view: View, explore: bool) -> Acted:
        """As MADDPG, also while agents are distilled."""
        return self.base.act(view, explore)

    def update(self, batch: Batch) -> Metrics:
        """One update of the present phase; after a cycle's last one, all agents become what was distilled."""
        cycle = self.config.cycle_train + self.config.cycle_distil
        training = self.updates % cycle < self.config.cycle_train
        self.updates += 1
        metrics = self.base.update(batch) if training else self.distil(batch)
        if self.updates % cycle == 0:
            self.hand_out()
        return metrics

    def distil(self, batch: Batch) -> Metrics:
        """One gradient step of the distilled policy and critic towards those of all agents, and of the policy towards
        the frozen teachers."""
        if self.discrete:
            batch = batch._replace(action=one_hot(batch.action, self.action_size).float())
        action, seen = batch.action.unsqueeze(1), readable(batch, self.spec).obs
        with torch.no_grad():
            teacher = self.base.actor_output(self.base.actor, seen, batch.avail)
            teacher = teacher if self.discrete else torch.tanh(teacher)
            value = self.base.critic(joint_input(seen, action, shared=False))
        output = self.base.actor_output(self.distilled_actor, seen, batch.avail)
        policy_loss = self.divergence(teacher, output)
        loss, taught = policy_loss, {}
        if self.teachers:  # each is worth one more agent
            answers, common = self.teachers.answers(batch.obs, batch.avail)
            further = self.divergence(answers, output.unsqueeze(2), common).sum(2) / self.agents
            loss, taught = policy_loss + further, {"distil/teachers": row_mean(further, batch.valid) * self.agents}
        self.distilled_actor_optimizer.step(sum_of_means(loss, batch.valid))
        matched = self.distilled_critic(joint_input(seen, action, shared=self.config.permute))
        value_loss = (matched - value).square()
        self.distilled_critic_optimizer.step(sum_of_means(value_loss, batch.valid))
        policy, critic = row_mean(policy_loss, batch.valid), row_mean(value_loss, batch.valid)
        return {"distil/policy": policy, "distil/value": critic, **taught}

    def divergence(self, teacher: Tensor, output: Tensor, common: Tensor | None = None) -> Tensor:
        """KL(teacher || pi_d) over what both have, ``[..., A]`` -> ``[...]``.

        Deterministic actions stand for normal distributions of variance 1 around them: half the squared distance.

        Args:
            teacher: logits, or actions.
            output: logits, or actions before the tanh.
            common: bool ``[..., A]``, the actions (or components) that both have. None: all.
        """
        if self.discrete:
            logp = log_softmax(teacher, -1)
            each = logp.exp() * (logp - log_softmax(output, -1))
        else:
            each = (torch.tanh(output) - teacher).square() / 2
        return (each if common is None else each.masked_fill(~common, 0.0)).sum(-1)

    @torch.no_grad()
    def hand_out(self) -> None:
        """Every agent gets the distilled policy and critic; targets are equal to them and optimisers know no past."""
        base = self.base
        base.actor.flat.data.copy_(self.distilled_actor.flat.data)
        base.critic.flat.data.copy_(self.distilled_critic.flat.data)
        if self.config.permute:
            # Agent i's critic is shown the agents in their own order: the exchange of i and the first one moves into
            # the rows of its first layer.
            weight = base.critic.layers[0].get_parameter("weight").data
            weight.copy_(weight.gather(2, self.input_order()[..., None].expand_as(weight)))
        base.target_actor.flat.data.copy_(base.actor.flat.data)
        base.target_critic.flat.data.copy_(base.critic.flat.data)
        distilling = self.distilled_actor_optimizer, self.distilled_critic_optimizer
        for optimizer in (base.actor_optimizer, base.critic_optimizer, *distilling):
            optimizer.load_state_dict({})

    def input_order(self) -> Tensor:
        """``[N, in]`` int64: row i has the joint view's inputs in their order once agents 1 and i are exchanged."""
        first = swaps(self.agents)[0]  # [N, N]
        obs = first[..., None] * self.obs_size + torch.arange(self.obs_size)
        action = first[..., None] * self.action_size + torch.arange(self.action_size)
        return torch.cat([obs.flatten(1), action.flatten(1) + self.agents * self.obs_size], dim=-1)

    def state_dict(self) -> State:
        own = {**save_parts(self, self.PARTS), "updates": self.updates}
        return {**self.base.state_dict(), **own, **self.teachers.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.base.load_state_dict(state)
        load_parts(self, self.PARTS, state)
        self.updates = state["updates"]
        self.teachers.load_state_dict(state)

    PARTS = (
        "distilled_actor",
        "distilled_critic",
        "distilled_actor_optimizer",
        "distilled_critic_optimizer",
    )
