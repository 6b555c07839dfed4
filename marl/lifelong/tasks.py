"""The tasks of a run, and what they have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from marl.envs import all_options, make_env
from marl.envs.base import EnvSpec
from marl.lifelong.abreast import Abreast
from marl.types import UserError


@dataclass(frozen=True)
class Tasks:
    """M environments with equal spaces and one agent.

    Attributes:
        names: by id.
        env: the options of all of them.
        spec: what they have in common.
        skip: frames of the game in an environment step.
    """

    names: tuple[str, ...]
    env: Mapping[str, Any]
    spec: EnvSpec
    skip: int

    @classmethod
    def of(cls, names: Sequence[str], env: Mapping[str, Any]) -> Tasks:
        """Raises ``UserError`` naming two that differ, or one that does not exist or has several agents."""
        if not names or len(set(names)) < len(names):
            raise UserError(f"tasks: expected one or more different ones, got {','.join(names) or 'none'}")
        parts = []
        try:
            parts = [make_env(name, seeds=[0], options=env) for name in names]
            spec = Abreast(parts).spec
        finally:
            for part in parts:
                part.close()
        if spec.n_agents != 1:
            raise UserError(f"{names[0]} has {spec.n_agents} agents: lifelong tasks need one")
        if not spec.discrete:
            raise UserError(f"{names[0]} has continuous actions: lifelong agents need discrete ones")
        skips = [int(all_options(name, env).get("frame_skip", 1)) for name in names]
        for name, skip in zip(names, skips, strict=True):
            if skip != skips[0]:
                raise UserError(f"a step of {name} is {skip} frames, one of {names[0]} {skips[0]}: expected equal")
        return cls(tuple(names), dict(env), spec, skips[0])

    def steps(self, frames: int, copies: int) -> int:
        """Environment steps of at least so many frames, in whole steps of all copies."""
        return -(-frames // (self.skip * copies)) * copies
