"""``small/gates``: walls come from the right, each with a gap; be at the height of the gap."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from marl.envs.small.base import DOWN, ROW_MOVES, SIDE, STAY, UP, Game, pick, picture

FLYER = 1
"""The column in which the flyer stays."""

APART = 5
"""Columns from one wall to the next."""

GAP = 3
"""Rows of a gap."""


class GatesBoard(NamedTuple):
    """``[K]`` each: the flyer's row, the column of the nearer wall, the top rows of its gap and of the next wall's."""

    flyer: Tensor
    wall: Tensor
    gap: Tensor
    next_gap: Tensor


class Gates(Game[GatesBoard]):
    """Two walls, five columns apart, move left by one column a step; each is a full column but for a gap of three rows.

    The flyer moves UP or DOWN by one row. Where the nearer wall arrives in its column, it earns 1 if it is in the gap;
    if not, it crashes and the game is over. A wall that was passed is gone in the same step, and another one follows.

    Channels: flyer, walls.
    """

    begin_draws = 3
    step_draws = 1

    def begin(self, random: Tensor) -> GatesBoard:
        flyer = SIDE // 2 - pick(random[:, 0], 2)  # from the middle, every gap can be reached in time
        return GatesBoard(flyer, torch.full_like(flyer, FLYER + APART), _gap(random[:, 1]), _gap(random[:, 2]))

    def advance(self, board: GatesBoard, action: Tensor, random: Tensor) -> tuple[GatesBoard, Tensor, Tensor]:
        flyer = (board.flyer + ROW_MOVES[action]).clamp(0, SIDE - 1)
        wall = board.wall - 1
        arrived = wall == FLYER
        inside = (flyer >= board.gap) & (flyer < board.gap + GAP)
        over = arrived & ~inside
        passed = arrived & inside
        wall = torch.where(passed, FLYER + APART, wall)
        gap = torch.where(passed, board.next_gap, board.gap)
        next_gap = torch.where(passed, _gap(random[:, 0]), board.next_gap)
        return GatesBoard(flyer, wall, gap, next_gap), passed, over

    def draw(self, board: GatesBoard) -> Tensor:
        rows = torch.arange(SIDE)
        columns = torch.stack([board.wall, board.wall + APART], 1).unsqueeze(-1)  # [K, 2, 1]
        top = torch.stack([board.gap, board.next_gap], 1).unsqueeze(-1)
        solid = ((rows < top) | (rows >= top + GAP)) & (columns < SIDE)
        walls = torch.where(solid, rows * SIDE + columns, -1).flatten(1)
        return picture(board.flyer * SIDE + FLYER, walls)

    def scripted(self, board: GatesBoard) -> Tensor:
        """To the cell of the gap that is nearest to the next wall's gap, if one sees it; else to the nearest."""
        last = board.gap + GAP - 1
        seen = board.wall + APART < SIDE
        nearest = torch.maximum(board.gap, torch.minimum(last, board.flyer))
        ahead = torch.maximum(board.gap, torch.minimum(last, board.next_gap + GAP // 2))
        goal = torch.where(seen, ahead, nearest)
        return torch.where(goal < board.flyer, UP, DOWN).masked_fill(goal == board.flyer, STAY)


def _gap(random: Tensor) -> Tensor:
    """The top row of a new gap."""
    return pick(random, SIDE - GAP + 1)
