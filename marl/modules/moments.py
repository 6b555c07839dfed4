"""Running mean and deviation of the states that have been seen."""

from __future__ import annotations

import torch
from torch import Tensor

from marl.types import State


class Moments:
    """Mean and variance of each coordinate over every row seen, merged batch by batch (Chan, Golub, LeVeque 1979).

    Where threads update it at the same time a batch may be lost, but count, mean and variance fit together.
    """

    def __init__(self) -> None:
        nothing = torch.zeros((), dtype=torch.float64)
        # how many rows ([P, G, 1] once some did not count), their mean, the sum of squared differences from it
        self.known: tuple[int | Tensor, Tensor, Tensor] = (0, nothing, nothing)

    @property
    def count(self) -> int:
        """Rows seen, of those who have seen most."""
        count = self.known[0]
        return int(count.max()) if isinstance(count, Tensor) else count

    @property
    def mean(self) -> Tensor:
        return self.known[1]

    def update(self, states: Tensor, real: Tensor | None = None) -> None:
        """Take ``[P, G, B, D]``, one row or more, into account.

        Args:
            real: ``[P, 1 or G, B]`` bool, False where a row does not count; None: all do.
        """
        count, before, squares = self.known
        device = states.device
        count = count.to(device) if isinstance(count, Tensor) else count
        whole = states if states.dtype == torch.float64 else states.float()  # squares of half numbers overflow
        rows: int | Tensor
        if real is None:
            rows = states.shape[-2]
            variance, mean = torch.var_mean(whole, dim=-2, correction=0)
        else:
            out = ~real.to(device).unsqueeze(-1)
            rows = (~out).sum(-2).double()
            mean = whole.masked_fill(out, 0.0).sum(-2) / rows.clamp(min=1)
            variance = (whole - mean.unsqueeze(-2)).masked_fill(out, 0.0).square().sum(-2) / rows.clamp(min=1)
        total = count + rows
        share = count / (total.clamp(min=1) if isinstance(total, Tensor) else total)
        shift = mean.double() - before.to(device)
        squares = squares.to(device) + variance * rows + shift.square() * (share * rows)
        self.known = total, mean.double() - shift * share, squares

    def std(self) -> Tensor:
        """``[P, G, D]`` float64, of the population (divided by the count); 0 where no row counted."""
        count, _, squares = self.known
        return (squares / (count.clamp(min=1) if isinstance(count, Tensor) else count)).sqrt()

    def state_dict(self) -> State:
        return dict(zip(("count", "mean", "squares"), self.known, strict=True))

    def load_state_dict(self, state: State) -> None:
        self.known = state["count"], state["mean"], state["squares"]
