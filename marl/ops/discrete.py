"""Discrete actions as one-hot vectors, with agents that have fewer actions than others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softmax

MASKED = -1e9
"""The logit of an action that an agent does not have: its probability is exactly 0 in float32."""


def mask_logits(logits: Tensor, mask: Tensor) -> Tensor:
    """Logits ``[P, N, B, A]`` with those outside ``mask`` (``[N, A]``) put out of reach."""
    return logits.masked_fill(~mask[:, None], MASKED)


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
