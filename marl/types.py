"""Shapes and small types that every other room of the project shares.

Dense tensors lead with ``[P, N, ...]``: P population members, N agents. ``E`` is the number of environment copies that
one member steps at once, ``B`` a batch of transitions, ``D`` the widest observation, ``A`` the widest action.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:  # so that ``marl --help`` need not wait for torch
    from torch import Tensor

State: TypeAlias = dict[str, Any]
"""What a ``state_dict`` returns: nested dictionaries with string keys whose leaves are tensors or JSON values
(None, bool, int, float, str, or lists of JSON values). Nothing else, so that a checkpoint can never hold code."""


class UserError(Exception):
    """Something only the user can mend. The message is one line; the command line prints it and exits with code 2."""


class Batch(NamedTuple):
    """Transitions to learn from; all agents of one row lived the same moment.

    Attributes:
        obs: ``[P, N, B, D]`` float32, padded with zeros to the widest agent.
        action: ``[P, N, B, A]`` float32 in [-1, 1], or ``[P, N, B]`` int64 for discrete actions.
        reward: ``[P, N, B]`` float32.
        next_obs: ``[P, N, B, D]`` float32: the true successor, also where the episode ended there.
        terminated: ``[P, N, B]`` bool: the bootstrap stops. False at a time limit.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminated: Tensor
