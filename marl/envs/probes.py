"""Tiny environments whose optimal values are known in closed form, one per way for a learner to be wrong.

A learner that fails ``probe/x`` and solves the others has its fault where ``x`` points. Each class states its values;
``optimal_value`` and ``best_action`` compute them from observations, so that a test can ask a critic and an actor for
exactly these numbers. With ``continuous=False`` actions are indices.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from marl.config import option, suggestion
from marl.envs.base import EnvSpec, Step, VectorEnv, with_agents
from marl.streams import Streams
from marl.types import State, UserError


@dataclass(frozen=True)
class ProbeOptions:
    """Settings of every probe."""

    continuous: bool = option(True, "Act by a vector in [-1, 1]; false: by an index.")


class Probe(VectorEnv):
    """P x E copies of an episode of ``length`` steps, as tensors.

    A state is the step within the episode, ``time [P, E]``, and a ``signal [P, N, E, 3]`` of entries -1/2 or 1/2, drawn
    when the episode begins and fixed in it. A subclass sets the class attributes and says what is seen and paid.

    Attributes:
        length: steps of an episode.
        limit: the episode's end is a time limit; False: the task itself ends.
        obs_sizes, action_sizes, action_counts: per agent: widths of observations and of continuous actions, and numbers
            of discrete ones.
        optimal_return: per agent, the expected undiscounted return of an episode under the best policy.
    """

    length: ClassVar[int] = 1
    limit: ClassVar[bool] = False
    obs_sizes: ClassVar[tuple[int, ...]] = (1,)
    action_sizes: ClassVar[tuple[int, ...]] = (1,)
    action_counts: ClassVar[tuple[int, ...]] = (2,)
    optimal_return: ClassVar[tuple[float, ...]] = (1.0,)

    def __init__(self, seeds: Sequence[int], copies: int, options: ProbeOptions) -> None:
        n = len(self.obs_sizes)
        self.spec = EnvSpec(
            id=f"probe/{type(self).__name__.lower()}",
            agents=tuple(f"agent_{i}" for i in range(n)),
            obs_sizes=self.obs_sizes,
            action_sizes=self.action_sizes if options.continuous else self.action_counts,
            discrete=not options.continuous,
            max_steps=self.length if self.limit else None,
        )
        self.members, self.copies = len(seeds), copies
        self.streams = Streams(seeds, "probe")
        self.time = torch.zeros(self.members, copies, dtype=torch.int64)
        self.signal = self._draw()

    @abstractmethod
    def observe(self, time: Tensor, signal: Tensor) -> Tensor:
        """``[P, N, E, D]``, what is seen at a state; ``time`` is ``length`` at the end of an episode."""

    @abstractmethod
    def pay(self, time: Tensor, signal: Tensor, action: Tensor) -> Tensor:
        """``[P, N, E]``, the reward of acting in a state."""

    @abstractmethod
    def optimal_value(self, obs: Tensor, gamma: float) -> Tensor:
        """``[P, N, E]``, the best expected discounted return from an observation ``[P, N, E, D]``."""

    def best_action(self, obs: Tensor) -> Tensor:
        """An action that earns ``optimal_value``; where actions do not matter: zeros."""
        shape = obs.shape[:-1]
        return (
            torch.zeros(shape, dtype=torch.int64) if self.spec.discrete else torch.zeros(*shape, self.spec.action_size)
        )

    def reset(self) -> Tensor:
        self.time = torch.zeros_like(self.time)
        self.signal = self._draw()
        return self.observe(self.time, self.signal)

    def step(self, action: Tensor) -> Step:
        reward = self.pay(self.time, self.signal, action)
        after = self.time + 1
        next_obs = self.observe(after, self.signal)
        ended = after == self.length
        self.time = torch.where(ended, 0, after)
        self.signal = torch.where(ended[:, None, :, None], self._draw(), self.signal)
        obs = torch.where(ended[:, None, :, None], self.observe(self.time, self.signal), next_obs)
        done = ended[:, None].repeat(1, self.spec.n_agents, 1)
        return Step(obs, next_obs, reward, torch.zeros_like(done) if self.limit else done.clone(), done)

    def state_dict(self) -> State:
        return {"time": self.time.clone(), "signal": self.signal.clone(), "streams": self.streams.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self.time, self.signal = state["time"].clone(), state["signal"].clone()
        self.streams.load_state_dict(state["streams"])

    def _draw(self) -> Tensor:
        """New signals for all copies, used where an episode begins: the stream moves alike in every step."""
        return self.streams.integers(2, self.spec.n_agents, self.copies, 3) - 0.5

    def _ones(self) -> Tensor:
        return torch.ones(self.members, self.spec.n_agents, self.copies)

    def _phase(self, time: Tensor) -> Tensor:
        """``[P, N, E, length]``, one-hot in the step of the episode, zero at its end."""
        seen = time[..., None] == torch.arange(self.length)
        return seen.float()[:, None].repeat(1, self.spec.n_agents, 1, 1)


class Constant(Probe):
    """One step, reward 1 whatever is done: value 1. A critic that fails here cannot regress at all."""

    def observe(self, time: Tensor, signal: Tensor) -> Tensor:
        return self._ones()[..., None]

    def pay(self, time: Tensor, signal: Tensor, action: Tensor) -> Tensor:
        return self._ones()

    def optimal_value(self, obs: Tensor, gamma: float) -> Tensor:
        return torch.ones(obs.shape[:-1])


class Discount(Probe):
    """Two steps, reward 0 and then 1: values gamma and 1. Wrong where the bootstrap or its discount is."""

    length = 2
    obs_sizes = (2,)

    def observe(self, time: Tensor, signal: Tensor) -> Tensor:
        return self._phase(time)

    def pay(self, time: Tensor, signal: Tensor, action: Tensor) -> Tensor:
        return self._ones() * time[:, None]

    def optimal_value(self, obs: Tensor, gamma: float) -> Tensor:
        return gamma * obs[..., 0] + obs[..., 1]


class Truncation(Probe):
    """Reward 1 a step under a limit of 5 steps that is not seen: value 1 + gamma + gamma^2 + ... = 1 / (1 - gamma).

    A learner that takes the limit for an end sees, averaged over the five steps that look alike, far less: every fifth
    target is 1, so its value v solves v = 1 + gamma * (4/5) * v, which is 1 / (1 - .8 gamma).
    """

    length = 5
    limit = True
    optimal_return = (5.0,)

    def observe(self, time: Tensor, signal: Tensor) -> Tensor:
        return self._ones()[..., None]

    def pay(self, time: Tensor, signal: Tensor, action: Tensor) -> Tensor:
        return self._ones()

    def optimal_value(self, obs: Tensor, gamma: float) -> Tensor:
        return torch.full(obs.shape[:-1], 1 / (1 - gamma))


class Termination(Probe):
    """Reward 1 a step, and the task ends after 3: values 1 + gamma + gamma^2, 1 + gamma and 1.

    A learner that goes on after the end (into the next episode, say) sees 1 / (1 - gamma) everywhere.
    """

    length = 3
    obs_sizes = (3,)
    optimal_return = (3.0,)

    def observe(self, time: Tensor, signal: Tensor) -> Tensor:
        return self._phase(time)

    def pay(self, time: Tensor, signal: Tensor, action: Tensor) -> Tensor:
        return self._ones()

    def optimal_value(self, obs: Tensor, gamma: float) -> Tensor:
        return obs @ torch.tensor([1 + gamma + gamma**2, 1 + gamma, 1.0])


class Credit(Probe):
    """Agent i = 0, 1, 2 earns (i + 1) times how well *its own* action hits its own target: values 1, 2, 3.

    The targets are -1/2, 0, 1/2 (the square of the miss is taken off 1) or the actions 0, 1, 2. A learner that gives
    everybody the sum finds 6, one that mixes up agents finds 1, 2, 3 in another order.
    """

    obs_sizes = (1, 1, 1)
    action_sizes = (1, 1, 1)
    action_counts = (3, 3, 3)
    optimal_return = (1.0, 2.0, 3.0)

    def observe(self, time: Tensor, signal: Tensor) -> Tensor:
        return self._ones()[..., None]

    def pay(self, time: Tensor, signal: Tensor, action: Tensor) -> Tensor:
        worth = torch.tensor(self.optimal_return)[:, None]
        return worth * _hit(action, self.best_action(self.observe(time, signal)))

    def optimal_value(self, obs: Tensor, gamma: float) -> Tensor:
        return torch.tensor(self.optimal_return)[:, None].expand(obs.shape[:-1])

    def best_action(self, obs: Tensor) -> Tensor:
        own = torch.arange(3)[:, None].expand(obs.shape[:-1])
        return own if self.spec.discrete else (own[..., None] - 1) / 2


class Team(Probe):
    """Two agents see one signal c and earn the same: 1 if *together* they do what it says, so the value is 1.

    Continuous: 1 - (a_0 + a_1 - c)^2. Discrete: 1 if the actions are equal where c > 0 and different where c < 0, else
    0. What is best for one depends on the other, who has to be learnt along.
    """

    obs_sizes = (1, 1)
    action_sizes = (1, 1)
    action_counts = (2, 2)
    optimal_return = (1.0, 1.0)

    def observe(self, time: Tensor, signal: Tensor) -> Tensor:
        return signal[:, :1, :, :1].repeat(1, 2, 1, 1)

    def pay(self, time: Tensor, signal: Tensor, action: Tensor) -> Tensor:
        c = signal[:, :1, :, 0]
        if self.spec.discrete:
            earned = ((action[:, :1] == action[:, 1:]) == (c > 0)).float()
        else:
            earned = 1 - (action.sum(1, keepdim=True)[..., 0] - c) ** 2
        return earned.repeat(1, 2, 1)

    def optimal_value(self, obs: Tensor, gamma: float) -> Tensor:
        return torch.ones(obs.shape[:-1])

    def best_action(self, obs: Tensor) -> Tensor:
        if self.spec.discrete:
            return (obs[..., 0] < 0).long() * torch.tensor([0, 1])[:, None]
        return obs / 2


class Heterogeneous(Probe):
    """Agent 0 sees c and has one action component, agent 1 sees (1, c, d) and has two; both have value 1.

    Each component pays 1 minus the square of its distance from its target, which is c, or c and d (agent 1 earns the
    mean of its two). Discrete: agent 0 of 2 actions must play [c > 0], agent 1 of 3 the count of positives in c, d.
    Wrong where padding enters a loss or a shape of one agent is used for the other.
    """

    obs_sizes = (1, 3)
    action_sizes = (1, 2)
    action_counts = (2, 3)
    optimal_return = (1.0, 1.0)

    def observe(self, time: Tensor, signal: Tensor) -> Tensor:
        first = torch.nn.functional.pad(signal[:, :1, :, :1], (0, 2))
        second = torch.cat([torch.ones_like(signal[:, 1:, :, :1]), signal[:, 1:, :, :2]], dim=-1)
        return torch.cat([first, second], dim=1)

    def pay(self, time: Tensor, signal: Tensor, action: Tensor) -> Tensor:
        best = self.best_action(self.observe(time, signal))
        if self.spec.discrete:
            return _hit(action, best)
        return torch.cat([_hit(action[:, :1, :, :1], best[:, :1, :, :1]), _hit(action[:, 1:], best[:, 1:])], dim=1)

    def optimal_value(self, obs: Tensor, gamma: float) -> Tensor:
        return torch.ones(obs.shape[:-1])

    def best_action(self, obs: Tensor) -> Tensor:
        if self.spec.discrete:
            return torch.stack([obs[:, 0, :, 0] > 0, (obs[:, 1, :, 1:] > 0).sum(-1)], dim=1).long()
        first = torch.nn.functional.pad(obs[:, :1, :, :1], (0, 1))
        return torch.cat([first, obs[:, 1:, :, 1:]], dim=1)


class Masking(Probe):
    """Two agents; each is paid the first entry of its own observation: value +-1/2, on average 0.

    The other two entries are noise. Wrong where observations are masked away, shuffled among agents or copies, or
    paired with another moment's reward.
    """

    obs_sizes = (3, 3)
    action_sizes = (1, 1)
    action_counts = (2, 2)
    optimal_return = (0.0, 0.0)

    def observe(self, time: Tensor, signal: Tensor) -> Tensor:
        return signal.clone()

    def pay(self, time: Tensor, signal: Tensor, action: Tensor) -> Tensor:
        return signal[..., 0].clone()

    def optimal_value(self, obs: Tensor, gamma: float) -> Tensor:
        return obs[..., 0]


class Policy(Probe):
    """The action must follow the signal c that is seen: 1 - (a - c)^2, or 1 for the action [c > 0], else 0: value 1.

    Wrong where the actor's gradient has the wrong sign or does not see the observation: a constant action earns 3/4 at
    best (1/2 with discrete actions).
    """

    def observe(self, time: Tensor, signal: Tensor) -> Tensor:
        return signal[..., :1].clone()

    def pay(self, time: Tensor, signal: Tensor, action: Tensor) -> Tensor:
        return _hit(action, self.best_action(self.observe(time, signal)))

    def optimal_value(self, obs: Tensor, gamma: float) -> Tensor:
        return torch.ones(obs.shape[:-1])

    def best_action(self, obs: Tensor) -> Tensor:
        return (obs[..., 0] > 0).long() if self.spec.discrete else obs.clone()


def _hit(action: Tensor, best: Tensor) -> Tensor:
    """1 at the best action: an index hits or misses, a vector loses the mean square of its distance."""
    if action.dtype == torch.int64:
        return (action == best).float()
    return 1 - ((action - best) ** 2).mean(-1)


PROBES: dict[str, type[Probe]] = {
    kind.__name__.lower(): kind
    for kind in (Constant, Discount, Truncation, Termination, Credit, Team, Heterogeneous, Masking, Policy)
}


class Probes:
    """``probe/NAME``. All copies step in one call in this process, so ``workers`` changes nothing."""

    options: type | None = ProbeOptions

    def names(self) -> Sequence[str]:
        return list(PROBES)

    def make(
        self, name: str, *, seeds: Sequence[int], copies: int, agents: int | None, workers: int, options: ProbeOptions
    ) -> VectorEnv:
        if name not in PROBES:
            raise UserError(f"no environment 'probe/{name}'{suggestion(name, PROBES)}")
        return with_agents(PROBES[name](seeds, copies, options), agents)


FAMILY = Probes()
