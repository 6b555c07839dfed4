"""Discrete actions as one-hot vectors, with agents that have fewer actions than others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot, softmax

MASKED = -1e9
"""The logit of an action that an agent does not have: its probability is exactly 0 in float32."""


def mask_logits(logits: Tensor, mask: Tensor) -> Tensor:
    """Logits ``[P, N, ..., A]`` with those outside ``mask`` (``[N, A]``, or of the logits' shape) put out of reach."""
    return logits.masked_fill(~per_agent(mask, logits), MASKED)


def per_agent(mask: Tensor, like: Tensor) -> Tensor:
    """A mask ``[N, A]`` with dimensions of 1 between, so that it broadcasts to ``like``, ``[P, N, ..., A]``; any other
    mask as it is."""
    return mask.view(len(mask), *[1] * (like.dim() - 3), -1) if mask.dim() == 2 else mask


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Each row's entry of that index: ``[..., A]`` and int64 ``[...]`` -> ``[...]``."""
    return x.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def log_prob(logits: Tensor, action: Tensor) -> Tensor:
    """Log-probability of each action: ``[..., A]`` and int64 ``[...]`` -> ``[...]``."""
    return pick(log_softmax(logits, dim=-1), action)


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats: ``[..., A]`` -> ``[...]``; logits must be finite, as ``MASKED`` is."""
    logp = log_softmax(logits, dim=-1)
    return -(logp.exp() * logp).sum(-1)


def sample(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw an action from softmax(logits) with numbers uniform on [0, 1): both ``[..., A]`` -> int64 ``[...]``."""
    return (logits + gumbel(uniform)).argmax(dim=-1)


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise from numbers uniform on [0, 1): ``-log(-log u)``, kept finite at u = 0."""
    return -torch.log(-torch.log(uniform.clamp(min=torch.finfo(uniform.dtype).tiny)))


def greedy(logits: Tensor) -> Tensor:
    """One-hot of the largest logit, ``[..., A]`` float32; ties go to the lowest index."""
    return one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)


def gumbel_softmax(logits: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
    """A sample of the categorical distribution as a one-hot vector whose gradient is the relaxed sample's.

    Straight-through form (Jang, Gu, Poole 2017, section 2.2).

    Args:
        logits: ``[..., A]``.
        noise: Gumbel noise of the same shape.
        temperature: of the relaxation; the sample itself does not depend on it.
    """
    soft = softmax((logits + noise) / temperature, dim=-1)
    return greedy(logits + noise) + (soft - soft.detach())  # the bracket is exactly 0
