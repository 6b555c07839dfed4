"""Running normalisation of the values that a network learns."""

from __future__ import annotations

import torch
from torch import Tensor

from marl.types import State


class RunningNorm:
    """Mean and variance of value targets for each network, recent ones counting a little more (van Hasselt et al. 2016,
    section 2; the decay is Yu et al.'s 2022).

    Every update multiplies three sums, of rows, x and x^2, by ``decay`` and adds the batch's. Their ratios are the
    debiased exponential averages, with the one difference that a batch counts by its valid rows. The sums are float64,
    in which E x^2 - (E x)^2 loses nothing that float32 values hold.

    Args:
        members: P.
        networks: N, or 1 to share: the agents are then one.
        decay: of the sums, at each update.
    """

    FLOOR = 1e-2
    """The least variance: targets that hardly differ are not blown up."""

    NEUTRAL = (1.0, 0.0, 1.0)
    """Sums of one row, mean 0 and variance 1: the network's answers are known to be in real units, and so they stay."""

    def __init__(self, members: int, networks: int, decay: float = 0.99999) -> None:
        self.decay = decay
        self.sums = torch.zeros(members, networks, 3, dtype=torch.float64)  # of rows, x and x^2

    @torch.no_grad()
    def update(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take ``[P, N, ...]`` into account, but for rows where ``mask`` (bool, expands to that shape) is False.

        Returns:
            Scale and shift, ``[P, N]`` each, float64: a normalised value v has to become ``v scale + shift`` to stay
            what it is in real units. At the first update, before which nothing was known of them: 1 and 0.
        """
        rows_before, (mean, std) = self.sums[..., 0], self._moments(self.sums[..., 0])
        valid = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.expand_as(x)
        rows = valid.double()
        kept = x.double().masked_fill(~valid, 0.0)
        shape = (*self.sums.shape[:2], -1)
        batch = torch.stack([part.reshape(shape).sum(-1) for part in (rows, kept, kept.square())], dim=-1)
        self.sums = self.sums.to(x.device) * self.decay + batch
        new_mean, new_std = self._moments(rows_before)
        known = rows_before > 0
        return torch.where(known, std / new_std, 1.0), torch.where(known, (mean - new_mean) / new_std, 0.0)

    def normalize(self, x: Tensor) -> Tensor:
        """``(x - mean) / std`` of ``[P, N, ...]``; x itself before the first update."""
        mean, std = self._moments(x)
        return (x - mean) / std

    def denormalize(self, x: Tensor) -> Tensor:
        """The inverse: ``x std + mean``."""
        mean, std = self._moments(x)
        return x * std + mean

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, ``[P, N or 1, 1, ...]`` as ``like`` has dimensions."""
        rows, x, squares = self.sums.to(like.device).unbind(-1)
        mean = x / rows.clamp(min=torch.finfo(rows.dtype).tiny)
        variance = (squares / rows - mean.square()).clamp(min=self.FLOOR)
        std = torch.where(rows > 0, variance.sqrt(), 1.0)
        shape = (*mean.shape, *[1] * (like.dim() - 2))
        return mean.view(shape).to(like.dtype), std.view(shape).to(like.dtype)

    def state_dict(self) -> State:
        return {"sums": self.sums}

    def load_state_dict(self, state: State) -> None:
        self.sums = state["sums"].clone()
