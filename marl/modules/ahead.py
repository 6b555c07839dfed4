"""Random draws for ``resample``, many calls of them at once: the default space, on the path of every training step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from marl.modules.guards import as_usual
from marl.streams import Streams

MOST_CALLS, MOST_NUMBERS = 64, 2**14
"""How far ``Ahead`` draws, for each member."""

FEW_NUMBERS = 2**12
"""In states ``[B, D]``: up to here taking them all one by one is quicker than one operation more."""

Draw: TypeAlias = tuple[Tensor, Tensor | None]
"""See ``Ahead.draw``."""


class Ahead:
    """Which coordinate each state changes, and where its new value stands, drawn for many calls at once.

    One draw costs nearly what many do. The numbers are those which one call at a time would draw, as long as nobody
    else draws from these streams.
    """

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.pool = Pool()

    def draw(self, states: Tensor) -> Draw:
        """For states ``[P, G, B, D]`` or ``[B, D]`` a number of another row each, and which of its own it replaces.

        Returns places in all states, flattened, and coordinates, both ``[P, G, B, 1]`` or ``[B, 1]``; or, of draws
        ahead where ``[B, D]`` are few numbers, the places of all that the adjacent states hold, ``[B, D]``, and None.
        """
        if self.streams.shared:
            return self.draw_one(states)
        pool, shape, device = self.pool, states.shape, states.device
        if pool.left and pool.shape == shape and pool.device == device:
            try:
                return pool.left.pop()
            except IndexError:  # another thread took the last
                pass
        self.rewind()
        calls = 2 * pool.calls if pool.shape == shape else 1
        calls = max(1, min(calls, MOST_CALLS, MOST_NUMBERS // max(1, math.prod(shape[:-1]) // len(self.streams))))
        before = [generator.get_state() for generator in self.streams.generators]
        *left, first = self._drawn(calls, shape, device)
        self.pool = Pool(shape, device, before, calls, left)
        return first

    def draw_one(self, states: Tensor) -> Draw:
        """The same for this call alone: nothing is kept."""
        self.rewind()
        (pair,) = self._drawn(1, states.shape, states.device)
        return pair

    def rewind(self) -> None:
        """Put the streams where they would be, had each call drawn its own."""
        pool, self.pool = self.pool, Pool()
        if pool.left:
            for generator, state in zip(self.streams.generators, pool.before, strict=True):
                generator.set_state(state)
            with as_usual():  # a vmap may draw each number several times, a fake mode none
                self._numbers(pool.calls - len(pool.left), pool.shape)

    def _numbers(self, calls: int, shape: tuple[int, ...]) -> Tensor:
        """All that is drawn for so many calls: how far after each row's first number the new value stands."""
        *batches, rows, width = shape
        return self.streams.integers((rows - 1) * width, calls, *batches[1:], rows, 1)

    def _drawn(self, calls: int, shape: tuple[int, ...], device: torch.device) -> list[Draw]:
        """The draws of so many calls, the last call's first."""
        *batches, rows, width = shape
        ahead = self._numbers(calls, shape)
        following = torch.arange(width, (rows + 1) * width, width, device="cpu").unsqueeze(-1)
        places = ahead.add_(following).remainder_(rows * width).transpose(0, 1).reshape(calls, *batches, rows, 1)
        begins = torch.arange(0, math.prod(shape), rows * width, device="cpu").view(*batches, 1, 1)
        places = (places + begins).to(device)
        index = places % width
        draws: list[Draw] = list(zip(places.unbind(), index.unbind(), strict=True))
        if calls > 1 and not batches and rows * width <= FEW_NUMBERS:
            each = torch.arange(rows * width, device=device).view(1, rows, width).repeat(calls, 1, 1)
            draws = [(source, None) for source in each.scatter_(-1, index, places).unbind()]
        return draws[::-1]


@dataclass(frozen=True)
class Pool:
    """What ``Ahead`` drew at once for ``calls`` calls: the draws ``left``, and the generators' states ``before``."""

    shape: tuple[int, ...] = ()
    device: torch.device = torch.device("cpu")
    before: Sequence[Tensor] = ()
    calls: int = 0
    left: list[Draw] = field(default_factory=list)
