"""Losses of stacked networks: a mean over the batch and a sum over members and agents."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import huber_loss


def sum_of_means(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over the batch, then sum over the P x N networks, so that each sees the gradient it would see alone.

    Args:
        x: ``[P, N, B]`` a loss for each row.
        valid: bool of that shape, False where a row does not count; None: all do.
    """
    return x.sum() / x.shape[-1] if valid is None else masked_mean(x, valid).sum()


def row_mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over the rows that count, without gradient: ``[P, N, B]`` -> ``[P, N]``; see ``sum_of_means``."""
    return x.detach().mean(-1) if valid is None else masked_mean(x.detach(), valid)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the rows that count, ``[P, N]``; 0 for a network without any.

    Args:
        x: ``[P, N, ...]``; rows may have several dimensions.
        mask: bool, of a shape that expands to x's; False where a row is padding.
    """
    mask = mask.expand_as(x)
    return x.masked_fill(~mask, 0.0).flatten(2).sum(-1) / mask.flatten(2).sum(-1).clamp(min=1)


def clipped_surrogate(logp: Tensor, old_logp: Tensor, advantage: Tensor, clip: Tensor) -> Tensor:
    """``-min(ratio A, clamp(ratio, 1 - clip, 1 + clip) A)`` for each row (Schulman et al. 2017, equation 7).

    Args:
        logp, old_logp: ``[P, N, ...]`` log-probabilities of the actions taken, now and when they were taken.
        advantage: ``[P, N, ...]``.
        clip: of each member, with as many dimensions: ``[P, 1, ...]``.
    """
    ratio = (logp - old_logp).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def clipped_value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip: Tensor, delta: float | None) -> Tensor:
    """The larger of the errors of v and of v kept within ``clip`` of its old value, for each row (Yu et al. 2022).

    Args:
        value, old_value, target: ``[P, N, ...]``.
        clip: of each member, with as many dimensions: ``[P, 1, ...]``.
        delta: see ``huber``.
    """
    near = old_value + (value - old_value).clamp(-clip, clip)
    return torch.maximum(huber(value - target, delta), huber(near - target, delta))


def huber(error: Tensor, delta: float | None) -> Tensor:
    """Half the square of ``error`` up to ``delta``, from there on a line of slope ``delta``; None: half the square."""
    if delta is None:
        return error.square() / 2
    return huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta)
