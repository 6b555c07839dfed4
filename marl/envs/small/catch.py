"""``small/catch``: fruits and stones fall; stand below the fruits and away from the stones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from marl.envs.small.base import LEFT, RIGHT, SIDE, STAY, Game, pick, picture, slide

FLOOR = SIDE - 1


class CatchBoard(NamedTuple):
    """``[K]`` each: the basket's column, on the bottom row; the falling thing's row and column, and is it a stone."""

    basket: Tensor
    row: Tensor
    column: Tensor
    stone: Tensor


class Catch(Game[CatchBoard]):
    """One thing falls at a time, one row a step, from a random column; half of them are stones.

    The basket moves LEFT or RIGHT by one cell. Where the thing reaches the bottom row in the basket's column it is
    caught: +1 for a fruit, -1 for a stone. The next one appears at the top in the same step. There are nine
    steps from the top to the bottom, enough to be in any column: every fruit can be caught. Only the time limit ends an
    episode.

    Channels: basket, fruit, stone.
    """

    begin_draws = 3
    step_draws = 2

    def begin(self, random: Tensor) -> CatchBoard:
        column, stone = _new(random)
        return CatchBoard(pick(random[:, 2], SIDE), torch.zeros_like(column), column, stone)

    def advance(self, board: CatchBoard, action: Tensor, random: Tensor) -> tuple[CatchBoard, Tensor, Tensor]:
        basket = slide(board.basket, action)
        landed = board.row + 1 == FLOOR
        caught = landed & (basket == board.column)
        column, stone = (torch.where(landed, new, old) for new, old in zip(_new(random), board[2:], strict=True))
        row = torch.where(landed, 0, board.row + 1)
        reward = torch.where(board.stone, -1, 1) * caught
        return CatchBoard(basket, row, column, stone), reward, torch.zeros_like(landed)

    def draw(self, board: CatchBoard) -> Tensor:
        thing = board.row * SIDE + board.column
        return picture(
            FLOOR * SIDE + board.basket, thing.masked_fill(board.stone, -1), thing.masked_fill(~board.stone, -1)
        )

    def scripted(self, board: CatchBoard) -> Tensor:
        """Below a fruit; out of a stone's column. This is optimal: no fruit is missed and no stone is met."""
        to_fruit = torch.where(board.column > board.basket, RIGHT, LEFT).masked_fill(board.column == board.basket, STAY)
        away = torch.where(board.basket > 0, LEFT, RIGHT).masked_fill(board.column != board.basket, STAY)
        return torch.where(board.stone, away, to_fruit)


def _new(random: Tensor) -> tuple[Tensor, Tensor]:
    """Column and kind of the next thing."""
    return pick(random[:, 0], SIDE), random[:, 1] < 0.5
