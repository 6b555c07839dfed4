"""``small/gather``: catch the food that drifts by, and keep out of the way of the thorns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from marl.envs.small.base import CELLS, DOWN, LEFT, RIGHT, SIDE, STAY, UP, Game, pick, picture, walk

FOOD, THORNS = 3, 3

DRIFT = torch.tensor([-1] * FOOD + [1] * THORNS)
"""What a step adds to the column of each thing."""

ENTRANCE = torch.where(DRIFT > 0, 0, SIDE - 1)
"""The column in which each thing comes in."""


class GatherBoard(NamedTuple):
    """The walker's cell ``[K]``, and those of the food, then of the thorns ``[K, FOOD + THORNS]``."""

    walker: Tensor
    things: Tensor


class Gather(Game[GatherBoard]):
    """Three pieces of food drift to the left and three thorns to the right, one cell a step, each along its row.

    The walker moves by one cell in four directions. Who shares a cell with it after both have moved is met: +1 for
    food, -1 for thorns; to change places is not to meet. A thing that was met or left the board comes in again at its
    own side, in a random row; it may do so onto the walker, which is not to meet either. Only the time limit ends an
    episode.

    Channels: walker, food, thorns.
    """

    begin_draws = 1 + FOOD + THORNS
    step_draws = FOOD + THORNS

    def begin(self, random: Tensor) -> GatherBoard:
        cells = pick(random, CELLS)
        return GatherBoard(cells[:, 0], cells[:, 1:])

    def advance(self, board: GatherBoard, action: Tensor, random: Tensor) -> tuple[GatherBoard, Tensor, Tensor]:
        walker = walk(board.walker, action)
        moved, left = drift(board.things)
        met = (moved == walker[:, None]) & ~left
        reward = met[:, :FOOD].sum(1) - met[:, FOOD:].sum(1)
        things = torch.where(met | left, pick(random, SIDE) * SIDE + ENTRANCE, moved)
        return GatherBoard(walker, things), reward, torch.zeros(len(walker), dtype=torch.bool)

    def draw(self, board: GatherBoard) -> Tensor:
        return picture(board.walker, *board.things.split([FOOD, THORNS], 1))

    def scripted(self, board: GatherBoard) -> Tensor:
        """The step after which food can be met soonest, out of the thorns' way."""
        moves = torch.tensor([STAY, UP, RIGHT, DOWN, LEFT])
        reached = walk(board.walker[:, None], moves)  # [K, 5]
        moved, left = drift(board.things)
        food, thorns = moved.masked_fill(left, -1).split([FOOD, THORNS], 1)
        row, column = (x[:, :, None, None] for x in (reached // SIDE, reached % SIDE))
        time = torch.arange(SIDE)
        there = (food % SIDE)[:, None, :, None] - time  # the food's column by then, [K, 1, FOOD, SIDE]
        far = (row - (food // SIDE)[:, None, :, None]).abs() + (column - there).abs()
        wait = torch.where((far <= time) & (there >= 0) & (food >= 0)[:, None, :, None], time, SIDE).amin((2, 3))
        pricked = (reached[..., None] == thorns[:, None]).any(-1)
        return moves[(wait + SIDE * pricked).argmin(1)]


def drift(things: Tensor) -> tuple[Tensor, Tensor]:
    """The cells of all things one step on, and which of them left the board."""
    column = things % SIDE + DRIFT
    return things + DRIFT, (column < 0) | (column >= SIDE)
