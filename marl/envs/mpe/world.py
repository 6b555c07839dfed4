"""The physics of the particle world for many copies at once.

The long axis M = members x copies is the last, contiguous one of every tensor; x and y are planes of their own. There
are K = A + L bodies: A agents first, then L landmarks. Every operation is elementwise along M and gives a copy the same
bits wherever it lies on that axis (which ``torch.sum`` and ``softplus`` do not), so that a member of a population
lives exactly the life that it would live alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from marl.types import State

DT = 0.1
DAMPING = 0.25
CONTACT_FORCE = 100.0
CONTACT_MARGIN = 0.001


class Body(NamedTuple):
    """What never changes about an agent or a landmark (landmarks do not move).

    Attributes:
        size: radius.
        collide: whether it pushes, and is pushed by, other bodies that collide.
        accel: force at full thrust (masses are 1); 0 for an agent that cannot move.
        max_speed: the velocity is cut to this length.
        color: red, green, blue in [0, 1].
    """

    size: float
    collide: bool
    accel: float = 5.0
    max_speed: float = math.inf
    color: tuple[float, float, float] = (0.25, 0.25, 0.25)


def add_rows(x: Tensor) -> Tensor:
    """The sum over the first axis in a fixed order."""
    total = x.new_zeros(1, *x.shape[1:])
    return total.index_add_(0, torch.zeros(len(x), dtype=torch.int64), x)[0]


class World:
    """Positions, velocities, words and goals of M copies.

    Args:
        agents: A of them.
        landmarks: L of them.
        width: M.
        dtype: of positions and velocities.
        channels: C, the length of a message.
        goals: G, how many landmarks are picked per episode.
        velocity_first: the original order (new velocity, then position); False: mpe2's (position, then velocity).

    Attributes:
        pos: ``[K, 2, M]``.
        vel: ``[A, 2, M]``.
        words: ``[A, C, M]``, what each agent said last.
        goal: ``[G, M]`` int64, indices of landmarks.
        rel: ``[A, K - 1, 2, M]``, where agent a sees the others: the L landmarks first, then the other agents in order.
        dist: ``[A, K - 1, M]``, the lengths of ``rel``.
    """

    def __init__(
        self,
        agents: Sequence[Body],
        landmarks: Sequence[Body],
        width: int,
        dtype: torch.dtype,
        channels: int = 0,
        goals: int = 0,
        velocity_first: bool = False,
    ) -> None:
        a, bodies = len(agents), [*agents, *landmarks]
        self.agents, self.landmarks = a, len(landmarks)
        self.velocity_first = velocity_first
        self.pos = torch.zeros(len(bodies), 2, width, dtype=dtype)
        self.vel = torch.zeros(a, 2, width, dtype=dtype)
        self.words = torch.zeros(a, channels, width, dtype=dtype)
        self.goal = torch.zeros(goals, width, dtype=torch.int64)
        self.size = torch.tensor([b.size for b in bodies], dtype=dtype)
        self._accel = torch.tensor([b.accel for b in agents], dtype=dtype)[:, None, None]
        self._max_speed = torch.tensor([b.max_speed for b in agents], dtype=dtype)[:, None]
        self._capped = any(b.max_speed < math.inf for b in agents)

        seen = [[*range(a, len(bodies)), *(j for j in range(a) if j != i)] for i in range(a)]
        self._seen = torch.tensor(seen, dtype=torch.int64).flatten()
        pairs = [(i, j) for i in range(a) for j in range(i + 1, len(bodies)) if bodies[i].collide and bodies[j].collide]
        pairs.sort(key=lambda pair: pair[1] >= a)  # agents among themselves, then agents with landmarks
        self._pair = torch.tensor([i * (len(bodies) - 1) + seen[i].index(j) for i, j in pairs], dtype=torch.int64)
        self._first = torch.tensor([i for i, _ in pairs], dtype=torch.int64)
        self._second = torch.tensor([j for _, j in pairs if j < a], dtype=torch.int64)
        self._reach = torch.tensor([bodies[i].size + bodies[j].size for i, j in pairs], dtype=dtype)[:, None]
        self.look()

    def look(self) -> None:
        """Compute ``rel`` and ``dist`` from ``pos``; whoever writes ``pos`` calls it afterwards."""
        others = self.pos.index_select(0, self._seen).unflatten(0, (self.agents, -1))
        self.rel = others.sub_(self.pos[: self.agents, None])
        self.dist = length(self.rel)

    def of_others(self, values: Tensor) -> Tensor:
        """``values [A, ...]`` of the other agents, in the order of ``rel``: ``[A, A - 1, ...]``."""
        others = self._seen.view(self.agents, -1)[:, self.landmarks :].flatten()
        return values.index_select(0, others).unflatten(0, (self.agents, -1))

    def advance(self, thrust: Tensor, words: Tensor) -> None:
        """One step of DT.

        Args:
            thrust: ``[A, 2, M]`` in units of each agent's own acceleration.
            words: ``[A, C, M]``.
        """
        force = thrust * self._accel
        if len(self._pair):
            self._contact(force)
        if not self.velocity_first:
            self.pos[: self.agents] += self.vel * DT
        self.vel *= 1 - DAMPING
        self.vel += force.mul_(DT)
        if self._capped:
            speed = length(self.vel)
            fast = speed > self._max_speed
            self.vel *= torch.where(fast, self._max_speed / speed, 1.0)[:, None]
        if self.velocity_first:
            self.pos[: self.agents] += self.vel * DT
        self.words = words
        self.look()

    def _contact(self, force: Tensor) -> None:
        """Add to ``force [A, 2, M]`` what touching bodies do to each other: k log(1 + exp(-gap / k)) along the line."""
        rel = self.rel.flatten(0, 1).index_select(0, self._pair)
        dist = self.dist.flatten(0, 1).index_select(0, self._pair)
        depth = (self._reach - dist).div_(CONTACT_MARGIN)
        push = depth.abs().neg_().exp_().log1p_().add_(depth.clamp_(min=0))
        push.mul_(CONTACT_FORCE * CONTACT_MARGIN).div_(dist.clamp_(min=1e-12))
        rel *= push[:, None]
        force.index_add_(0, self._first, rel, alpha=-1)
        force.index_add_(0, self._second, rel[: len(self._second)])

    def state_dict(self) -> State:
        return {
            "pos": self.pos.clone(),
            "vel": self.vel.clone(),
            "words": self.words.clone(),
            "goal": self.goal.clone(),
        }

    def load_state_dict(self, state: State) -> None:
        for name in ("pos", "vel", "words", "goal"):
            getattr(self, name).copy_(state[name])
        self.look()


def length(vector: Tensor) -> Tensor:
    """``[..., 2, M]`` to ``[..., M]``."""
    square = vector * vector
    return (square[..., 0, :] + square[..., 1, :]).sqrt_()
