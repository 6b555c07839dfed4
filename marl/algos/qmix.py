"""QMIX: each agent values its own actions, a monotonic mixing network values the team's (Rashid et al. 2018, 2020).

With the sum for a mixing network this is VDN (Sunehag et al. 2018); with none it is independent Q-learning (IQL). All
three learn from whole episodes, with double Q-learning and recurrent networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from marl.algos.common import Metrics, as_read, load_parts, readable, save_parts
from marl.config import option
from marl.envs.base import EnvSpec
from marl.episodes import Episodes
from marl.modules.mixers import QMixer, VDNMixer
from marl.modules.optim import StackedAdam, step_together
from marl.modules.reciprocity import ReciprocityConfig, make_reciprocity
from marl.modules.stacked import Stacked
from marl.modules.utilities import Utilities, UtilityValues
from marl.ops.discrete import mask_logits, pick
from marl.ops.exploration import epsilon_greedy
from marl.ops.losses import masked_mean, row_mean
from marl.ops.returns import lambda_returns, n_step_returns
from marl.population import per_member
from marl.streams import Streams
from marl.types import Acted, EpisodeBatch, State, UserError, View


@dataclass(frozen=True)
class QMIXConfig:
    """Settings of QMIX; the defaults are the ones published for SMAC with policy reciprocity, or else PyMARL's."""

    mixer: Literal["qmix", "vdn", "none"] = option(
        "qmix", "How utilities become the team's value: a monotonic network, their sum, or not at all (IQL)."
    )
    gamma: float = option(0.99, "Discount of one step.", sweep=True, most=1)
    lr: float = option(5e-4, "Adam's learning rate.", sweep=True)
    epsilon_start: float = option(1.0, "Probability of a random action at first.", sweep=True, most=1)
    epsilon_end: float = option(0.05, "Probability of a random action in the end.", sweep=True, most=1)
    epsilon_steps: int = option(50_000, "Environment steps after the warm-up from the one to the other.", sweep=True)
    target_interval: int = option(160, "Updates between copies to the targets; 0: they follow by tau.", least=0)
    tau: float = option(0.01, "Fraction by which the targets follow; target_interval 0.", sweep=True, most=1)
    td_lambda: float = option(0.0, "Lambda of the TD(lambda) target; 0: one step.", sweep=True, most=1)
    n_step: int = option(1, "Rewards in the target before it bootstraps; td_lambda 0.")
    limit_is_end: bool = option(False, "Take the time limit for an end: the target does not bootstrap there.")
    recurrent: bool = option(True, "Utilities remember the episode (GRU); false: they see the present only.")
    shared: bool = option(True, "One network for all agents of a member, which is told whose it is; false: one each.")
    hidden: tuple[int, ...] = option((64, 64), "Widths of the hidden layers; the first is a recurrent network's.")
    embed: int = option(32, "Units of the mixing network.")
    hyper_hidden: int = option(64, "Hidden units of the networks that make the mixing network's weights.")
    max_grad_norm: float | None = option(10.0, "Clip each network's gradient to this Euclidean norm.")
    batch_size: int = option(32, "Episodes per update.")
    buffer_size: int = option(200_000, "Transitions that the replay holds, per member.")
    warmup: int = option(1_000, "Environment steps with random actions; more until there are batch_size episodes.")
    update_every: int = option(50, "Environment steps per update.")
    reciprocity: ReciprocityConfig = option(ReciprocityConfig(), "Policy reciprocity.")


