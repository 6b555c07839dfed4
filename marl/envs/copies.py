"""Foreign environments, one numpy object per copy, made into the batched contract of ``marl.envs.base``.

A ``Copy`` is one foreign environment. A pool steps K copies: ``LocalPool`` here, ``marl.envs.workers.WorkerPool`` in
other processes. ``CopiesEnv`` lays the K = P * G * E copies of a pool out as ``[P, N, E, ...]``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from marl.envs.base import EnvSpec, Step, VectorEnv
from marl.streams import derive
from marl.types import State


class Copy(Protocol):
    """One copy of a foreign environment. It is seeded once, when it is built, and draws on from there.

    Where its spec has ``masked``, ``state_size`` or ``outcomes`` it is ``Masked``, ``Stated`` or ``Scored`` as well.
    """

    spec: EnvSpec

    def reset(self) -> list[np.ndarray]:
        """Begin an episode; one observation per agent, each of its own width."""

    def step(self, action: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, bool]:
        """Advance once.

        Args:
            action: ``[N, A]`` float32 in [-1, 1], to be mapped to the environment's own bounds and cut to its own
                width; or ``[N]`` int64.

        Returns:
            The observations, ``reward [N]``, ``terminated [N]`` bool and whether a time limit ended the episode. What
            is said of an agent that terminated earlier is ignored.
        """

    def state_dict(self) -> State:
        """Everything that the next steps and resets depend on; not called unless ``spec.exact_state``."""

    def load_state_dict(self, state: State) -> None: ...

    def render(self) -> np.ndarray:
        """uint8 ``[height, width, 3]``."""

    def close(self) -> None: ...


class Masked(Protocol):
    """A copy in which not every discrete action may be taken at every moment."""

    def avail(self) -> np.ndarray:
        """``[N, A]`` bool, the actions that may be taken now, one or more of each agent; also at an episode's end."""


class Stated(Protocol):
    """A copy with a global state."""

    def state(self) -> np.ndarray:
        """``[S]``, the state now, also at an episode's end."""


class Scored(Protocol):
    """A copy whose episodes come out one way or another."""

    def outcome(self) -> np.ndarray:
        """``[len(spec.outcomes)]``, how the episode went; called at its end."""


class Dead(Exception):
    """Raised by a copy whose game has died: its worker process ends, and is started again as one that crashed."""


Build: TypeAlias = Callable[[int], Copy]
"""Makes a copy from its seed. Worker processes need one that pickles: a class, or ``functools.partial`` of one."""


class Sight(NamedTuple):
    """What K copies show at one moment.

    Attributes:
        obs: ``[K, n, D]`` float32.
        avail: ``[K, n, A]`` bool; None unless ``spec.masked``.
        state: ``[K, S]`` float32; None unless ``spec.state_size``.
    """

    obs: np.ndarray
    avail: np.ndarray | None
    state: np.ndarray | None

    @classmethod
    def blank(cls, spec: EnvSpec, k: int) -> Sight:
        """Zeros, and every action that an agent has: what is shown of agents and copies of which nothing is known."""
        return cls(
            np.zeros((k, spec.n_agents, spec.obs_size), np.float32),
            np.repeat(spec.action_mask.numpy()[None], k, axis=0) if spec.masked else None,
            np.zeros((k, spec.state_size), np.float32) if spec.state_size else None,
        )

    def take(self, where: Any, other: Sight) -> None:
        """Copy what ``other`` shows of some copies."""
        for mine, theirs in zip(self, other, strict=True):
            if mine is not None and theirs is not None:
                mine[where] = theirs[where]


class Moment(NamedTuple):
    """One step of K copies, as ``marl.envs.base.Step`` has it.

    Attributes:
        now: what to act on next.
        after: what the action led to; equal to ``now`` unless the episode ended.
        reward, terminated: ``[K, n]``.
        done, lost: ``[K]``, of the whole copy.
        outcome: ``[K, len(spec.outcomes)]`` float32, zeros where no episode ended.
    """

    now: Sight
    after: Sight
    reward: np.ndarray
    terminated: np.ndarray
    done: np.ndarray
    lost: np.ndarray
    outcome: np.ndarray


class Pool(Protocol):
    """K copies stepped together, wherever they live.

    Attributes:
        restarts: ``[K]`` int64, how often each copy was lost with its process.
    """

    spec: EnvSpec
    restarts: np.ndarray

    def reset(self) -> Sight: ...

    def step_async(self, action: np.ndarray) -> None: ...

    def step_wait(self) -> Moment: ...

    def states(self) -> list[State]: ...

    def load(self, states: Sequence[State]) -> None: ...

    def render(self, index: int) -> np.ndarray: ...

    def events(self) -> list[str]: ...

    def close(self) -> None: ...


