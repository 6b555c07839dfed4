"""Running mean and deviation of the states that have been seen."""

from __future__ import annotations

import torch
from torch import Tensor

from marl.types import State


class Moments:
    """Mean and variance of each coordinate over every row seen, merged batch by batch (Chan, Golub, LeVeque 1979).

    Of batches that threads hand over at the same time one may be lost, but what is known stays of one piece.
    """

    def __init__(self) -> None:
        nothing = torch.zeros((), dtype=torch.float64)
        # how many rows, their mean, the sum of squared differences from it
        self.known: tuple[int, Tensor, Tensor] = (0, nothing, nothing)

    @property
    def count(self) -> int:
        return self.known[0]

    @property
    def mean(self) -> Tensor:
        return self.known[1]

    def update(self, states: Tensor) -> None:
        """Take ``[P, G, B, D]``, one row or more, into account."""
        count, before, squares = self.known
        rows, device = states.shape[-2], states.device
        whole = states if states.dtype == torch.float64 else states.float()  # squares of half numbers overflow
        variance, mean = torch.var_mean(whole, dim=-2, correction=0)
        total = count + rows
        shift = mean.double() - before.to(device)
        squares = squares.to(device) + variance * rows + shift.square() * (count * rows / total)
        self.known = total, mean.double() - shift * (count / total), squares

    def std(self) -> Tensor:
        """``[P, G, D]`` float64, of the population (divided by the count)."""
        count, _, squares = self.known
        return (squares / count).sqrt()

    def state_dict(self) -> State:
        return dict(zip(("count", "mean", "squares"), self.known, strict=True))

    def load_state_dict(self, state: State) -> None:
        self.known = state["count"], state["mean"], state["squares"]