class QMIX:
    """The learner. Shapes: P members, N agents, T steps of an episode, B episodes, A actions, S the state's width.

    A team has G = 1 value, or G = N without a mixing network.

    Args:
        spec: the environment's; its actions must be discrete, its episodes limited and common to all agents.
        configs: one per member; they may differ in the settings marked ``sweep``.
        seeds: one per member.
    """

    Config = QMIXConfig
    Buffer = Episodes

    def __init__(self, spec: EnvSpec, configs: Sequence[QMIXConfig], seeds: Sequence[int]) -> None:
        self.config = config = configs[0]
        self.spec = spec
        require_team_of_discrete_actions(spec)
        self.action_mask = spec.action_mask
        if config.recurrent and not config.hidden:
            raise UserError("qmix: a recurrent network needs a width, hidden is empty")
        names = ("gamma", "tau", "td_lambda", "epsilon_start", "epsilon_end", "epsilon_steps")
        self.gamma, self.tau, self.td_lambda, *self.epsilon_schedule = (per_member(configs, name) for name in names)
        if config.n_step > 1 and self.td_lambda.any():
            raise UserError(f"n_step: {config.n_step} does not go with td_lambda; choose n_step 1 or td_lambda 0")
        init = Streams(seeds, "init")
        n = spec.n_agents
        self.utilities = Utilities(
            init, spec.obs_mask, spec.action_size, config.hidden, config.recurrent, config.shared
        )
        self.target_utilities = self.utilities.target_copy()
        self.memory_size = self.utilities.memory_size
        rates = per_member(configs, "lr")
        self.optimizers = {"utilities": StackedAdam(self.utilities.network, rates, config.max_grad_norm)}
        self.mixer: QMixer | VDNMixer
        self.target_mixer: QMixer | VDNMixer
        self.mixer = self.target_mixer = VDNMixer()
        self.followers: list[tuple[Stacked, Stacked]] = [(self.target_utilities.network, self.utilities.network)]
        if config.mixer == "qmix":
            mixer = QMixer(init, n, spec.state_size or n * spec.obs_size, config.embed, config.hyper_hidden)
            self.mixer, self.target_mixer = mixer, mixer.target_copy()
            self.optimizers["mixer"] = StackedAdam(mixer, rates, config.max_grad_norm)
            self.followers.append((self.target_mixer, mixer))
        self.explore = Streams(seeds, "explore")
        self.steps = self.updates = 0
        kappas = [c.reciprocity.kappa for c in configs]
        self.trims = not any(kappas)  # else adjacent states come from all rows, which must not depend on other members
        self.reciprocity = make_reciprocity(config.reciprocity, kappas, seeds, n, spec.obs_mask)

    @torch.no_grad()
    def act(self, view: View, explore: bool) -> Acted:
        """Actions ``[P, N, E]`` int64, and the utilities' memory."""
        values, memory = self.utilities.step(as_read(view.obs, self.spec), view.memory)
        avail = self.action_mask.unsqueeze(1) if view.avail is None else view.avail
        values = mask_logits(values, avail)
        if not explore:
            return Acted(values.argmax(-1), memory)
        epsilon = self.epsilon()
        self.steps += view.obs.shape[2]
        return Acted(epsilon_greedy(values, avail, self.explore, epsilon), memory)

    def epsilon(self) -> Tensor:
        """The probability of a random action now, linear in the environment steps so far: ``[P, 1, 1]``."""
        start, end, steps = self.epsilon_schedule
        return start + (end - start) * (self.steps / steps).clamp(max=1.0)

    def update(self, batch: EpisodeBatch) -> Metrics:
        """One gradient step of utilities and mixing network on one loss; then the targets follow."""
        batch = readable(batch, self.spec)
        if self.trims:
            batch = trimmed(batch)
        filled = batch.filled.unsqueeze(1)
        if self.config.mixer == "none":  # each agent learns for itself, and no longer once it has left
            filled = filled & (batch.terminated.cumsum(2) <= batch.terminated)
        state = batch.state if batch.state is not None else joint_state(batch.obs)
        values = self.utilities.unroll(batch.obs)
        target = self.compute_target(batch, values.detach(), state)
        taken = pick(values[:, :, :-1], batch.action)
        q = self.mix(self.mixer, taken, state[:, :-1])
        loss = masked_mean((q - target).square(), filled)
        norms = step_together(loss.sum(), list(self.optimizers.values()))
        self.updates += 1
        self.move_targets()

        agents = taken.shape[1]
        return {
            "loss/critic": loss.detach().expand(-1, agents),
            "value/q_mean": row_mean(q, filled).expand(-1, agents),
            "value/target_mean": row_mean(target, filled).expand(-1, agents),
            **self.reciprocity.metrics(filled.flatten(2)),
            "grad/critic_norm": norms[0].expand(-1, agents),
            "explore/epsilon": self.epsilon().squeeze(-1).expand(-1, agents),
        }

    @torch.no_grad()
    def compute_target(self, batch: EpisodeBatch, values: Tensor, state: Tensor) -> Tensor:
        """``r + gamma (1 - terminated) Q'_tot(Z*_1(a*_1), ..., Z*_N(a*_N); s')``, or its TD(lambda) or n-step form.

        a*_i is the best action by the online utilities, Z* is what reciprocity makes of the target utilities.

        Args:
            values: ``[P, N, T + 1, B, A]``, the online utilities.
            state: ``[P, T + 1, B, S]``.

        Returns ``[P, G, T, B]``; arbitrary where not ``filled``.
        """
        avail = self.action_mask[:, None, None] if batch.avail is None else batch.avail[:, :, 1:]
        best = mask_logits(values[:, :, 1:], avail).argmax(-1)
        happened = torch.cat([torch.ones_like(batch.filled[:, :1]), batch.filled], dim=1).flatten(1).unsqueeze(1)
        heard = UtilityValues(self.target_utilities, best, self.action_mask)
        worth = self.reciprocity(heard, batch.obs.flatten(2, 3), happened).unflatten(2, best.shape[2:])
        next_value = self.mix(self.target_mixer, worth, state[:, 1:])
        reward, terminated = batch.reward, batch.terminated
        if self.config.mixer != "none":
            reward, terminated = reward.mean(1, keepdim=True), terminated.all(1, keepdim=True)
        done = torch.cat([~batch.filled[:, 1:], batch.filled.new_ones(batch.filled[:, :1].shape)], dim=1).unsqueeze(1)
        if self.config.limit_is_end:
            terminated = terminated | done
        if self.config.n_step > 1:
            return n_step_returns(reward, next_value, terminated, done, self.gamma, self.config.n_step)
        return lambda_returns(reward, next_value, terminated, done, self.gamma, self.td_lambda)

    def mix(self, mixer: QMixer | VDNMixer, utilities: Tensor, state: Tensor) -> Tensor:
        """The team's value, ``[P, N, T, B]`` and ``[P, T, B, S]`` -> ``[P, 1, T, B]``; without a mixer, utilities."""
        if self.config.mixer == "none":
            return utilities
        return mixer(utilities.flatten(2), state.flatten(1, 2)).unflatten(1, utilities.shape[2:]).unsqueeze(1)

    def move_targets(self) -> None:
        """At every ``target_interval``-th update the targets become copies; without an interval they follow by tau."""
        interval = self.config.target_interval
        if interval and self.updates % interval:
            return
        share = torch.ones_like(self.tau) if interval else self.tau
        for target, online in self.followers:
            target.follow(online, share)

    def state_dict(self) -> State:
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        return {**save_parts(self, self.PARTS), "optimizers": optimizers, "steps": self.steps, "updates": self.updates}

    def load_state_dict(self, state: State) -> None:
        load_parts(self, self.PARTS, state)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.steps, self.updates = state["steps"], state["updates"]

    PARTS = ("utilities", "mixer", "target_utilities", "target_mixer", "explore", "reciprocity")


