"""What every learner offers to the loop, and the few lines that all of them need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

from torch import Tensor

from marl.envs.base import EnvSpec, Step
from marl.types import Acted, Batch, EpisodeBatch, Journal, Schedule, State, Trajectory, UserError, View

SeenT = TypeVar("SeenT", View, Batch, EpisodeBatch, Trajectory)

Metrics: TypeAlias = dict[str, Tensor]
"""Name (see ``marl.log.METRICS``) -> ``[P, N]``."""


class Buffer(Journal, Protocol):
    """What the loop needs of a buffer. One that does not keep the past has no time slots: ``written`` is 0."""

    schedule: Schedule

    def __len__(self) -> int:
        """Transitions held for each member."""
        ...

    def add(self, view: View, acted: Acted, step: Step) -> None: ...

    def draw(self) -> Any: ...

    def interrupt(self) -> None: ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


class Player(Protocol):
    """The part of a learner that an evaluation needs.

    Attributes:
        memory_size: H, how many numbers ``act`` notes for each agent and copy; 0: none.
    """

    memory_size: int

    def act(self, view: View, explore: bool) -> Acted:
        """What each agent does about what it sees; without ``explore``, ``view.state`` is not looked at."""
        ...


class Learner(Player, Protocol):
    """One algorithm for a population of P members with N agents.

    ``Learner(spec, configs, seeds)`` raises ``UserError`` where the algorithm does not fit the environment.

    Attributes:
        Config: its settings, a frozen dataclass.
        Buffer: what it learns from; ``Buffer.of`` reads the settings that it needs.
        config: the first member's settings.
    """

    Config: ClassVar[type]
    Buffer: ClassVar[Any]
    config: Any

    def __init__(self, spec: EnvSpec, configs: Sequence[Any], seeds: Sequence[int]) -> None: ...

    def update(self, batch: Any) -> Metrics:
        """Learn from what ``Buffer.draw`` gave."""
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


def with_nothing_noted(view: View, size: int) -> View:
    """What a learner that notes ``size`` numbers for each agent and copy sees as an episode begins; 0: none at all."""
    return view._replace(memory=view.obs.new_zeros(*view.obs.shape[:3], size)) if size else view


def following(acted: Acted, step: Step) -> View:
    """What is seen after a step; what was noted is forgotten where an episode ended."""
    if acted.memory is None:
        return step.view
    return step.view._replace(memory=acted.memory.masked_fill(step.done.unsqueeze(-1), 0.0))


def readable(seen: SeenT, spec: EnvSpec) -> SeenT:
    """A view or batch as networks read it: observations are divided by 255 where the environment shows bytes."""
    if not spec.bytes:
        return seen
    names = {"obs", "next_obs"} & set(seen._fields)
    return seen._replace(**{name: as_read(getattr(seen, name), spec) for name in names})


def as_read(obs: Tensor, spec: EnvSpec) -> Tensor:
    """Observations ``[..., D]`` as networks read them: see ``readable``."""
    return obs / 255 if spec.bytes else obs


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