class LocalPool:
    """K copies in this process.

    A copy is *due* when the observation that its caller holds is not its own: it was just built, or its state could not
    be restored. A step begins its next episode instead of advancing it, and says that the transition is lost.

    Args:
        build: makes a copy from its seed.
        seeds: one per copy.
    """

    def __init__(self, build: Build, seeds: Sequence[int]) -> None:
        self.copies = [build(seed) for seed in seeds]
        self.spec = self.copies[0].spec
        self.restarts = np.zeros(len(seeds), np.int64)  # only carried: the run may go on with worker processes
        self.due = np.ones(len(seeds), bool)
        self.gone = np.zeros((len(seeds), self.spec.n_agents), bool)

    def reset(self) -> Sight:
        """The first moments of new episodes."""
        now = Sight.blank(self.spec, len(self.copies))
        for k in range(len(self.copies)):
            self._begin(k, now)
        return now

    def step(self, action: np.ndarray) -> Moment:
        """Advance every copy; ``action`` is ``[K, n, A]`` or ``[K, n]``. ``after`` is blank for lost transitions."""
        now, after = (Sight.blank(self.spec, len(self.copies)) for _ in range(2))
        reward = np.zeros(self.gone.shape, np.float32)
        terminated = np.zeros_like(self.gone)
        done, lost = self.due.copy(), self.due.copy()
        outcome = np.zeros((len(self.copies), len(self.spec.outcomes)), np.float32)
        for k, copy in enumerate(self.copies):
            if lost[k]:
                self._begin(k, now)
                continue
            obs, reward[k], ended, truncated = copy.step(action[k])
            self._show(k, obs, after)
            reward[k, self.gone[k]] = 0
            self.gone[k] |= ended
            terminated[k] = self.gone[k]
            done[k] = truncated or self.gone[k].all()
            if done[k]:
                if self.spec.outcomes:
                    outcome[k] = cast(Scored, copy).outcome()
                self._begin(k, now)
        now.take(~done, after)
        return Moment(now, after, reward, terminated, done, lost, outcome)

    def step_async(self, action: np.ndarray) -> None:
        """Ask for a step; nothing happens before ``step_wait``."""
        self._asked = action

    def step_wait(self) -> Moment:
        return self.step(self._asked)

    def states(self) -> list[State]:
        """One state per copy; the copy's own part is empty where it cannot be saved."""
        return [
            {
                "due": bool(self.due[k]),
                "gone": self.gone[k].tolist(),
                "copy": copy.state_dict() if self.spec.exact_state else {},
            }
            for k, copy in enumerate(self.copies)
        ]

    def load(self, states: Sequence[State]) -> None:
        """Go on from ``states``; copies that cannot be restored are due."""
        for k, (copy, state) in enumerate(zip(self.copies, states, strict=True)):
            self.due[k] = state["due"] or not self.spec.exact_state
            self.gone[k] = state["gone"]
            if self.spec.exact_state:
                copy.load_state_dict(state["copy"])

    def render(self, index: int) -> np.ndarray:
        return self.copies[index].render()

    def events(self) -> list[str]:
        return []

    def close(self) -> None:
        for copy in self.copies:
            copy.close()

    def _begin(self, k: int, into: Sight) -> None:
        self.due[k] = False
        self.gone[k] = False
        self._show(k, self.copies[k].reset(), into)

    def _show(self, k: int, obs: Sequence[np.ndarray], into: Sight) -> None:
        """Write what copy k shows into ``into``, which is blank there; agents that are gone see nothing."""
        copy, there = self.copies[k], ~self.gone[k]
        for row, one, present in zip(into.obs[k], obs, there, strict=True):
            if present:
                row[: len(one)] = one
        if into.avail is not None:
            into.avail[k, there] = cast(Masked, copy).avail()[there]
        if into.state is not None:
            into.state[k] = cast(Stated, copy).state()


def copy_seeds(seeds: Sequence[int], copies: int, learners: int = 1) -> list[int]:
    """One seed per copy in the pool's order (member, learner, copy), of 31 bits since some libraries take no more.

    A copy's seed depends on its member's seed and on its own place, not on how many members or workers there are.
    """
    return [derive(s, "env", e, g) % 2**31 for s in seeds for g in range(learners) for e in range(copies)]