def require_team_of_discrete_actions(spec: EnvSpec) -> None:
    """Raise ``UserError`` unless actions are discrete, and episodes limited and common to all agents."""
    if not spec.discrete:
        raise UserError(f"qmix needs discrete actions, those of {spec.id} are continuous; mappo and maddpg handle both")
    if spec.max_steps is None:
        raise UserError(
            f"qmix learns from whole episodes and needs a time limit, {spec.id} has none that marl can see; "
            "mappo needs none"
        )
    if spec.independent and spec.n_agents > 1:
        raise UserError(
            f"qmix needs agents that share their episodes, the {spec.n_agents} of {spec.id} play copies of their own; "
            "give --agents 1 and a seed for each"
        )


def trimmed(batch: EpisodeBatch) -> EpisodeBatch:
    """The batch without the steps that none of its episodes reaches."""
    steps = max(int(batch.filled.any(-1).sum(1).max()), 1)
    return EpisodeBatch(
        batch.obs[:, :, : steps + 1],
        batch.action[:, :, :steps],
        batch.reward[:, :, :steps],
        batch.terminated[:, :, :steps],
        batch.filled[:, :steps],
        None if batch.avail is None else batch.avail[:, :, : steps + 1],
        None if batch.state is None else batch.state[:, : steps + 1],
    )


def joint_state(obs: Tensor) -> Tensor:
    """All observations side by side, for environments without a state: ``[P, N, T, B, D]`` -> ``[P, T, B, N D]``."""
    return obs.movedim(1, 3).flatten(3)
