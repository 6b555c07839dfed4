"""Continuous actions from a normal distribution with independent components, for agents of different widths.

``mean`` is ``[P, N, ..., A]``; ``log_std`` has as many dimensions and broadcasts to it, for example ``[P, N, 1, A]``;
``mask`` (``[N, A]`` bool) is True where a component is the agent's own.
"""

from __future__ import annotations

import math

from torch import Tensor

from marl.ops.discrete import per_agent


def sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
    """``mean + std noise`` with standard normal noise of the mean's shape."""
    return mean + log_std.exp() * noise


def log_prob(action: Tensor, mean: Tensor, log_std: Tensor, mask: Tensor) -> Tensor:
    """Log-density of ``[P, N, ..., A]`` actions over the agent's own components -> ``[P, N, ...]``."""
    each = -((action - mean) * (-log_std).exp()).square() / 2 - log_std - math.log(2 * math.pi) / 2
    return each.masked_fill(~per_agent(mask, each), 0.0).sum(-1)


def entropy(log_std: Tensor, mask: Tensor) -> Tensor:
    """Entropy in nats over the agent's own components: ``[P, N or 1, ..., A]`` -> ``[P, N, ...]``."""
    each = log_std + (1 + math.log(2 * math.pi)) / 2
    return (each * per_agent(mask, each)).sum(-1)
