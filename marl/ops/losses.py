"""Losses of stacked networks: a mean over the batch and a sum over members and agents."""

from __future__ import annotations

from torch import Tensor


def sum_of_means(x: Tensor) -> Tensor:
    """Mean over the batch, then sum over the P x N networks, so that each sees the gradient it would see alone.

    Args:
        x: ``[P, N, B]`` a loss for each row.
    """
    return x.sum() / x.shape[-1]