class CopiesEnv(VectorEnv):
    """The copies of a pool as one batched environment.

    Args:
        pool: P * G * E copies of n agents each, in the order of ``copy_seeds``.
        members: P.
        copies: E, per member and learner.
        learners: G. With G > 1 each learner has copies of its own (``spec.independent``): N = G, n = 1. Else N = n.

    Raises:
        ValueError: for several learners in a task of several agents.
    """

    def __init__(self, pool: Pool, *, members: int, copies: int, learners: int = 1) -> None:
        self.pool = pool
        self.members = members
        self.copies = copies
        self.learners = learners
        spec = pool.spec
        if learners > 1:
            if spec.n_agents > 1:
                raise ValueError(f"independent learners need a task of one agent, {spec.id} has {spec.n_agents}")
            spec = dataclasses.replace(
                spec,
                agents=tuple(f"learner_{g}" for g in range(learners)),
                obs_sizes=spec.obs_sizes * learners,
                action_sizes=spec.action_sizes * learners,
                independent=True,
                state_size=0,  # there is a world for each learner, not one for all
                outcomes=(),
            )
        self.spec = spec
        self._now = Sight.blank(pool.spec, members * learners * copies)
        self._events: list[str] = []

    def reset(self) -> Tensor:
        self._now = self.pool.reset()
        return self._fold(self._now.obs)

    def avail(self) -> Tensor | None:
        return None if self._now.avail is None else self._fold(self._now.avail)

    def state(self) -> Tensor | None:
        return self._whole(self._now.state) if self.spec.state_size else None

    def step(self, action: Tensor) -> Step:
        self.step_async(action)
        return self.step_wait()

    def step_async(self, action: Tensor) -> None:
        n, sizes = self.pool.spec.n_agents, action.shape[3:]
        split = action.numpy().reshape(self.members, self.learners, n, self.copies, *sizes).swapaxes(2, 3)
        self.pool.step_async(np.ascontiguousarray(split.reshape(-1, n, *sizes)))

    def step_wait(self) -> Step:
        now, after, reward, terminated, done, lost, outcome = self.pool.step_wait()
        if any_lost := bool(lost.any()):
            after.take(lost, self._now)
        self._now = now
        return Step(
            self._fold(now.obs),
            self._fold(after.obs),
            self._fold(reward),
            self._fold(terminated),
            self._each(done),
            self._each(lost) if any_lost else None,
            self.avail(),
            None if after.avail is None else self._fold(after.avail),
            self.state(),
            self._whole(after.state) if self.spec.state_size else None,
            self._whole(outcome) if self.spec.outcomes else None,
        )

    def state_dict(self) -> State:
        seen = {name: torch.from_numpy(x.copy()) for name, x in self._now._asdict().items() if x is not None}
        return {
            **seen,
            "restarts": torch.from_numpy(self.pool.restarts.copy()),
            "copies": {str(k): state for k, state in enumerate(self.pool.states())},
        }

    def load_state_dict(self, state: State) -> None:
        seen = {name: state[name].numpy().copy() for name in Sight._fields if name in state}
        self._now = Sight(seen["obs"], seen.get("avail"), seen.get("state"))
        self.pool.restarts[:] = state["restarts"].numpy()
        self.pool.load([state["copies"][str(k)] for k in range(len(self._now.obs))])
        if not self.spec.exact_state:
            self._events.append("its state cannot be saved: every copy begins a new episode")

    def events(self) -> list[str]:
        events, self._events = self._events + self.pool.events(), []
        return events

    def render(self, member: int = 0, copy: int = 0) -> np.ndarray:
        """The picture of one copy (of the first learner where learners have their own)."""
        return self.pool.render(member * self.learners * self.copies + copy)

    def close(self) -> None:
        self.pool.close()

    def _fold(self, array: np.ndarray) -> Tensor:
        """``[P * G * E, n, ...]`` to ``[P, G * n, E, ...]``, in memory of its own."""
        split = array.reshape(self.members, self.learners, self.copies, *array.shape[1:]).swapaxes(2, 3)
        agents, sizes = self.spec.n_agents, array.shape[2:]
        return torch.from_numpy(split.copy().reshape(self.members, agents, self.copies, *sizes))

    def _each(self, flags: np.ndarray) -> Tensor:
        """What is said of whole copies ``[P * G * E]``, to every agent of theirs: ``[P, G * n, E]``."""
        return self._fold(np.repeat(flags[:, None], self.pool.spec.n_agents, axis=1))

    def _whole(self, array: Any) -> Tensor:
        """What copies hold once for all their agents, ``[P * E, ...]`` to ``[P, E, ...]``, in memory of its own."""
        return torch.from_numpy(array).unflatten(0, (self.members, self.copies)).clone()
