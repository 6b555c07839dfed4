"""The one contract that every environment meets: batched, tensors in and out, exact state save and restore."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from marl.types import State, UserError, View


@dataclass(frozen=True)
class EnvSpec:
    """What a learner may know of an environment before it starts.

    Attributes:
        id: the name it was made by, for example ``mpe/simple_spread_v3``.
        agents: the names of the N learning agents.
        obs_sizes: the true width of each agent's observation; the tensors are padded with zeros to the widest (D).
        action_sizes: continuous: the true number of components of each agent; discrete: its number of actions.
        discrete: all agents act by an index (int64) or all by a vector in [-1, 1] (float32).
        max_steps: the time limit in steps, after which an episode is *truncated*; None: no limit.
        independent: each agent lives in its own copy of the task and its episodes end on their own.
        exact_state: ``load_state_dict`` restores the environment bit for bit; False: it restarts episodes, and the step
            after it is marked as ``lost``.
        rules: one line that names the game's rules where several games share a name; shown beside returns.
        state_size: S, the width of the environment's own global state; 0: it has none.
        masked: not every discrete action may be taken at every moment (``View.avail``).
        outcomes: what an episode's end tells besides the return (``Step.outcome``): each NAME is logged as
            ``train/NAME`` and ``eval/NAME``, which ``marl.log.METRICS`` must have.
        bytes: observations are whole numbers from 0 to 255 (still float32 in the tensors): replays keep them as bytes,
            and networks see them divided by 255.
        pixels: (channels, height, width) where the D numbers of an observation are a picture; None: they are not.
        stack: an observation is so many frames of D / stack numbers, one after the other, the oldest first: at each
            step of an episode the oldest one goes and a new one comes. Replays keep each once. 1: it is no stack.
        clip_rewards: learners are to learn from rewards cut to [-1, 1] (``taught``). ``Step.reward``, and with it every
            return, is what was truly earned.
    """

    id: str
    agents: tuple[str, ...]
    obs_sizes: tuple[int, ...]
    action_sizes: tuple[int, ...]
    discrete: bool
    max_steps: int | None = None
    independent: bool = False
    exact_state: bool = True
    rules: str = ""
    state_size: int = 0
    masked: bool = False
    outcomes: tuple[str, ...] = ()
    bytes: bool = False
    pixels: tuple[int, int, int] | None = None
    stack: int = 1
    clip_rewards: bool = False

    def __post_init__(self) -> None:
        """Raise ``UserError`` where there is nothing to see or nothing to do."""
        for what, size in (("observations", self.obs_size), ("actions", self.action_size)):
            if size < 1:
                raise UserError(f"{self.id}: expected {what} of one number or more, got none")

    @property
    def n_agents(self) -> int:
        """N."""
        return len(self.agents)

    @property
    def obs_size(self) -> int:
        """D, the widest observation."""
        return max(self.obs_sizes)

    @property
    def action_size(self) -> int:
        """A, the widest action (or the largest number of discrete actions)."""
        return max(self.action_sizes)

    @property
    def obs_mask(self) -> Tensor:
        """``[N, D]`` bool: True where the observation is the agent's own, False where it is padding."""
        return torch.arange(self.obs_size) < torch.tensor(self.obs_sizes)[:, None]

    @property
    def action_mask(self) -> Tensor:
        """``[N, A]`` bool: True where the action (or its component) is the agent's own, False where it is padding."""
        return torch.arange(self.action_size) < torch.tensor(self.action_sizes)[:, None]

    def taught(self, step: Step) -> Step:
        """A step as a buffer is to remember it; the same one unless ``clip_rewards``."""
        return step._replace(reward=step.reward.clamp(-1, 1)) if self.clip_rewards else step


