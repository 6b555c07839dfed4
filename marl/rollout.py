"""The newest steps of all copies in time order, for learners that use what their present policy did and forget it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from marl.envs.base import EnvSpec, Step
from marl.types import Acted, Schedule, State, Trajectory, View

STATES = ("state", "next_state")
"""What belongs to all agents at once; kept as ``[P, 1, T, E, S]``."""


class Rollout:
    """Up to ``steps`` steps of each member's copies; ``draw`` hands them out and begins anew.

    Memory per step, copy and agent: 8 D + 4 A + 7 bytes (discrete: 8 D + 15; A more where actions are masked, 4 H more
    where the learner notes something), and 8 S per step and copy with a global state.

    Args:
        steps: T.
        spec: the environment's.
        members: P.
        copies: E.
        memory_size: H, what the learner notes beside its action; 0: nothing.
    """

    capacity = 0
    written = 0
    """Nothing is journalled: ``state_dict`` holds everything."""

    def __init__(self, steps: int, spec: EnvSpec, members: int, copies: int, memory_size: int = 0) -> None:
        self.steps, self.copies = steps, copies
        self.schedule = Schedule(0, steps * copies)
        grid = (members, spec.n_agents, steps, copies)
        flags = {name: torch.zeros(grid, dtype=torch.bool) for name in ("terminated", "done", "valid")}
        self.rows = {
            "obs": torch.zeros(*grid, spec.obs_size),
            "action": torch.zeros(grid, dtype=torch.int64) if spec.discrete else torch.zeros(*grid, spec.action_size),
            "reward": torch.zeros(grid),
            "next_obs": torch.zeros(*grid, spec.obs_size),
            **flags,
        }
        if spec.masked:
            self.rows["avail"] = torch.zeros(*grid, spec.action_size, dtype=torch.bool)
        if spec.state_size:
            self.rows |= {name: torch.zeros(members, 1, steps, copies, spec.state_size) for name in STATES}
        if memory_size:
            self.rows["memory"] = torch.zeros(*grid, memory_size)
        # agents that have left an episode which goes on without them
        self.left = torch.zeros(members, spec.n_agents, copies, dtype=torch.bool)
        self.length = 0

    @classmethod
    def of(cls, config: Any, spec: EnvSpec, copies: int, seeds: Sequence[int], memory_size: int) -> Rollout:
        """As a learner's configuration asks for: ``rollout``."""
        return cls(config.rollout, spec, len(seeds), copies, memory_size)

    def __len__(self) -> int:
        """Transitions held for each member."""
        return self.length * self.copies

    def add(self, view: View, acted: Acted, step: Step) -> None:
        """Store one step of all copies: what was seen and had been noted, what was done, what the environment answered.

        Raises ``ValueError`` when T steps are held already.
        """
        if self.length == self.steps:
            raise ValueError(f"a rollout of {self.steps} steps is full; draw it")
        happened = ~self.left
        if step.lost is not None:
            happened &= ~step.lost
            if self.length:  # the step before goes on to something that never happened: cut, and bootstrap there
                self.rows["done"][:, :, self.length - 1] |= step.lost
        found = {**step._asdict(), **view._asdict(), "action": acted.action, "valid": happened}
        for name, rows in self.rows.items():
            rows[:, :, self.length] = found[name].unsqueeze(1) if name in STATES else found[name]
        self.left = (self.left | step.terminated) & ~step.done
        self.length += 1

    def draw(self) -> Trajectory:
        """The steps held, whose tensors stay as they are until the next ``add``; the rollout is empty from now on."""
        rows = {name: rows[:, :, : self.length] for name, rows in self.rows.items()}
        self.length = 0
        return Trajectory(**{name: x.squeeze(1) if name in STATES else x for name, x in rows.items()})

    def interrupt(self) -> None:
        """Say that the next ``add`` will not go on from what was seen last, since the environment started anew.

        The step before is cut there as by a time limit: its true successor is known and bootstrapped from.
        """
        if self.length:
            self.rows["done"][:, :, self.length - 1] = True
        self.left.zero_()

    def state_dict(self) -> State:
        """Everything, the steps held included."""
        rows = {name: rows[:, :, : self.length].clone() for name, rows in self.rows.items()}
        return {"rows": rows, "left": self.left.clone(), "length": self.length}

    def load_state_dict(self, state: State) -> None:
        self.length = state["length"]
        self.left = state["left"].clone()
        for name, rows in self.rows.items():
            rows[:, :, : self.length] = state["rows"][name]

    def read(self, start: int, stop: int) -> dict[str, Tensor]:
        return {}

    def restore(self, chunks: Iterable[tuple[int, dict[str, Tensor]]]) -> None:
        """Nothing to do: ``load_state_dict`` has it all."""
