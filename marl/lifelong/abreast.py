"""Environments of equal spaces side by side: members of one stacked population can then learn different tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from marl.envs.base import EnvSpec, Step, VectorEnv
from marl.types import State, UserError


class Abreast(VectorEnv):
    """The members of all parts, one part after the other: P is the sum of theirs.

    Args:
        parts: one or more environments with as many copies each, whose specs are equal but for names and time limits.

    Raises:
        UserError: they differ in anything else.
    """

    def __init__(self, parts: Sequence[VectorEnv]) -> None:
        self.parts = list(parts)
        first = self.parts[0]
        for part in self.parts[1:]:
            ours, theirs = _spaces(first.spec), _spaces(part.spec)
            if ours != theirs:
                raise UserError(f"tasks need equal spaces: {first.spec.id} has {ours}, {part.spec.id} has {theirs}")
            for name, wanted in _comparable(first.spec, first.copies).items():
                if (got := _comparable(part.spec, part.copies)[name]) != wanted:
                    raise UserError(
                        f"{name} of {part.spec.id} is {got}, that of {first.spec.id} {wanted}: tasks need equal ones"
                    )
        self.spec = (
            first.spec
            if len(self.parts) == 1
            else dataclasses.replace(
                first.spec,
                id=" ".join(part.spec.id for part in self.parts),
                rules="",
                max_steps=None,
                exact_state=all(part.spec.exact_state for part in self.parts),
            )
        )
        self.copies = first.copies
        self.members = sum(part.members for part in self.parts)

    def reset(self) -> Tensor:
        return torch.cat([part.reset() for part in self.parts])

    def avail(self) -> Tensor | None:
        return joined([part.avail() for part in self.parts])

    def state(self) -> Tensor | None:
        return joined([part.state() for part in self.parts])

    def step(self, action: Tensor) -> Step:
        self.step_async(action)
        return self.step_wait()

    def step_async(self, action: Tensor) -> None:
        for part, share in zip(self.parts, action.split([part.members for part in self.parts]), strict=True):
            part.step_async(share)

    def step_wait(self) -> Step:
        steps = [part.step_wait() for part in self.parts]
        if any(step.lost is not None for step in steps):
            steps = [s if s.lost is not None else s._replace(lost=torch.zeros_like(s.done)) for s in steps]
        return Step(*(joined(field) for field in zip(*steps, strict=True)))  # type: ignore[arg-type]

    def state_dict(self) -> State:
        return {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, state: State) -> None:
        for i, part in enumerate(self.parts):
            part.load_state_dict(state[str(i)])

    def events(self) -> list[str]:
        """Each with the id of the part to which it happened."""
        return [f"{part.spec.id}: {event}" for part in self.parts for event in part.events()]

    def render(self, member: int = 0, copy: int = 0) -> np.ndarray:
        for part in self.parts:
            if member < part.members:
                return part.render(member, copy)
            member -= part.members
        raise IndexError(f"no such member of {self.members}")

    def close(self) -> None:
        for part in self.parts:
            part.close()


def _spaces(spec: EnvSpec) -> str:
    """In words; equal where the spaces of every agent are."""
    seen = (
        "a picture of {} x {} x {}".format(*spec.pixels) if spec.pixels else f"observations of {_sizes(spec.obs_sizes)}"
    )
    kind = "actions" if spec.discrete else "numbers as its action"
    return f"{seen} and {_sizes(spec.action_sizes)} {kind}"


def _sizes(sizes: Sequence[int]) -> str:
    return "/".join(map(str, sizes))


def _comparable(spec: EnvSpec, copies: int) -> dict[str, object]:
    """What must be equal: all but names, time limits, and whether states can be saved."""
    values = dataclasses.asdict(spec) | {"copies": copies}
    return {name: x for name, x in values.items() if name not in ("id", "rules", "max_steps", "exact_state")}


def joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Along the members; None where there is nothing."""
    there = [part for part in parts if part is not None]
    if len(there) == 1:
        return there[0]
    return torch.cat(there) if there else None
