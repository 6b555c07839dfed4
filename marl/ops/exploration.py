"""Behaviour during training."""

from __future__ import annotations

import torch
from torch import Tensor

from marl.streams import Streams


def noisy(action: Tensor, streams: Streams, scale: Tensor) -> Tensor:
    """Gaussian noise added to actions, clipped to [-1, 1].

    Args:
        action: ``[P, N, E, A]``.
        streams: where the noise comes from.
        scale: standard deviation for each member, ``[P, 1, 1]``.
    """
    noise = streams.normal(*action.shape[1:])
    return (action + scale.unsqueeze(-1) * noise).clamp_(-1, 1)


def sometimes_random(action: Tensor, streams: Streams, probability: Tensor) -> Tensor:
    """Each agent's whole action replaced, with a probability, by one uniform on [-1, 1].

    Args:
        action: ``[P, N, E, A]``.
        streams: where chance comes from.
        probability: for each member, ``[P, 1, 1]``.
    """
    chance = streams.uniform(*action.shape[1:-1], 1)
    uniform = 2 * streams.uniform(*action.shape[1:]) - 1
    return torch.where(chance < probability.unsqueeze(-1), uniform, action)


def epsilon_greedy(values: Tensor, avail: Tensor | None, streams: Streams, epsilon: Tensor) -> Tensor:
    """The action of the highest value, or with a probability any action that may be taken: ``[P, N, E]`` int64.

    Args:
        values: ``[P, N, E, A]``; those of actions that may not be taken must be the lowest.
        avail: bool that expands to the values' shape, False where an action may not be taken; None: all may be.
        streams: where chance comes from.
        epsilon: the probability for each member, ``[P, 1, 1]``.
    """
    chance = streams.uniform(*values.shape[1:-1])
    lots = streams.uniform(*values.shape[1:])
    anything = (lots if avail is None else lots.masked_fill_(~avail, -1.0)).argmax(-1)
    return torch.where(chance < epsilon, anything, values.argmax(-1))
