"""MAPPO: PPO whose critics see everybody (Yu et al. 2022); IPPO with ``critic="own"`` (de Witt et al. 2020).

With a memory or without, for indices (masked or not) or vectors, with networks that agents share or of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from marl.algos.common import Metrics, load_parts, readable, save_parts
from marl.config import option
from marl.envs.base import EnvSpec
from marl.modules.actors import Actor
from marl.modules.normal import RunningNorm
from marl.modules.optim import StackedAdam
from marl.modules.reciprocity import ReciprocityConfig, make_reciprocity
from marl.modules.state_values import StateCritic, StateValues, with_id
from marl.ops.losses import clipped_surrogate, clipped_value_loss, masked_mean
from marl.ops.returns import lambda_returns
from marl.population import per_member
from marl.rollout import Rollout
from marl.streams import Streams
from marl.types import Acted, State, Trajectory, UserError, View


@dataclass(frozen=True)
class MAPPOConfig:
    """Settings of MAPPO; gamma, rates, entropy and lambda are the ones published with policy reciprocity."""

    gamma: float = option(0.99, "Discount of one step.", sweep=True, most=1)
    gae_lambda: float = option(0.95, "Weight of longer returns in the targets.", sweep=True, most=1)
    actor_lr: float = option(1e-4, "Adam's learning rate of the actors.", sweep=True)
    critic_lr: float = option(1e-4, "Adam's learning rate of the critics.", sweep=True)
    entropy: float = option(0.01, "Weight of the policies' entropy.", sweep=True)
    clip: float = option(0.2, "How far a probability may move from 1 times its old one.", sweep=True)
    value_clip: float | None = option(0.2, "How far a value may move in one update, normalised; none: as it likes.")
    huber_delta: float | None = option(
        10.0, "Where the critics' squared error turns linear; none: nowhere.", least=1e-6
    )
    normalize_value: bool = option(True, "Critics learn targets of mean 0 and variance 1.")
    rollout: int = option(100, "Steps of each copy between updates.")
    epochs: int = option(10, "Passes over the rollout in one update.")
    minibatches: int = option(1, "Gradient steps of one pass.")
    max_grad_norm: float | None = option(10.0, "Clip each network's gradient to this Euclidean norm.")
    hidden: tuple[int, ...] = option((64, 64), "Widths of the hidden layers; the first is a recurrent network's.")
    activation: Literal["relu", "tanh"] = option("relu", "Between the layers of a network without memory.")
    critic: Literal["central", "own"] = option("central", "What critics see: everything, or their agent's own (IPPO).")
    shared: bool = option(True, "One actor and one critic for all agents of a member instead of one each.")
    recurrent: bool = option(False, "Actors and critics with a memory (GRU).")
    chunk: int = option(10, "Steps through which a memory's gradient flows.")
    reciprocity: ReciprocityConfig = option(ReciprocityConfig(), "Policy reciprocity.")


class Sequences(NamedTuple):
    """What an update learns from: S sequences of L steps each; without memory every step is a sequence of its own.

    Attributes:
        x, states: what actors and critics see, ``[P, N, L, S, in]`` and ``[P, N or 1, L, S, C]``.
        action: ``[P, N, L, S, *]``.
        logp, value, target, advantage: ``[P, N, L, S]``: as the update began; values and targets are normalised.
        valid: ``[P, N, L, S]`` bool.
        avail: ``[P, N, L, S, A]`` or None.
        start: ``[P, N, L, S]`` bool, where an episode starts; None without memory.
        memory: ``[P, N, 1, S, H]`` before the first step; None without memory.
        note: ``[P, N, L, S, *]``, whatever an additional loss is about; None: nothing.
    """

    x: Tensor
    states: Tensor
    action: Tensor
    logp: Tensor
    value: Tensor
    target: Tensor
    advantage: Tensor
    valid: Tensor
    avail: Tensor | None = None
    start: Tensor | None = None
    memory: Tensor | None = None
    note: Tensor | None = None

    def cut(self, length: int) -> Sequences:
        """One sequence of T steps as T / length of them, each from its own first memory."""

        def fold(x: Tensor) -> Tensor:  # [P, N, T, E, *] -> [P, N, length, T / length * E, *]
            return x.unflatten(2, (-1, length)).transpose(2, 3).flatten(3, 4)

        parts = self._replace(**{name: fold(x) for name, x in self._asdict().items() if x is not None})
        return parts if parts.memory is None else parts._replace(memory=parts.memory[:, :, :1])

    def pick(self, index: Tensor) -> Sequences:
        """The sequences ``index`` ``[P, B]`` of each member."""

        def take(x: Tensor) -> Tensor:
            return torch.stack([each.index_select(2, i) for each, i in zip(x, index, strict=True)])

        return self._replace(**{name: take(x) for name, x in self._asdict().items() if x is not None})


Further: TypeAlias = Callable[[Tensor, Sequences], Tensor]


class MAPPO:
    """The learner. Shapes: P members, N agents, T steps, E copies, D and A the widest observation and action.

    Args:
        spec: the environment's.
        configs: one per member; they may differ in the settings marked ``sweep``.
        seeds: one per member.
    """

    Config = MAPPOConfig
    Buffer = Rollout

    def __init__(self, spec: EnvSpec, configs: Sequence[MAPPOConfig], seeds: Sequence[int]) -> None:
        self.config = config = configs[0]
        self.spec = spec
        if spec.independent and config.critic == "central":
            raise UserError(
                f"mappo: the {spec.n_agents} agents of {spec.id} play copies of their own, so nothing is central; "
                "choose critic=own"
            )
        if config.recurrent and not config.hidden:
            raise UserError("mappo: a recurrent network needs a width, hidden is empty")
        if config.recurrent and config.rollout % config.chunk:
            raise UserError(
                f"mappo: a rollout of {config.rollout} steps is no whole number of chunks of {config.chunk}"
            )
        self.gamma, self.gae_lambda = per_member(configs, "gamma"), per_member(configs, "gae_lambda")
        self.entropy, self.clip = (per_member(configs, name).unsqueeze(-1) for name in ("entropy", "clip"))
        init, n = Streams(seeds, "init"), spec.n_agents
        self.shared = config.shared and n > 1
        networks = 1 if self.shared else n
        layout = config.hidden, config.activation, config.recurrent
        self.actor = Actor(init, networks, spec.obs_size + (n if self.shared else 0), spec, *layout)
        self.judge = StateCritic(init, spec, config.critic == "central", self.shared, *layout)
        self.critic = self.judge.net
        self.norm = RunningNorm(len(seeds), networks)
        self.actor_optimizer = StackedAdam(self.actor, per_member(configs, "actor_lr"), config.max_grad_norm)
        self.critic_optimizer = StackedAdam(self.critic, per_member(configs, "critic_lr"), config.max_grad_norm)
        self.explore, self.shuffle = Streams(seeds, "explore"), Streams(seeds, "shuffle")
        self.value_clip = torch.tensor(torch.inf if config.value_clip is None else config.value_clip)
        self.width = config.hidden[0] if config.recurrent else 0
        self.memory_size = 2 * self.width
        kappas = [c.reciprocity.kappa for c in configs]
        self.reciprocity = make_reciprocity(config.reciprocity, kappas, seeds, n, self.judge.mask)

    @torch.no_grad()
    def act(self, view: View, explore: bool) -> Acted:
        """Actions ``[P, N, E, A]`` in [-1, 1], or ``[P, N, E]`` int64; the memory is the actor's and the critic's.

        Without ``explore`` the critic's half stays as it is: only learning needs it.
        """
        view = readable(view, self.spec)
        x = with_id(view.obs, self.shared).unsqueeze(2)
        avail = None if view.avail is None else view.avail.unsqueeze(2)
        actor_memory, critic_memory = self.memories(view.memory)
        output, noted = self.actor(x, avail, actor_memory)
        action = (self.actor.sample(output, self.explore) if explore else self.actor.mode(output)).squeeze(2)
        if noted is None or critic_memory is None:
            return Acted(action)
        if explore:
            _, after = self.judge(self.judge.see(view.obs, view.state).unsqueeze(2), critic_memory)
            critic_memory = critic_memory if after is None else after.squeeze(2)
        return Acted(action, torch.cat([noted.squeeze(2), critic_memory], dim=-1))

    def memories(self, memory: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The actor's and the critic's half of ``[..., H]``."""
        return (None, None) if memory is None else (memory[..., : self.width], memory[..., self.width :])

    def update(self, batch: Trajectory, note: Tensor | None = None, further: Further | None = None) -> Metrics:
        """``epochs`` times ``minibatches`` gradient steps of every actor and critic.

        Args:
            batch: a rollout.
            note: ``[P, N, T, E, *]``, numbers for each row that ``further`` is to see.
            further: another loss of the actors to add, ``[P, N, L, S]``, from their outputs ``[P, N, L, S, A]``.
        """
        sequences, metrics = self.prepare(readable(batch, self.spec), note)
        steps = [self.learn(part, further) for part in self.parts(sequences)]
        n = batch.obs.shape[1]
        means = {name: torch.stack([step[name] for step in steps]).mean(0).expand(-1, n) for name in steps[0]}
        return {**means, **metrics, **self.reciprocity.metrics(batch.valid.flatten(2))}

    @torch.no_grad()
    def prepare(self, batch: Trajectory, note: Tensor | None = None) -> tuple[Sequences, Metrics]:
        """What the present networks say about the rollout, and the targets of the values, before any gradient step.

        The normaliser is updated here, and the critics' last layers are rescaled with it, so that values stay as they
        are in real units (van Hasselt et al. 2016, section 2.1); else they would grow without end.
        """
        rows = batch.reward.shape[2:]
        actor_memory, critic_memory = self.memories(None if batch.memory is None else batch.memory[:, :, 0])
        start = None
        if batch.memory is not None:
            start = batch.done.roll(1, 2)
            start[:, :, 0] = False  # there the memory itself is 0
        x = with_id(batch.obs.flatten(2, 3), self.shared).unflatten(2, rows)
        state = None if batch.state is None else batch.state.flatten(1, 2)
        states = self.judge.see(batch.obs.flatten(2, 3), state).unflatten(2, rows)
        output, _ = self.actor(x, batch.avail, actor_memory, start)
        value, heard = self.judge(states, critic_memory, start)

        target = self.compute_target(batch, heard)
        worth = self.norm.denormalize(value)
        advantage = target - worth
        metrics = {
            "value/q_mean": masked_mean(worth, batch.valid),
            "value/target_mean": masked_mean(target, batch.valid),
            "value/explained_variance": 1 - variance(advantage, batch.valid) / variance(target, batch.valid),
        }
        if self.config.normalize_value:
            scale, shift = self.norm.update(target, batch.valid)
            self.judge.rescale(scale, shift)
            value = (value * scale[..., None, None] + shift[..., None, None]).to(value.dtype)
        sequences = Sequences(
            x,
            states,
            batch.action,
            self.actor.log_prob(output, batch.action),
            value,
            self.norm.normalize(target),
            self.standardised(advantage, choosing(batch.valid, batch.avail)),
            batch.valid,
            batch.avail,
            start,
            batch.memory,
            note,
        )
        return sequences.cut(self.config.chunk if self.config.recurrent else 1), metrics

    def compute_target(self, batch: Trajectory, memory: Tensor | None) -> Tensor:
        """Lambda-returns over Z*_i(s'), the values blended by reciprocity: ``[P, N, T, E]``.

        Args:
            memory: ``[P, N, T, E, H]``, the critics' hidden states after each step; None: they have none.
        """
        memory = None if memory is None else memory.flatten(2, 3)
        values = StateValues(self.judge, self.norm, batch.state is None, memory)
        next_state = None if batch.next_state is None else batch.next_state.flatten(1, 2)
        states = self.judge.see(batch.next_obs.flatten(2, 3), next_state)
        happened = batch.valid.flatten(2)
        happened = happened.any(1, keepdim=True) if self.judge.central else happened
        value = self.reciprocity(values, states, happened)
        value = value.unflatten(2, batch.reward.shape[2:])
        return lambda_returns(batch.reward, value, batch.terminated, batch.done, self.gamma, self.gae_lambda)

    def standardised(self, advantage: Tensor, valid: Tensor) -> Tensor:
        """Mean 0 and variance 1 over what each network learns from, ``[P, N, T, E]``."""
        networks = 1 if self.shared else advantage.shape[1]
        x, mask = (y.reshape(len(y), networks, -1) for y in (advantage, valid))
        centred = x - masked_mean(x, mask).unsqueeze(-1)
        return (centred / (masked_mean(centred.square(), mask).sqrt().unsqueeze(-1) + 1e-5)).view_as(advantage)

    def parts(self, sequences: Sequences) -> Iterator[Sequences]:
        """The minibatches of all epochs; each member shuffles its own sequences."""
        count, size = self.config.minibatches, sequences.logp.shape[-1]
        if count > size:
            raise UserError(f"mappo: {size} sequences cannot fill {count} minibatches")
        for _ in range(self.config.epochs):
            if count == 1:
                yield sequences
                continue
            order = torch.stack([torch.randperm(size, generator=g) for g in self.shuffle.generators])
            for index in order.tensor_split(count, dim=1):
                yield sequences.pick(index)

    def learn(self, part: Sequences, further: Further | None = None) -> Metrics:
        """One gradient step of every actor and critic."""
        actor_memory, critic_memory = self.memories(None if part.memory is None else part.memory.squeeze(2))
        output, _ = self.actor(part.x, part.avail, actor_memory, part.start)
        logp, entropy = self.actor.log_prob(output, part.action), self.actor.entropy(output)
        surrogate = clipped_surrogate(logp, part.logp, part.advantage, self.clip)
        each = surrogate - self.entropy * entropy
        choice = choosing(part.valid, part.avail)
        actor_loss = masked_mean(each if further is None else each + further(output, part), choice)
        actor_norm = self.actor_optimizer.step(actor_loss.sum())

        value, _ = self.judge(part.states, critic_memory, part.start)
        error = clipped_value_loss(value, part.value, part.target, self.value_clip, self.config.huber_delta)
        critic_loss = masked_mean(error, part.valid)
        critic_norm = self.critic_optimizer.step(critic_loss.sum())
        with torch.no_grad():
            log_ratio = logp - part.logp
            ratio = log_ratio.exp()
            return {
                "loss/critic": critic_loss.detach(),
                "loss/actor": actor_loss.detach(),
                "policy/entropy": masked_mean(entropy, choice),
                "policy/kl": masked_mean(ratio - 1 - log_ratio, choice),
                "policy/clip_fraction": masked_mean(((ratio - 1).abs() > self.clip).float(), choice),
                "grad/critic_norm": critic_norm,
                "grad/actor_norm": actor_norm,
            }

    def state_dict(self) -> State:
        return save_parts(self, self.PARTS)

    def load_state_dict(self, state: State) -> None:
        load_parts(self, self.PARTS, state)

    PARTS = (
        "actor",
        "critic",
        "norm",
        "actor_optimizer",
        "critic_optimizer",
        "explore",
        "shuffle",
        "reciprocity",
    )


def choosing(valid: Tensor, avail: Tensor | None) -> Tensor:
    """Rows from which an actor learns: those that happened where it had a choice.

    One who can do a single thing, as the dead in StarCraft, has nothing to learn (Yu et al. 2022 leave the dead out).

    Args:
        valid: bool ``[P, N, ...]``.
        avail: bool ``[P, N, ..., A]``; None: all actions at all times.
    """
    return valid if avail is None else valid & (avail.sum(-1) > 1)


def variance(x: Tensor, mask: Tensor) -> Tensor:
    """Over the rows of ``[P, N, ...]`` that count: ``[P, N]``, never 0."""
    centred = x - masked_mean(x, mask)[..., None, None]
    return masked_mean(centred.square(), mask).clamp(min=1e-8)
