"""Shapes and small types that every other room of the project shares.

Dense tensors lead with ``[P, N, ...]``: P population members, N agents. ``E`` is the number of environment copies that
one member steps at once, ``B`` a batch of transitions, ``D`` the widest observation, ``A`` the widest action.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:  # so that ``marl --help`` need not wait for torch
    from torch import Tensor

State: TypeAlias = dict[str, Any]
"""What a ``state_dict`` returns: nested dictionaries with string keys whose leaves are tensors or JSON values
(None, bool, int, float, str, or lists of JSON values). Nothing else, so that a checkpoint can never hold code."""


class UserError(Exception):
    """Something only the user can mend. The message is one line; the command line prints it and exits with code 2."""


class View(NamedTuple):
    """What the agents see at one moment, and what they noted for themselves; ``...`` is E, or any rows.

    Attributes:
        obs: ``[P, N, ..., D]`` float32, padded with zeros to the widest agent.
        avail: ``[P, N, ..., A]`` bool, the discrete actions that each agent may take now, always one or more; None:
            every agent may take all of its own, always.
        state: ``[P, ..., S]`` float32, the global state; None: the environment has none but all observations together.
        memory: ``[P, N, ..., H]`` float32, what the learner's ``act`` noted one step earlier; zeros at an episode's
            start. None for learners that note nothing.
    """

    obs: Tensor
    avail: Tensor | None = None
    state: Tensor | None = None
    memory: Tensor | None = None


class Acted(NamedTuple):
    """What a learner's ``act`` answers.

    Attributes:
        action: ``[P, N, E, A]`` float32 in [-1, 1], or ``[P, N, E]`` int64.
        memory: ``[P, N, E, H]`` float32, to be seen at the next step of the episode; None: nothing.
    """

    action: Tensor
    memory: Tensor | None = None


class Batch(NamedTuple):
    """Transitions to learn from; all agents of one row lived the same moment.

    Attributes:
        obs: ``[P, N, B, D]`` float32, padded with zeros to the widest agent.
        action: ``[P, N, B, A]`` float32 in [-1, 1], or ``[P, N, B]`` int64 for discrete actions.
        reward: ``[P, N, B]`` float32.
        next_obs: ``[P, N, B, D]`` float32: the true successor, also where the episode ended there.
        terminated: ``[P, N, B]`` bool: the bootstrap stops. False at a time limit.
        avail, next_avail: ``[P, N, B, A]`` bool; None: see ``View``.
        memory: ``[P, N, B, H]`` what the learner noted as it took ``action``; None: nothing.
        rewards: ``[P, N, B, n]``, ``reward`` and those after it, for n-step returns; None: n = 1. Zero after the last
            one that counts: an episode's end, or the newest step.
        steps: ``[P, 1, B]`` int64, how many count. ``next_obs``, ``terminated`` and ``next_avail`` are those of the
            last of these steps.
        valid: ``[P, N, B]`` bool: False where the agent had left the episode before; None: nowhere.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminated: Tensor
    avail: Tensor | None = None
    next_avail: Tensor | None = None
    memory: Tensor | None = None
    rewards: Tensor | None = None
    steps: Tensor | None = None
    valid: Tensor | None = None


class Trajectory(NamedTuple):
    """T consecutive steps of E copies, in time order, to learn from once.

    The values of the next moment are the true successor's, also where an episode ended; the row after such a step
    belongs to another episode.

    Attributes:
        obs: ``[P, N, T, E, D]`` float32, padded with zeros to the widest agent.
        action: ``[P, N, T, E, A]`` float32 in [-1, 1], or ``[P, N, T, E]`` int64.
        reward: ``[P, N, T, E]`` float32.
        next_obs: ``[P, N, T, E, D]`` float32.
        terminated: ``[P, N, T, E]`` bool: the bootstrap stops.
        done: ``[P, N, T, E]`` bool: what follows in the next row does not follow from this one.
        valid: ``[P, N, T, E]`` bool: False where a transition did not happen, or its agent had left the episode before.
        avail: ``[P, N, T, E, A]`` bool; None: see ``View``.
        state, next_state: ``[P, T, E, S]`` float32; None: see ``View``.
        memory: ``[P, N, T, E, H]`` float32, what the learner had noted *before* the step; None: nothing.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminated: Tensor
    done: Tensor
    valid: Tensor
    avail: Tensor | None = None
    state: Tensor | None = None
    next_state: Tensor | None = None
    memory: Tensor | None = None


class EpisodeBatch(NamedTuple):
    """Whole episodes to learn from, all beginning at time 0; T is the longest that there may be.

    After an episode's end its last step and what was seen last are repeated, so that entry t + 1 of what is seen is the
    true successor of entry t wherever ``filled``.

    Attributes:
        obs: ``[P, N, T + 1, B, D]`` float32, padded with zeros to the widest agent.
        action: ``[P, N, T, B]`` int64, or ``[P, N, T, B, A]`` float32.
        reward: ``[P, N, T, B]`` float32.
        terminated: ``[P, N, T, B]`` bool: the bootstrap stops. False at a time limit.
        filled: ``[P, T, B]`` bool, False after the episode's end.
        avail: ``[P, N, T + 1, B, A]`` bool; None: see ``View``.
        state: ``[P, T + 1, B, S]`` float32; None: see ``View``.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    filled: Tensor
    avail: Tensor | None = None
    state: Tensor | None = None


class Schedule(NamedTuple):
    """When a learner acts at random and when it learns, in environment steps per member.

    Attributes:
        warmup: steps with uniformly random actions before the first update.
        update_every: steps per update from then on.
    """

    warmup: int
    update_every: int

    def due(self, steps: int) -> int:
        """How many updates there should have been after so many steps."""
        return max((steps - self.warmup) // self.update_every, 0)


class Journal(Protocol):
    """What a replay buffer offers so that a checkpoint writes only what is new in it.

    Time slots are numbered from 0 in the order of writing and never change once they count in ``written``; the buffer
    still holds the last ``capacity`` of them.
    """

    @property
    def written(self) -> int:
        """How many slots were ever written."""

    @property
    def capacity(self) -> int:
        """How many slots the buffer holds at most."""

    def read(self, start: int, stop: int) -> dict[str, Tensor]:
        """The content of slots ``start`` .. ``stop - 1``, all of them still held, laid out as ``restore`` reads it."""

    def restore(self, chunks: Iterable[tuple[int, dict[str, Tensor]]]) -> None:
        """Write back what ``read`` gave, as ``(start, content)`` in ascending order without gaps.

        The first chunk may begin before the last ``capacity`` slots; what the buffer no longer holds is to be skipped.
        """