class Step(NamedTuple):
    """What one call of ``step`` answers.

    Copies reset by themselves *within* the step that ends their episode ("same-step" reset): there ``obs`` is the first
    observation of the next episode and ``next_obs`` the last one of the episode that ended. Elsewhere they are equal.
    An agent that leaves before the episode's end observes zeros, earns 0 and keeps ``terminated`` until the end.

    Attributes:
        obs: ``[P, N, E, D]`` float32, what to act on next.
        next_obs: ``[P, N, E, D]`` float32, the true successor of the previous observation: the one to bootstrap from.
        reward: ``[P, N, E]`` float32.
        terminated: ``[P, N, E]`` bool, the task itself ended for that agent; never true at a mere time limit.
        done: ``[P, N, E]`` bool, the agent's episode ended at this step, for whichever reason.
        lost: ``[P, N, E]`` bool, or None for none: this transition did not happen (its worker process died and the copy
            was reset), so nothing may be learnt from it. ``done`` is set there as well, ``terminated`` is not.
        avail, next_avail: ``[P, N, E, A]`` bool, with ``obs`` and ``next_obs``; None unless ``spec.masked``.
        state, next_state: ``[P, E, S]`` float32, with ``obs`` and ``next_obs``; None unless ``spec.state_size``.
        outcome: ``[P, E, K]`` float32, one number for each of ``spec.outcomes``, to be read where the episode ended at
            this step; None if there are none.
    """

    obs: Tensor
    next_obs: Tensor
    reward: Tensor
    terminated: Tensor
    done: Tensor
    lost: Tensor | None = None
    avail: Tensor | None = None
    next_avail: Tensor | None = None
    state: Tensor | None = None
    next_state: Tensor | None = None
    outcome: Tensor | None = None

    @property
    def view(self) -> View:
        """What to act on next."""
        return View(self.obs, self.avail, self.state)

    @property
    def truncated(self) -> Tensor:
        """``[P, N, E]`` bool: the episode ended although the task did not."""
        return self.done & ~self.terminated


class VectorEnv(ABC):
    """P members x E copies of one environment, stepped together.

    Member p's copies draw from streams derived from member p's seed alone: see ``marl.streams``.
    """

    spec: EnvSpec
    members: int
    copies: int

    @abstractmethod
    def reset(self) -> Tensor:
        """Start every copy afresh, going on with its random stream; the first observations ``[P, N, E, D]``."""

    def avail(self) -> Tensor | None:
        """The actions that may be taken now, ``[P, N, E, A]`` bool; None unless ``spec.masked``."""
        return None

    def state(self) -> Tensor | None:
        """The global state now, ``[P, E, S]`` float32; None unless ``spec.state_size``."""
        return None

    def start(self) -> View:
        """``reset``, and all that is seen then."""
        obs = self.reset()
        return View(obs, self.avail(), self.state())

    @abstractmethod
    def step(self, action: Tensor) -> Step:
        """Advance every copy once.

        Args:
            action: ``[P, N, E, A]`` float32 in [-1, 1] (components beyond an agent's own are ignored), or
                ``[P, N, E]`` int64.
        """

    def step_async(self, action: Tensor) -> None:
        """Ask for a step, which ``step_wait`` answers: copies in worker processes advance while the caller does other
        things. Between the two calls nothing else may be asked."""
        self._asked = action

    def step_wait(self) -> Step:
        """What ``step`` would have answered to the action given to ``step_async``."""
        return self.step(self._asked)

    @abstractmethod
    def state_dict(self) -> State:
        """Everything that the next steps depend on, random generators included."""

    @abstractmethod
    def load_state_dict(self, state: State) -> None:
        """Go on exactly where ``state_dict`` was taken."""

    def events(self) -> list[str]:
        """What happened since the last call that a log should say (a worker restarted, ...), one line each."""
        return []

    def render(self, member: int = 0, copy: int = 0) -> np.ndarray:
        """The picture of one copy, uint8 ``[height, width, 3]``; raises ``UserError`` where there is none."""
        raise UserError(f"{self.spec.id} cannot be drawn")

    def close(self) -> None:
        """Release windows, processes and files."""


def with_agents(env: VectorEnv, agents: int | None, why: str = "") -> VectorEnv:
    """The environment, if it has as many agents as were asked for (None: any number).

    Raises:
        UserError: it has others, which ``why`` explains; it is closed.
    """
    if agents not in (None, env.spec.n_agents):
        env.close()
        raise UserError(f"{env.spec.id} has {env.spec.n_agents} agents, not {agents}{why}")
    return env
