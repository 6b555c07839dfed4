"""Targets that values are trained towards."""

from __future__ import annotations

from torch import Tensor


def td_target(reward: Tensor, gamma: Tensor, terminated: Tensor, value: Tensor) -> Tensor:
    """``r + gamma (1 - terminated) v(s')``: the one-step target (PR, equation 14).

    Args:
        reward: ``[P, N, B]``.
        gamma: discount of each member, ``[P, 1, 1]``.
        terminated: ``[P, N, B]`` bool; a time limit is no termination.
        value: ``[P, N, B]``, the value of the true successor.
    """
    return reward + gamma * value.masked_fill(terminated, 0.0)
