"""What every learner offers to the loop, and the few lines that all of them need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, TypeAlias

from torch import Tensor

from marl.envs.base import EnvSpec
from marl.types import Batch, State, UserError

Metrics: TypeAlias = dict[str, Tensor]
"""Name (see ``marl.log.METRICS``) -> ``[P, N]``."""


class Learner(Protocol):
    """One algorithm for a population of P members with N agents.

    ``Learner(spec, configs, seeds)`` raises ``UserError`` where the algorithm does not fit the environment. ``Config``
    has at least ``batch_size``, ``buffer_size``, ``warmup`` and ``update_every``, which the loop reads.
    """

    Config: ClassVar[type]
    config: Any  # the first member's

    def __init__(self, spec: EnvSpec, configs: Sequence[Any], seeds: Sequence[int]) -> None: ...

    def act(self, obs: Tensor, explore: bool) -> Tensor:
        """``[P, N, E, D]`` -> ``[P, N, E, A]`` in [-1, 1], or ``[P, N, E]`` int64."""

    def update(self, batch: Batch) -> Metrics: ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


def require_continuous(algorithm: str, spec: EnvSpec) -> None:
    """Raise ``UserError`` unless the environment's actions are vectors."""
    if spec.discrete:
        sizes = ", ".join(map(str, sorted(set(spec.action_sizes))))
        raise UserError(
            f"{algorithm} needs continuous actions, {spec.id} has {sizes} discrete ones; maddpg handles both"
        )


def save_parts(owner: object, names: Sequence[str]) -> State:
    """The ``state_dict`` of each named attribute."""
    return {name: getattr(owner, name).state_dict() for name in names}


def load_parts(owner: object, names: Sequence[str], state: State) -> None:
    """The inverse of ``save_parts``."""
    for name in names:
        getattr(owner, name).load_state_dict(state[name])
